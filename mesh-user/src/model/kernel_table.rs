//! What the kernel side must know of a snapshot: the exact desired content of its maps.
//!
//! Compiled by `policy::snapshot`, written (as a difference) by `kernel`.

use std::{collections::BTreeMap, sync::Arc};

use mesh_common::{
    addr::Addr,
    service::{Backend, ServiceEntry},
};
use serde::Serialize;

/// Desired content of `SERVICES`, `SLOTS`, `BACKENDS`, `CAP_LIMITS` and `OUT_RULES`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct KernelTable {
    /// `SERVICES`, by (address, port); TCP only.
    pub services: BTreeMap<(Addr, u16), ServiceEntry>,
    /// `SLOTS`: backend numbers in weighted, interleaved order.
    pub slots: Vec<u32>,
    /// `BACKENDS`. `version_id` is an index in `versions`; `cap` is 0: both become numbers that
    /// outlive the table when it is written.
    pub backends: Vec<Backend>,
    /// For each of `backends` its index among its version's endpoints; `u32::MAX`: it is none.
    pub endpoints: Vec<u32>,
    /// The versions that backends belong to, in the order of the snapshot's.
    pub versions: Vec<KernelVersion>,
    /// Names for people, by `ServiceEntry::service_id`: `namespace/name:port`.
    pub names: BTreeMap<u32, ServiceName>,
    /// `OUT_RULES` for TCP: (address, prefix length over 128 bits, port or 0, action).
    pub outbound: Vec<(Addr, u8, u16, u32)>,
    /// `OUT_RULES` for datagrams, likewise.
    pub outbound_udp: Vec<(Addr, u8, u16, u32)>,
}

impl KernelTable {
    /// Whether a rule denies datagrams.
    pub fn denies_datagrams(&self) -> bool {
        let deny = mesh_common::maps::OUT_DENY;
        self.outbound_udp.iter().any(|(.., action)| *action == deny)
    }
}

/// A version of a service port, by its names: what numbers in the maps stay with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct KernelVersion {
    /// `namespace/name` of the service.
    pub service: Arc<str>,
    /// Port number.
    pub port: u16,
    /// The version's name.
    pub version: Arc<str>,
    /// Connections that the kernel may open for it at once; none: any number.
    pub cap: Option<u32>,
}

/// What a service id means, and why the service takes the path it takes.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ServiceName {
    /// `namespace/name`.
    pub service: String,
    /// Port number.
    pub port: u16,
    /// Who decides.
    pub path: Path,
    /// The rule or policy that forced it.
    pub reason: String,
}

/// Who decides for a service port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Path {
    /// Nobody: the connection is not touched.
    Pass,
    /// The connect hook.
    Kernel,
    /// The proxy.
    Proxy,
}
