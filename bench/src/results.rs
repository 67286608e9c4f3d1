//! What was measured, by leg and metric, over all rounds.

use std::collections::BTreeMap;

use crate::leg::Leg;

/// A figure, in the order of the table: the steadiest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Metric {
    ProxyPerRequest,
    PathPerRequest,
    Rps,
    OpenP50,
    OpenP99,
    ProxyPerConnection,
    PathPerConnection,
    ConnectionsPerSecond,
    ProxyPerMegabyte,
    BulkMbps,
    RssStart,
    IdleKib,
    RulesOff,
    RulesOn,
    Forwarded,
    Limited,
    Capped,
    Foreign,
}

impl Metric {
    pub(crate) const ALL: [Self; 18] = [
        Self::ProxyPerRequest,
        Self::PathPerRequest,
        Self::Rps,
        Self::OpenP50,
        Self::OpenP99,
        Self::ProxyPerConnection,
        Self::PathPerConnection,
        Self::ConnectionsPerSecond,
        Self::ProxyPerMegabyte,
        Self::BulkMbps,
        Self::RssStart,
        Self::IdleKib,
        Self::RulesOff,
        Self::RulesOn,
        Self::Forwarded,
        Self::Limited,
        Self::Capped,
        Self::Foreign,
    ];

    /// Its name and unit.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::ProxyPerRequest => "CPU per request, proxy, us",
            Self::PathPerRequest => "CPU per request, whole path, us",
            Self::Rps => "requests/s, 64 connections",
            Self::OpenP50 => "p50 at 8,000/s, us",
            Self::OpenP99 => "p99 at 8,000/s, us",
            Self::ProxyPerConnection => "CPU per connection, proxy, us",
            Self::PathPerConnection => "CPU per connection, whole path, us",
            Self::ConnectionsPerSecond => "connections/s, one request each",
            Self::ProxyPerMegabyte => "CPU per MB of body, proxy, us",
            Self::BulkMbps => "one body, MB/s",
            Self::RssStart => "RSS at start, MiB",
            Self::IdleKib => "memory per idle connection, KiB",
            Self::RulesOff => "CPU per request without rules, proxy, us",
            Self::RulesOn => "CPU per request with all kinds of rules, proxy, us",
            Self::Forwarded => "CPU per request that is forwarded, proxy, us",
            Self::Limited => "CPU per request that a limiter refuses, proxy, us",
            Self::Capped => "CPU per request that a cap refuses, proxy, us",
            Self::Foreign => "used by others meanwhile, % of a processor",
        }
    }
}

/// The figures of one leg in one round.
pub(crate) type Measured = BTreeMap<Metric, f64>;

/// The figures of all rounds.
#[derive(Debug, Default)]
pub(crate) struct Results {
    all: BTreeMap<(Leg, Metric), Vec<f64>>,
}

impl Results {
    pub(crate) fn add(&mut self, leg: Leg, measured: Measured) {
        for (metric, value) in measured {
            self.all.entry((leg, metric)).or_default().push(value);
        }
    }

    /// The median of the rounds.
    pub(crate) fn median(&self, leg: Leg, metric: Metric) -> Option<f64> {
        let mut values = self.all.get(&(leg, metric))?.clone();
        values.sort_by(f64::total_cmp);
        let middle = values.len() / 2;
        if values.len() % 2 == 1 {
            return Some(values[middle]);
        }
        Some((values.get(middle.checked_sub(1)?)? + values[middle]) / 2.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn median_is_the_middle_or_between_the_two() {
        let mut results = Results::default();
        assert_eq!(results.median(Leg::Mesh, Metric::Rps), None);
        for (value, median) in [(3.0, 3.0), (1.0, 2.0), (9.0, 3.0)] {
            results.add(Leg::Mesh, Measured::from([(Metric::Rps, value)]));
            assert_eq!(results.median(Leg::Mesh, Metric::Rps), Some(median));
        }
    }
}
