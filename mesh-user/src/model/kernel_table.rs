//! What the kernel side must know of a snapshot: the exact desired content of its maps.
//!
//! Compiled by `policy::snapshot`, written (as a difference) by `kernel`.

use std::collections::BTreeMap;

use mesh_common::{
    addr::Addr,
    service::{Backend, ServiceEntry},
};
use serde::Serialize;

/// Desired content of `SERVICES`, `SLOTS`, `BACKENDS` and `OUT_RULES`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct KernelTable {
    /// `SERVICES`, by (address, port); TCP only.
    pub services: BTreeMap<(Addr, u16), ServiceEntry>,
    /// `SLOTS`: backend numbers in weighted, interleaved order.
    pub slots: Vec<u32>,
    /// `BACKENDS`.
    pub backends: Vec<Backend>,
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
