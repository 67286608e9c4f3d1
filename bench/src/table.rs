//! One table: every figure of every leg, and what mesh is of each other leg.

use std::fmt::Write as _;

use crate::{
    leg::Leg,
    results::{Metric, Results},
};

/// The table, as text cells.
#[derive(Debug)]
pub(crate) struct Table {
    rows: Vec<Vec<String>>,
    /// What interception costs, as sentences.
    below: String,
}

impl Table {
    pub(crate) fn new(legs: &[Leg], results: &Results) -> Self {
        let mut head = vec![String::new()];
        head.extend(legs.iter().map(|leg| leg.name().to_owned()));
        let others: Vec<Leg> = legs
            .iter()
            .copied()
            .filter(|leg| !matches!(leg, Leg::Mesh | Leg::Kernel | Leg::Plain))
            .collect();
        let compare = legs.contains(&Leg::Mesh);
        if compare {
            head.extend(others.iter().map(|leg| format!("mesh/{}", leg.name())));
        }
        let kernel = legs.contains(&Leg::Kernel) && legs.contains(&Leg::Direct);
        if kernel {
            head.push("kernel/direct".to_owned());
        }
        let mut rows = vec![head];
        for metric in Metric::ALL {
            let medians: Vec<_> = legs
                .iter()
                .map(|leg| results.median(*leg, metric))
                .collect();
            if medians.iter().all(Option::is_none) {
                continue;
            }
            let mut row = vec![metric.name().to_owned()];
            row.extend(medians.iter().map(|value| value.map_or("-".into(), figure)));
            if compare {
                // What others used says nothing about mesh.
                let mesh = results
                    .median(Leg::Mesh, metric)
                    .filter(|_| metric != Metric::Foreign);
                row.extend(
                    others
                        .iter()
                        .map(|leg| ratio(mesh, results.median(*leg, metric))),
                );
            }
            if kernel {
                let of = |leg| {
                    results
                        .median(leg, metric)
                        .filter(|_| metric != Metric::Foreign)
                };
                row.push(ratio(of(Leg::Kernel), of(Leg::Direct)));
            }
            rows.push(row);
        }
        Self {
            rows,
            below: interception(results) + &rules(results) + &noise(legs, results),
        }
    }

    /// For a terminal.
    pub(crate) fn text(&self) -> String {
        let columns = self.rows.first().map_or(0, Vec::len);
        let width = |column: usize| {
            self.rows
                .iter()
                .map(|row| row[column].len())
                .max()
                .unwrap_or(0)
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();
        let mut text = String::new();
        for row in &self.rows {
            for (column, cell) in row.iter().enumerate() {
                let width = widths[column];
                let _ = if column == 0 {
                    write!(text, "{cell:width$}")
                } else {
                    write!(text, "  {cell:>width$}")
                };
            }
            text.push('\n');
        }
        text + &self.below
    }

    /// For a page.
    pub(crate) fn markdown(&self) -> String {
        let mut text = String::new();
        for (number, row) in self.rows.iter().enumerate() {
            let _ = writeln!(text, "| {} |", row.join(" | "));
            if number == 0 {
                let _ = writeln!(text, "|---|{}", "--:|".repeat(row.len() - 1));
            }
        }
        if !self.below.is_empty() {
            let _ = write!(text, "\n{}", self.below);
        }
        text
    }
}

/// The whole path's CPU with interception, less that of the same proxy dialled.
fn interception(results: &Results) -> String {
    let mut text = String::new();
    for (metric, what) in [
        (Metric::PathPerRequest, "request"),
        (Metric::PathPerConnection, "connection"),
    ] {
        let (with, without) = (
            results.median(Leg::Mesh, metric),
            results.median(Leg::Plain, metric),
        );
        if let (Some(with), Some(without)) = (with, without) {
            let cost = with - without;
            let _ = writeln!(
                text,
                "Interception costs {cost:.2} us of the path's CPU per {what}."
            );
        }
    }
    text
}

/// What rules add to a request, and what a refusal is of a forwarded one.
fn rules(results: &Results) -> String {
    let of = |metric| results.median(Leg::Mesh, metric);
    let mut text = String::new();
    if let (Some(off), Some(on)) = (of(Metric::RulesOff), of(Metric::RulesOn)) {
        let more = (on / off - 1.0) * 100.0;
        let _ = writeln!(
            text,
            "All kinds of rules cost {more:.1} % of the proxy's CPU per request."
        );
    }
    for (metric, who) in [(Metric::Limited, "limiter"), (Metric::Capped, "cap")] {
        if let (Some(refused), Some(forwarded)) = (of(metric), of(Metric::Forwarded)) {
            let share = refused / forwarded;
            let _ = writeln!(
                text,
                "A refusal by a {who} costs {share:.2} of a request that is forwarded."
            );
        }
    }
    text
}

/// More of others' work than this, in per cent of a processor, and a run is no record.
const FOREIGN_MAX: f64 = 10.0;

/// A warning when the machine did something else meanwhile.
fn noise(legs: &[Leg], results: &Results) -> String {
    let most = legs
        .iter()
        .filter_map(|leg| results.median(*leg, Metric::Foreign));
    match most.reduce(f64::max) {
        Some(most) if most > FOREIGN_MAX => format!(
            "Not a quiet machine: others used up to {most:.0} % of a processor meanwhile. The \
             figures of this run compare legs at best.\n"
        ),
        _ => String::new(),
    }
}

/// Three digits that mean something.
fn figure(value: f64) -> String {
    if value >= 100.0 {
        format!("{value:.0}")
    } else if value >= 10.0 {
        format!("{value:.1}")
    } else {
        format!("{value:.2}")
    }
}

fn ratio(mesh: Option<f64>, other: Option<f64>) -> String {
    match (mesh, other) {
        (Some(mesh), Some(other)) if other > 0.0 => format!("{:.2}x", mesh / other),
        _ => "-".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::Measured;

    #[test]
    fn table_has_every_figure_and_its_ratio() {
        let mut results = Results::default();
        results.add(Leg::Mesh, Measured::from([(Metric::ProxyPerRequest, 12.0)]));
        results.add(
            Leg::Nginx,
            Measured::from([(Metric::ProxyPerRequest, 10.0)]),
        );
        let table = Table::new(&[Leg::Direct, Leg::Mesh, Leg::Nginx], &results);
        let wanted = "|  | direct | mesh | nginx | mesh/direct | mesh/nginx |\n\
                      |---|--:|--:|--:|--:|--:|\n\
                      | CPU per request, proxy, us | - | 12.0 | 10.0 | - | 1.20x |\n";
        assert_eq!(table.markdown(), wanted);
        assert_eq!(table.text().lines().count(), 2);
    }
}
