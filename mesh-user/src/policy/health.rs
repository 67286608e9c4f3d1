//! Active health checks: what a result means. Who asks is `proxy::health`.
//!
//! - The first result decides at once, for better or worse; until then an endpoint counts as
//!   healthy, so that a restart of the agent takes nobody out.
//! - A failed answer (a status that is not expected, a gRPC status other than SERVING) makes an
//!   endpoint sick at once, unless it is listed as retriable; no answer only after as many failures
//!   in a row as `unhealthy-threshold` says.
//! - It takes `healthy-threshold` successes in a row to come back.

use std::{
    fmt,
    sync::atomic::{AtomicU32, Ordering::Relaxed},
};

use crate::model::HealthCheck;

/// How one check ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CheckResult {
    /// Well.
    Ok,
    /// An HTTP status that is not expected.
    Status(u16),
    /// The same, but one that the policy calls retriable.
    Retriable(u16),
    /// A gRPC health status other than SERVING (1).
    NotServing(u8),
    /// A gRPC status other than OK: the service is unknown, or has no health checks.
    GrpcStatus(u8),
    /// No connection.
    ConnectFailed,
    /// The connection broke, or what came could not be understood.
    Broken,
    /// Not what was expected came within the time-out.
    Timeout,
}

impl CheckResult {
    /// Whether it decides at once.
    const fn is_final(self) -> bool {
        matches!(
            self,
            Self::Status(_) | Self::NotServing(_) | Self::GrpcStatus(_)
        )
    }

    /// The label of `mesh_health_checks_total`.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Status(_) | Self::Retriable(_) => "status",
            Self::NotServing(_) => "not_serving",
            Self::GrpcStatus(_) => "grpc_status",
            Self::ConnectFailed => "connect_failed",
            Self::Broken => "broken",
            Self::Timeout => "timeout",
        }
    }

    const fn encode(self) -> u32 {
        let (kind, detail) = match self {
            Self::Ok => (0, 0),
            Self::Status(status) => (1, status),
            Self::Retriable(status) => (2, status),
            Self::NotServing(status) => (3, status as u16),
            Self::GrpcStatus(status) => (4, status as u16),
            Self::ConnectFailed => (5, 0),
            Self::Broken => (6, 0),
            Self::Timeout => (7, 0),
        };
        kind << 16 | detail as u32
    }

    const fn decode(word: u32) -> Self {
        let detail = word as u16;
        match word >> 16 & 0xff {
            0 => Self::Ok,
            1 => Self::Status(detail),
            2 => Self::Retriable(detail),
            3 => Self::NotServing(detail as u8),
            4 => Self::GrpcStatus(detail as u8),
            5 => Self::ConnectFailed,
            6 => Self::Broken,
            _ => Self::Timeout,
        }
    }
}

impl fmt::Display for CheckResult {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ok => f.write_str("ok"),
            Self::Status(status) | Self::Retriable(status) => write!(f, "status {status}"),
            Self::NotServing(status) => {
                let name = match status {
                    0 => "UNKNOWN",
                    2 => "NOT_SERVING",
                    3 => "SERVICE_UNKNOWN",
                    other => return write!(f, "health {other}"),
                };
                f.write_str(name)
            }
            Self::GrpcStatus(status) => write!(f, "gRPC status {status}"),
            Self::ConnectFailed => f.write_str("no connection"),
            Self::Broken => f.write_str("broken answer"),
            Self::Timeout => f.write_str("timeout"),
        }
    }
}

/// What the checks of an endpoint found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Whether it gets no requests for that.
    pub sick: bool,
    /// The last result; of a sick endpoint the last one of a check that it doesn't pass.
    pub last: CheckResult,
}

impl Finding {
    /// Whether it gets no requests for that.
    pub const fn is_sick(self) -> bool {
        self.sick
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.last.fmt(f)
    }
}

/// A finding in one word; 0: there is none.
#[derive(Debug, Default)]
pub(super) struct Checked(AtomicU32);

const CHECKED: u32 = 1 << 31;
const SICK: u32 = 1 << 30;

