//! What `/status` says and `mesh status` prints.

use std::time::SystemTime;

use serde::{Deserialize, Serialize};

/// How the agent is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// Name of the instance.
    pub instance: String,
    /// Version of the binary.
    pub version: String,
    /// Process id.
    pub pid: u32,
    /// When it started.
    #[serde(with = "rfc3339")]
    pub started: SystemTime,
    /// What must hold for the agent to be ready, in the order in which it comes true. Ready: all.
    pub conditions: Vec<Condition>,
    /// Generation of the snapshot in force; 0 before the first.
    pub generation: u64,
    /// The configuration file.
    pub config: ConfigStatus,
    /// Workloads of the model, by key.
    pub workloads: Vec<WorkloadStatus>,
    /// Worker threads.
    pub workers: usize,
    /// Whether the agent is stopping.
    pub drain: Drain,
    /// Whether capture is on (`mesh redirect on|off`).
    pub redirect: bool,
    /// Settings that were changed in the file but need a restart, by path (`agent.workers`).
    pub restart_needed: Vec<String>,
}

impl Status {
    /// Whether the agent is ready: every condition holds and it isn't stopping.
    pub fn ready(&self) -> bool {
        self.drain == Drain::No && self.conditions.iter().all(|condition| condition.ok)
    }
}

/// One condition of readiness: `programs`, `model`, ...
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Condition {
    /// Its name: one word.
    pub name: String,
    /// Whether it holds.
    pub ok: bool,
    /// What was found, or what is missing.
    pub detail: String,
}

/// The configuration file and how its last reload went.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ConfigStatus {
    /// The watched file, absolute.
    pub path: String,
    /// When it was last taken over.
    #[serde(with = "rfc3339::option")]
    pub last_success: Option<SystemTime>,
    /// Why the newest content is not in force; none when it is.
    pub last_error: Option<LastError>,
}

/// Why a reload was refused.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LastError {
    /// When.
    #[serde(with = "rfc3339")]
    pub at: SystemTime,
    /// The rendered problems.
    pub message: String,
}

/// A workload of the model.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkloadStatus {
    /// `namespace/name`.
    pub key: String,
    /// Its number in the kernel's maps; none when it isn't enrolled.
    pub pod_id: Option<u32>,
    /// Where it stands.
    pub state: WorkloadState,
    /// Why it isn't live.
    pub error: Option<String>,
}

/// Where a workload stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum WorkloadState {
    /// Not enrolled yet.
    Pending,
    /// Captured.
    Live,
    /// Its namespace went away.
    Gone,
    /// It could not be enrolled; tried again.
    Failed,
}

impl WorkloadState {
    /// Every state.
    pub const ALL: &'static [Self] = &[Self::Pending, Self::Live, Self::Gone, Self::Failed];

    /// Its name in `mesh_workloads{state}` and in tables.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Live => "live",
            Self::Gone => "gone",
            Self::Failed => "failed",
        }
    }
}

/// Whether the agent is stopping.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Drain {
    /// It serves.
    #[default]
    No,
    /// It takes no new connection and waits for requests in flight.
    Draining,
}

/// Points in time as RFC 3339 text, to the millisecond.
mod rfc3339 {
    use std::time::SystemTime;

    use jiff::{Timestamp, Unit};
    use serde::{Deserialize, Deserializer, Serializer, de, ser};

    pub(super) fn serialize<S: Serializer>(time: &SystemTime, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&text(*time).map_err(ser::Error::custom)?)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<SystemTime, D::Error> {
        parse(&String::deserialize(from)?).map_err(de::Error::custom)
    }

    fn text(time: SystemTime) -> Result<String, jiff::Error> {
        Ok(Timestamp::try_from(time)?
            .round(Unit::Millisecond)?
            .to_string())
    }

    fn parse(text: &str) -> Result<SystemTime, jiff::Error> {
        SystemTime::try_from(text.parse::<Timestamp>()?)
    }

    /// The same, where there may be none.
    pub(super) mod option {
        use serde::{Deserialize, Deserializer, Serializer, de, ser};

        use super::{SystemTime, parse, text};

        pub(in super::super) fn serialize<S: Serializer>(
            time: &Option<SystemTime>,
            to: S,
        ) -> Result<S::Ok, S::Error> {
            match time {
                Some(time) => to.serialize_some(&text(*time).map_err(ser::Error::custom)?),
                None => to.serialize_none(),
            }
        }

        pub(in super::super) fn deserialize<'de, D: Deserializer<'de>>(
            from: D,
        ) -> Result<Option<SystemTime>, D::Error> {
            Option::<String>::deserialize(from)?
                .map(|text| parse(&text).map_err(de::Error::custom))
                .transpose()
        }
    }
}
