//! Where a captured connection was going: from the socket's storage in mode `loopback`, from `FLOWS`
//! otherwise.
//!
//! By the descriptor, not by the tuple in `LOOP_FLOWS`: that entry goes with the application's
//! socket, which may be closed before we accept. And by the map, not by `SO_ORIGINAL_DST`: either is
//! one system call, and the map needs no hook (docs/decisions/0041).

use std::{
    net::SocketAddr,
    os::fd::{BorrowedFd, OwnedFd},
};

use mesh_common::{
    addr::Addr,
    flow::{Flow, FlowKey, LoopFlow, Tuple},
};

use super::{
    error::KernelError,
    pins::Pins,
    sys,
    tables::{self, Hash},
};
use crate::proxy::wire::OriginLookup;

/// The tables, for reading.
pub(super) struct Origins {
    flows: Hash<FlowKey, Flow>,
    /// `ORIGIN`.
    sockets: OwnedFd,
}

impl std::fmt::Debug for Origins {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Origins").finish_non_exhaustive()
    }
}

impl Origins {
    pub(super) fn open(pins: &Pins) -> Result<Self, KernelError> {
        let path = pins.map("ORIGIN");
        let sockets = sys::open_pin(&path);
        Ok(Self {
            flows: tables::flows(pins)?,
            sockets: sockets.map_err(KernelError::io(format!("{}", path.display())))?,
        })
    }
}

impl OriginLookup for Origins {
    fn asked(&self, pod_id: u32, peer: SocketAddr, local: SocketAddr) -> Option<SocketAddr> {
        let tuple = Tuple {
            src: Addr::from_ip(peer.ip()),
            dst: Addr::from_ip(local.ip()),
            sport: peer.port(),
            dport: local.port(),
        };
        let flow = self.flows.get(&FlowKey { tuple, pod_id }, 0).ok()?;
        Some(flow.asked.with_port(flow.asked_port))
    }

    fn sent_to_loopback(&self, socket: BorrowedFd<'_>) -> Option<SocketAddr> {
        let origin: LoopFlow = sys::storage_lookup(&self.sockets, socket).ok()??;
        Some(origin.asked.with_port(origin.asked_port))
    }
}
