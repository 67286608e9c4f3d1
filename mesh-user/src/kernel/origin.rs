//! Where a captured connection was going, from `FLOWS`, and whose an address of this node is.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use arc_swap::ArcSwap;
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

/// The flow table, for reading, and the addresses of enrolled workloads.
#[derive(Debug)]
pub(super) struct Flows {
    flows: Hash<FlowKey, Flow>,
    /// Swapped whole: addresses change when pods come and go, and every request may ask.
    addresses: ArcSwap<HashMap<IpAddr, Arc<str>>>,
}

impl Flows {
    pub(super) fn open(pins: &Pins) -> Result<Self, KernelError> {
        Ok(Self {
            flows: tables::flows(pins)?,
            addresses: ArcSwap::default(),
        })
    }

    /// A workload has this address from now on. One writer: the control thread.
    pub(super) fn learn(&self, address: IpAddr, key: &Arc<str>) {
        let mut addresses = HashMap::clone(&self.addresses.load());
        addresses.insert(address.to_canonical(), Arc::clone(key));
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

impl OriginLookup for Flows {
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

    fn workload_at(&self, address: IpAddr) -> Option<Arc<str>> {
        self.addresses.load().get(&address.to_canonical()).cloned()
    }
}
