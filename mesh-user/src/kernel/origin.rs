//! Where a captured connection was going: from the socket's storage in mode `loopback`, from `FLOWS`
//! otherwise; and whose an address of this node is.
//!
//! By the descriptor, not by the tuple in `LOOP_FLOWS`: that entry goes with the application's
//! socket, which may be closed before we accept. And by the map, not by `SO_ORIGINAL_DST`: either is
//! one system call, and the map needs no hook (docs/decisions/0041).

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    os::fd::{BorrowedFd, OwnedFd},
    sync::Arc,
};

use arc_swap::ArcSwap;
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

/// The tables, for reading, and the addresses of workloads that are enrolled, adopted or held.
pub(super) struct Origins {
    flows: Hash<FlowKey, Flow>,
    /// `ORIGIN`.
    sockets: OwnedFd,
    /// Swapped whole: addresses change when pods come and go, and every request may ask.
    addresses: ArcSwap<HashMap<IpAddr, Arc<str>>>,
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
            addresses: ArcSwap::default(),
        })
    }

    /// A workload has this address from now on. One writer: the control thread.
    pub(super) fn learn(&self, address: IpAddr, key: &Arc<str>) {
        self.learn_all([(address, Arc::clone(key))]);
    }

    /// The same of many: the table is copied once.
    pub(super) fn learn_all(&self, found: impl IntoIterator<Item = (IpAddr, Arc<str>)>) {
        let mut addresses = HashMap::clone(&self.addresses.load());
        for (address, key) in found {
            addresses.insert(address.to_canonical(), key);
        }
        self.addresses.store(Arc::new(addresses));
    }

    /// Nobody has these addresses any more.
    pub(super) fn forget<'a>(&self, gone: impl IntoIterator<Item = &'a IpAddr>) {
        let mut addresses = HashMap::clone(&self.addresses.load());
        for address in gone {
            addresses.remove(&address.to_canonical());
        }
        self.addresses.store(Arc::new(addresses));
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

    fn workload_at(&self, address: IpAddr) -> Option<Arc<str>> {
        self.addresses.load().get(&address.to_canonical()).cloned()
    }
}
