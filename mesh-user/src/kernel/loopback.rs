//! What mode `loopback` needs of a workload: the hooks that tell its applications the truth, and the
//! addresses that they tell. No sysctl, no rule, no route.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};

use mesh_common::{addr::Addr, pod::PodSources};

use super::{
    Kernel, KernelError,
    enrol::map_error,
    error::EnrolError,
    netns,
    workload::{self, Sources, Stood, map_addr},
};
use crate::model::Mode;

impl Kernel {
    /// Before `POD_BY_NETNS` says so: state first, capture second.
    pub(super) fn prepare_loopback(&mut self, pod_id: u32) -> Result<(), EnrolError> {
        if !self.hooks.can_loop() {
            return Err(EnrolError::NoLoopback);
        }
        self.hooks
            .loopback(&self.pins)
            .map_err(|error| match error {
                KernelError::Attach {
                    program, source, ..
                } => EnrolError::io(format!("attaching {program}"))(source),
                other => EnrolError::io("hooks of mode loopback")(std::io::Error::other(other)),
            })?;
        let Some(workload) = self.workloads.get(&pod_id) else {
            return Ok(());
        };
        let sources = sources(workload.source);
        let result = self.tables.pod_sources.insert(pod_id, sources, 0);
        result.map_err(|error| map_error("POD_SOURCES", error))
    }

    /// After its addresses changed.
    pub(super) fn follow_sources(&mut self, pod_id: u32) {
        let looped = (self.workloads.get(&pod_id))
            .is_some_and(|workload| workload.interception.mode == Mode::Loopback);
        if looped && let Err(error) = self.prepare_loopback(pod_id) {
            tracing::warn!(pod_id, %error, "getsockname tells an old address");
        }
    }

    /// Rule, route and settings, for a workload that was enrolled without and is to be marked. No
    /// self-probe: its listeners serve already.
    pub(super) fn steer_late(&mut self, pod_id: u32) -> Result<(), EnrolError> {
        let steering = self.steering();
        let unknown = || EnrolError::Unknown(pod_id);
        let workload = self.workloads.get_mut(&pod_id).ok_or_else(unknown)?;
        let netns = workload.sockets.namespace().ok_or_else(unknown)?;
        let changed = workload::steer(&netns, steering, workload.source, Stood::No)?;
        workload.sysctl_before =
            netns::merged(workload.sysctl_before.as_deref(), changed.as_deref());
        workload.steered = true;
        self.write_records();
        Ok(())
    }
}

fn sources(of: Sources) -> PodSources {
    let addr = |ip: Option<IpAddr>| ip.as_ref().map_or(Addr::UNSPECIFIED, map_addr);
    PodSources {
        v4: addr(of.v4),
        v6: addr(of.v6),
    }
}

/// Where the self-probe dials: the first listener, on the loopback of each family.
pub(super) fn probes(
    sources: Sources,
    listeners: &[TcpListener],
) -> Result<Vec<SocketAddr>, EnrolError> {
    let Some(first) = listeners.first() else {
        return Ok(Vec::new());
    };
    let port = first
        .local_addr()
        .map_err(EnrolError::io("port of a listener"))?
        .port();
    let to = |ip: IpAddr| -> IpAddr {
        if ip.is_ipv4() {
            Ipv4Addr::LOCALHOST.into()
        } else {
            Ipv6Addr::LOCALHOST.into()
        }
    };
    Ok(sources
        .each()
        .map(|ip| SocketAddr::new(to(ip), port))
        .collect())
}
