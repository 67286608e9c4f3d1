//! Where a captured connection was going, from `FLOWS`.

use std::net::SocketAddr;

use mesh_common::{
    addr::Addr,
    flow::{Flow, FlowKey, Tuple},
};

use super::{
    error::KernelError,
    pins::Pins,
    tables::{self, Hash},
};
use crate::proxy::wire::OriginLookup;

/// The flow table, for reading.
#[derive(Debug)]
pub(super) struct Flows(Hash<FlowKey, Flow>);

impl Flows {
    pub(super) fn open(pins: &Pins) -> Result<Self, KernelError> {
        tables::flows(pins).map(Self)
    }
}

impl OriginLookup for Flows {
    fn asked(&self, pod_id: u32, peer: SocketAddr, local: SocketAddr) -> Option<SocketAddr> {
        let tuple = Tuple {
            src: Addr::from_ip(peer.ip()),
            dst: Addr::from_ip(local.ip()),
            sport: peer.port(),
            dport: local.port(),
        };
        let flow = self.0.get(&FlowKey { tuple, pod_id }, 0).ok()?;
        Some(flow.asked.with_port(flow.asked_port))
    }
}