impl Checked {
    pub(super) fn is_sick(&self) -> bool {
        self.0.load(Relaxed) & SICK != 0
    }

    pub(super) fn get(&self) -> Option<Finding> {
        let word = self.0.load(Relaxed);
        (word & CHECKED != 0).then(|| Finding {
            sick: word & SICK != 0,
            last: CheckResult::decode(word),
        })
    }

    /// Whether it was sick before.
    pub(super) fn set(&self, finding: Option<Finding>) -> bool {
        let word = finding.map_or(0, |finding| {
            CHECKED | if finding.sick { SICK } else { 0 } | finding.last.encode()
        });
        self.0.swap(word, Relaxed) & SICK != 0
    }
}

/// One check of one endpoint: what the results so far mean.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    /// None: no result yet.
    sick: Option<bool>,
    /// Results in a row that speak against the verdict.
    against: u32,
}

impl Verdict {
    /// Whether the check says that the endpoint is sick.
    pub fn is_sick(self) -> bool {
        self.sick == Some(true)
    }

    /// Takes a result in.
    pub fn note(&mut self, result: CheckResult, check: &HealthCheck) {
        let failed = result != CheckResult::Ok;
        let Some(sick) = self.sick else {
            (self.sick, self.against) = (Some(failed), 0);
            return;
        };
        if failed == sick {
            self.against = 0;
            return;
        }
        self.against += 1;
        let enough = if failed {
            result.is_final() || self.against >= check.unhealthy_threshold
        } else {
            self.against >= check.healthy_threshold
        };
        if enough {
            (self.sick, self.against) = (Some(failed), 0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{CheckResult::*, *};

    fn check(down: u32, up: u32) -> HealthCheck {
        HealthCheck {
            unhealthy_threshold: down,
            healthy_threshold: up,
            ..HealthCheck::default()
        }
    }

    fn after(results: &[CheckResult], check: &HealthCheck) -> Vec<bool> {
        let mut verdict = Verdict::default();
        let each = results.iter().map(|result| {
            verdict.note(*result, check);
            verdict.is_sick()
        });
        each.collect()
    }

    #[test]
    fn first_result_decides_at_once() {
        let check = check(3, 3);
        assert!(!Verdict::default().is_sick());
        assert_eq!(after(&[Ok], &check), [false]);
        assert_eq!(after(&[Timeout], &check), [true]);
    }

    #[test]
    fn no_answer_is_sick_after_the_threshold_in_a_row() {
        let check = check(3, 1);
        let results = [Ok, Timeout, ConnectFailed, Ok, Broken, Timeout, Timeout, Ok];
        let sick = [false, false, false, false, false, false, true, false];
        assert_eq!(after(&results, &check), sick);
    }

    #[test]
    fn failed_answer_is_sick_at_once_unless_retriable() {
        let check = check(2, 1);
        for result in [Status(503), NotServing(2), GrpcStatus(12)] {
            assert_eq!(after(&[Ok, result], &check), [false, true], "{result}");
        }
        let retriable = [Ok, Retriable(503), Retriable(503)];
        assert_eq!(after(&retriable, &check), [false, false, true]);
    }

    #[test]
    fn healthy_again_takes_its_own_threshold_in_a_row() {
        let check = check(1, 3);
        let results = [Timeout, Ok, Ok, Timeout, Ok, Ok, Ok];
        let sick = [true, true, true, true, true, true, false];
        assert_eq!(after(&results, &check), sick);
    }

    #[test]
    fn finding_in_a_word_reads_back_as_itself() {
        let word = Checked::default();
        assert_eq!(word.get(), None);
        for last in [
            Ok,
            Status(599),
            Retriable(0),
            NotServing(3),
            GrpcStatus(16),
            ConnectFailed,
            Broken,
            Timeout,
        ] {
            for sick in [false, true] {
                let finding = Finding { sick, last };
                word.set(Some(finding));
                assert_eq!(word.get(), Some(finding));
                assert_eq!(word.is_sick(), sick);
            }
        }
        assert!(word.set(None));
        assert_eq!(word.get(), None);
    }
}
