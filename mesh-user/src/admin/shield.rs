//! The shield over the admin socket: one question, one answer.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::model::shield::Net;

/// What can be asked. The body of `POST /shield`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum ShieldAsk {
    /// Interfaces, lists, counters.
    Status,
    /// Rules with their counters.
    Rules,
    /// Sources with the most SYNs dropped.
    Sources {
        /// Most rows.
        limit: usize,
    },
    /// What happens to an address, and why.
    Check {
        /// The address.
        address: IpAddr,
    },
    /// Adds an operator's entry.
    Add {
        /// The range.
        cidr: Net,
        /// Whether it is allowed; else it is denied.
        allow: bool,
        /// After so many seconds it ends; none: it does not by itself.
        for_s: Option<u64>,
    },
    /// Removes an operator's entry.
    Remove {
        /// The range.
        cidr: Net,
        /// Whether it is allowed.
        allow: bool,
    },
}
