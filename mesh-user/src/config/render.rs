//! How problems look to people: as rustc shows them.

use std::fmt::Write as _;

use super::{
    report::{Problem, Report, Severity},
    source::Source,
};

/// Most columns of source that are shown: what a terminal holds beside the line number.
const EXCERPT_COLUMNS: usize = 100;

const RESET: &str = "\u{1b}[0m";
const BOLD: &str = "\u{1b}[1m";
const RED: &str = "\u{1b}[1;31m";
const YELLOW: &str = "\u{1b}[1;33m";
const BLUE: &str = "\u{1b}[1;34m";

struct Paint(bool);

impl Paint {
    fn paint(&self, colour: &str, text: &str) -> String {
        if self.0 {
            format!("{colour}{text}{RESET}")
        } else {
            text.to_owned()
        }
    }
}

/// All problems, then a count.
pub(super) fn report(report: &Report, colour: bool) -> String {
    let paint = Paint(colour);
    let mut out = String::new();
    for problem in &report.problems {
        one(&mut out, problem, &report.source, &paint);
        out.push('\n');
    }
    if report.more > 0 {
        let _ = writeln!(out, "... and {} more\n", report.more);
    }
    let count = |severity| {
        report
            .problems
            .iter()
            .filter(|p| p.severity == severity)
            .count()
    };
    let kinds = [
        (Severity::Error, "error"),
        (Severity::Warning, "warning"),
        (Severity::Note, "note"),
    ];
    let parts: Vec<String> = kinds
        .into_iter()
        .map(|(severity, word)| (count(severity), word))
        .filter(|(count, _)| *count > 0)
        .map(|(count, word)| format!("{count} {word}{}", if count == 1 { "" } else { "s" }))
        .collect();
    if !parts.is_empty() {
        let _ = writeln!(out, "{}: {}", report.source.name, parts.join(", "));
    }
    out
}

fn one(out: &mut String, problem: &Problem, source: &Source, paint: &Paint) {
    let (word, colour) = match problem.severity {
        Severity::Error => ("error", RED),
        Severity::Warning => ("warning", YELLOW),
        Severity::Note => ("note", BLUE),
    };
    let head = paint.paint(colour, &format!("{word}[{}]", problem.code.name()));
    // Writing to a String can't fail.
    let _ = writeln!(out, "{head}: {}", paint.paint(BOLD, &problem.message));
    let gutter = problem.line.to_string().len();
    let pad = " ".repeat(gutter);
    let bar = paint.paint(BLUE, "|");
    let arrow = paint.paint(BLUE, "-->");
    match source.line(problem.line).filter(|_| problem.column > 0) {
        None => {
            let _ = writeln!(out, "{pad}{arrow} {}", problem.file);
        }
        Some(line) => {
            let (file, row, column) = (&problem.file, problem.line, problem.column);
            let _ = writeln!(out, "{pad}{arrow} {file}:{row}:{column}");
            let (text, lead, width) = excerpt(line, column - 1, problem.width);
            let carets = paint.paint(colour, &"^".repeat(width));
            let number = paint.paint(BLUE, &row.to_string());
            let _ = writeln!(out, "{pad} {bar}");
            let _ = writeln!(out, "{number} {bar} {text}");
            let _ = writeln!(out, "{pad} {bar} {}{carets}", " ".repeat(lead));
        }
    }
    let note = paint.paint(BLUE, "=");
    if !problem.field.is_empty() {
        let _ = writeln!(out, "{pad} {note} field: {}", problem.field);
    }
    if let Some(expected) = &problem.expected {
        let _ = writeln!(out, "{pad} {note} expected: {expected}");
    }
}

/// The part of a line around the mark, how many columns stand before the mark, and its width.
fn excerpt(line: &str, column: usize, width: usize) -> (String, usize, usize) {
    let chars: Vec<char> = line
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect();
    let (from, to) = if chars.len() <= EXCERPT_COLUMNS {
        (0, chars.len())
    } else {
        let from = column
            .saturating_sub(EXCERPT_COLUMNS / 2)
            .min(chars.len() - EXCERPT_COLUMNS);
        (from, from + EXCERPT_COLUMNS)
    };
    let mut text: String = chars.get(from..to).unwrap_or_default().iter().collect();
    let mut lead = column.saturating_sub(from);
    if from > 0 {
        text.insert_str(0, "...");
        lead += 3;
    }
    if to < chars.len() {
        text.push_str("...");
    }
    let room = (to.max(column + 1)).saturating_sub(column).max(1);
    (text, lead, width.clamp(1, room))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Without it: a line of 100,000 columns hides the mark.
    #[test]
    fn excerpt_of_a_long_line_stays_around_the_mark() {
        let line = format!("{}X{}", "a".repeat(5000), "b".repeat(5000));
        let (text, lead, width) = excerpt(&line, 5000, 1);
        assert_eq!(text.chars().nth(lead), Some('X'));
        assert_eq!(width, 1);
        assert!(text.len() <= EXCERPT_COLUMNS + 6);
        assert_eq!(excerpt("", 0, 5), (String::new(), 0, 1));
        assert_eq!(excerpt("ab", 7, 5).2, 1);
    }
}
