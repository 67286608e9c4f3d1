//! What a load saw, and how it is told.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    time::{Duration, Instant},
};

use hdrhistogram::Histogram;
use serde::Serialize;

use super::client::{Answer, Failure};

/// Different versions that are counted by name; the rest are «other».
const VERSIONS_MAX: usize = 32;
/// Longest latency that is told apart: longer than any run waits.
const LATENCY_NS_MAX: u64 = 3_600_000_000_000;

/// What was seen since the start, or since the last interim report.
#[derive(Debug)]
pub(super) struct Seen {
    since: Instant,
    statuses: BTreeMap<u16, u64>,
    versions: Vec<(Vec<u8>, u64)>,
    errors: BTreeMap<Failure, u64>,
    latency: Histogram<u64>,
    opened: u64,
    bytes: u64,
}

impl Seen {
    pub(super) fn new(since: Instant) -> Self {
        let latency = Histogram::new_with_bounds(1, LATENCY_NS_MAX, 3);
        Self {
            since,
            statuses: BTreeMap::new(),
            versions: Vec::new(),
            errors: BTreeMap::new(),
            latency: latency.expect("1 < max, and 3 digits are allowed"),
            opened: 0,
            bytes: 0,
        }
    }

    pub(super) fn opened(&mut self) {
        self.opened += 1;
    }

    pub(super) fn answer(&mut self, answer: &Answer, took: Duration) {
        *self.statuses.entry(answer.status).or_default() += 1;
        self.bytes += answer.bytes;
        if let Some(version) = &answer.version {
            self.version(version);
        }
        let took = u64::try_from(took.as_nanos()).unwrap_or(LATENCY_NS_MAX);
        self.latency.saturating_record(took.max(1));
    }

    fn version(&mut self, version: &[u8]) {
        if let Some((_, count)) = self.versions.iter_mut().find(|(name, _)| name == version) {
            *count += 1;
        } else if self.versions.len() < VERSIONS_MAX {
            self.versions.push((version.to_vec(), 1));
        } else {
            self.version(b"other");
        }
    }

    pub(super) fn failure(&mut self, failure: Failure) {
        *self.errors.entry(failure).or_default() += 1;
    }

    /// Adds what a part of the run saw.
    pub(super) fn add(&mut self, part: &Self) {
        for (status, count) in &part.statuses {
            *self.statuses.entry(*status).or_default() += count;
        }
        for (name, count) in &part.versions {
            match self.versions.iter_mut().find(|(own, _)| own == name) {
                Some((_, own)) => *own += count,
                None => self.versions.push((name.clone(), *count)),
            }
        }
        for (failure, count) in &part.errors {
            *self.errors.entry(*failure).or_default() += count;
        }
        self.latency
            .add(&part.latency)
            .expect("the bounds are the same");
        self.opened += part.opened;
        self.bytes += part.bytes;
    }

    pub(super) fn report(&self, until: Instant) -> Report {
        let seconds = until.saturating_duration_since(self.since).as_secs_f64();
        let answered = self.latency.len();
        #[expect(
            clippy::cast_precision_loss,
            reason = "a count of requests is far below 2^53"
        )]
        let per_second = |count: u64| {
            if seconds > 0.0 {
                count as f64 / seconds
            } else {
                0.0
            }
        };
        #[expect(
            clippy::cast_precision_loss,
            reason = "an hour in ns is far below 2^53"
        )]
        let us = |quantile: f64| self.latency.value_at_quantile(quantile) as f64 / 1000.0;
        let name = |name: &[u8]| String::from_utf8_lossy(name).into_owned();
        Report {
            requests: answered,
            seconds,
            rps: per_second(answered),
            statuses: self.statuses.clone(),
            versions: self
                .versions
                .iter()
                .map(|(n, count)| (name(n), *count))
                .collect(),
            errors: self
                .errors
                .iter()
                .map(|(f, count)| (f.name().to_owned(), *count))
                .collect(),
            latency_us: Latency {
                p50: us(0.5),
                p90: us(0.9),
                p99: us(0.99),
                p999: us(0.999),
                max: us(1.0),
            },
            connections_opened: self.opened,
            bytes: self.bytes,
            bytes_per_second: per_second(self.bytes),
        }
    }
}

/// The outcome of a load, as `--json` prints it.
#[derive(Clone, Debug, Serialize, serde::Deserialize)]
pub struct Report {
    /// Answers, whatever their status; with `--tcp`, bytes that came back.
    pub requests: u64,
    /// How long it asked, and waited for the last answers.
    pub seconds: f64,
    /// Answers per second.
    pub rps: f64,
    /// Answers by status; with `--tcp`, all are counted as 0.
    pub statuses: BTreeMap<u16, u64>,
    /// Answers by the echo servers' version.
    pub versions: BTreeMap<String, u64>,
    /// Requests without an answer, by reason.
    pub errors: BTreeMap<String, u64>,
    /// From the start of a request (open loop: from when it should have started) to the end of its
    /// answer; with a new connection, its opening included.
    pub latency_us: Latency,
    /// Connections that were made.
    pub connections_opened: u64,
    /// Bytes of all answers.
    pub bytes: u64,
    /// Bytes of answers per second.
    pub bytes_per_second: f64,
}

/// Quantiles, in microseconds.
#[derive(Clone, Copy, Debug, Serialize, serde::Deserialize)]
pub struct Latency {
    /// Median.
    pub p50: f64,
    /// 90 %.
    pub p90: f64,
    /// 99 %.
    pub p99: f64,
    /// 99.9 %.
    pub p999: f64,
    /// The longest.
    pub max: f64,
}

impl Report {
    /// How many requests were answered.
    pub fn answered(&self) -> u64 {
        self.requests
    }

    /// How many were not.
    pub fn unanswered(&self) -> u64 {
        self.errors.values().sum()
    }

    /// One line of JSON.
    pub fn json(&self) -> String {
        serde_json::to_string(self).expect("numbers and strings are valid JSON")
    }

    /// For people.
    pub fn text(&self) -> String {
        let mut text = String::new();
        let list = |map: Vec<String>| {
            if map.is_empty() {
                "none".into()
            } else {
                map.join(", ")
            }
        };
        let statuses = self
            .statuses
            .iter()
            .map(|(s, n)| format!("{s}: {n}"))
            .collect();
        let versions = self
            .versions
            .iter()
            .map(|(v, n)| format!("{v}: {n}"))
            .collect();
        let _ = writeln!(
            text,
            "requests     {} in {:.2} s, {:.0}/s, {:.1} MB/s",
            self.requests,
            self.seconds,
            self.rps,
            self.bytes_per_second / 1e6
        );
        let _ = writeln!(text, "statuses     {}", list(statuses));
        let _ = writeln!(text, "versions     {}", list(versions));
        let _ = writeln!(text, "errors       {}", self.error_text());
        let _ = writeln!(text, "connections  {} opened", self.connections_opened);
        let Latency {
            p50,
            p90,
            p99,
            p999,
            max,
        } = self.latency_us;
        let _ = writeln!(
            text,
            "latency us   p50 {p50:.0}  p90 {p90:.0}  p99 {p99:.0}  p99.9 {p999:.0}  max {max:.0}"
        );
        text
    }

    /// The errors, for people.
    pub(super) fn error_text(&self) -> String {
        let errors: Vec<_> = self
            .errors
            .iter()
            .map(|(e, n)| format!("{e}: {n}"))
            .collect();
        if errors.is_empty() {
            "none".into()
        } else {
            errors.join(", ")
        }
    }
}
