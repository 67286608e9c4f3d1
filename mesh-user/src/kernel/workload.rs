//! Enrols one workload: everything that happens in its namespace.

use std::{
    collections::BTreeSet,
    fs,
    io::{self, ErrorKind},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener},
    os::fd::{AsFd, OwnedFd},
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use mesh_common::{addr::Addr, listener::ListenerKey};

use super::{
    Enrol,
    error::EnrolError,
    netns::{self, Identity},
    records::Record,
    route::{Netlink, Steering},
    sockets::{self, PodSockets},
    sys::{self, AttachType, LinkTarget},
};
use crate::model::{Interception, Netns, inbound::InboundPorts};

/// How long the self-probe waits: a connection over `lo` arrives within microseconds.
const PROBE_LIMIT: Duration = Duration::from_secs(2);
/// Other connections than the probe's that an error names.
const STRANGERS_TOLD: usize = 4;
/// Documentation addresses (RFC 5737, RFC 3849): nobody has them.
pub(super) const PROBE_V4: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));
pub(super) const PROBE_V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1));
/// The discard port.
pub(super) const PROBE_PORT: u16 = 9;

/// An enrolled workload.
#[derive(Debug)]
pub(super) struct Workload {
    pub(super) key: Arc<str>,
    pub(super) identity: Identity,
    pub(super) interception: Interception,
    /// What stands in `IN_RULES` and, as the default, in `POD_BY_ADDR`.
    pub(super) inbound: InboundPorts,
    pub(super) sockets: Arc<PodSockets>,
    pub(super) addresses: BTreeSet<IpAddr>,
    pub(super) source: Sources,
    pub(super) sysctl_before: Option<String>,
    /// Rule, route and settings for marked connections stand in the namespace.
    pub(super) steered: bool,
    pub(super) live: bool,
    /// The path from a marked connection to a listener has been seen to work.
    pub(super) probed: bool,
    /// The audit could not repair its path, or its guard where it must not do without.
    pub(super) broken: bool,
}

/// The source address of captured connections, by family.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Sources {
    pub(super) v4: Option<IpAddr>,
    pub(super) v6: Option<IpAddr>,
}

impl Sources {
    /// The first address of each family: what the kernel itself would choose.
    pub(super) fn of(addresses: &[IpAddr]) -> Self {
        Self {
            v4: addresses.iter().find(|ip| ip.is_ipv4()).copied(),
            v6: addresses.iter().find(|ip| ip.is_ipv6()).copied(),
        }
    }

    pub(super) fn each(self) -> impl Iterator<Item = IpAddr> {
        self.v4.into_iter().chain(self.v6)
    }
}

impl Workload {
    /// What it was enrolled with.
    pub(super) fn wanted(&self) -> Enrol {
        Enrol {
            key: Arc::clone(&self.key),
            netns: Netns::Path(self.identity.path.clone()),
            interception: self.interception,
            inbound: self.inbound.clone(),
        }
    }

    pub(super) fn record(&self, pod_id: u32) -> Record {
        Record {
            pod_id,
            key: self.key.to_string(),
            netns: self.identity.path.clone(),
            inode: self.identity.inode,
            cookie: self.identity.cookie,
            sysctl_before: self.sysctl_before.clone(),
            held: false,
        }
    }
}

/// What was set up in the namespace.
pub(super) struct Prepared {
    pub(super) addresses: Vec<IpAddr>,
    pub(super) sysctl_before: Option<String>,
    pub(super) listeners: Vec<TcpListener>,
    /// For connections that come in.
    pub(super) inbound: Vec<TcpListener>,
}

/// Whether rule and route stood in a namespace before an attempt to put them there. Those that did
/// stay when it fails: somebody's connections need them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stood {
    No,
    Yes,
}

/// Addresses and listeners; where connections are `marked`, sysctl, rule and routes: inert until
/// something is. Leaves nothing of its own on an error.
pub(super) fn prepare(
    netns: &OwnedFd,
    identity: &Identity,
    steering: Steering,
    (marked, stood): (bool, Stood),
    agent_mark: u32,
    shards: u16,
) -> Result<Prepared, EnrolError> {
    let place = identity.path.display().to_string();
    let entered = sockets::inside(netns, || {
        let mut netlink = Netlink::open().map_err(EnrolError::io("netlink"))?;
        let addresses = netlink
            .addresses()
            .map_err(EnrolError::io("reading addresses"))?;
        if addresses.is_empty() {
            return Err(EnrolError::NoAddress(place.clone()));
        }
        let sysctl_before = if marked {
            steer_here(&mut netlink, steering, Sources::of(&addresses), stood)?
        } else {
            None
        };
        let listen = || listen(agent_mark, shards);
        match listen().and_then(|out| Ok((out, listen()?))) {
            Ok((listeners, inbound)) => Ok(Prepared {
                addresses,
                sysctl_before,
                listeners,
                inbound,
            }),
            Err(error) => {
                if marked {
                    step_back(&mut netlink, steering, sysctl_before.as_deref(), stood);
                }
                Err(error)
            }
        }
    });
    entered.map_err(EnrolError::io(format!("entering {place}")))?
}

/// Sysctl, rule and routes, in the calling thread's namespace; what the sysctls were. Leaves nothing
/// of its own on an error.
fn steer_here(
    netlink: &mut Netlink,
    steering: Steering,
    sources: Sources,
    stood: Stood,
) -> Result<Option<String>, EnrolError> {
    let before = netns::set_sysctls().map_err(EnrolError::io("net.ipv4.tcp_*"))?;
    match netlink.steer(steering, sources) {
        Ok(()) => Ok(before),
        Err(error) => {
            step_back(netlink, steering, before.as_deref(), stood);
            Err(EnrolError::io("rule and route")(error))
        }
    }
}

/// After an attempt that failed, in the calling thread's namespace.
fn step_back(netlink: &mut Netlink, steering: Steering, changed: Option<&str>, stood: Stood) {
    match (stood, changed) {
        (Stood::No, _) => {
            undo_here(netlink, steering, changed);
        }
        (Stood::Yes, Some(changed)) => {
            if let Err(error) = netns::restore_sysctls(changed) {
                tracing::warn!(%error, changed, "settings are left in a namespace");
            }
        }
        (Stood::Yes, None) => {}
    }
}

/// What [`prepare`] does for marked connections, for a workload that was enrolled without.
pub(super) fn steer(
    netns: impl AsFd,
    steering: Steering,
    sources: Sources,
    stood: Stood,
) -> Result<Option<String>, EnrolError> {
    let entered = sockets::inside(netns, || {
        let mut netlink = Netlink::open().map_err(EnrolError::io("netlink"))?;
        steer_here(&mut netlink, steering, sources, stood)
    });
    entered.map_err(EnrolError::io("entering the namespace"))?
}

fn listen(agent_mark: u32, shards: u16) -> Result<Vec<TcpListener>, EnrolError> {
    (0..shards)
        .map(|_| sockets::listen(agent_mark).map_err(EnrolError::io("listening")))
        .collect()
}

/// Takes routes and sysctl back, in the calling thread's namespace; best effort, what was removed.
pub(super) fn undo_here(
    netlink: &mut Netlink,
    steering: Steering,
    sysctl_before: Option<&str>,
) -> (Vec<String>, Vec<String>) {
    let (mut removed, mut failed) = (Vec::new(), Vec::new());
    for v6 in [false, true] {
        match netlink.unsteer(steering, v6) {
            Ok(done) => removed.extend(done),
            Err(error) => failed.push(format!("rule and route: {error}")),
        }
    }
    if let Some(before) = sysctl_before {
        match netns::restore_sysctls(before) {
            Ok(()) => removed.push(format!("sysctls restored: {before}")),
            Err(error) => failed.push(format!("sysctls {before}: {error}")),
        }
    }
    (removed, failed)
}

/// Like [`undo_here`], entering the namespace.
pub(super) fn undo(
    netns: impl AsFd,
    steering: Steering,
    sysctl_before: Option<&str>,
) -> io::Result<(Vec<String>, Vec<String>)> {
    sockets::inside(netns, || {
        Netlink::open().map(|mut netlink| undo_here(&mut netlink, steering, sysctl_before))
    })?
}

/// Attaches `steer`, or puts it in the place of the one that a pinned link holds.
pub(super) fn attach_steer(
    steer: &OwnedFd,
    netns: &OwnedFd,
    inode: u64,
    pin: &Path,
) -> Result<(), EnrolError> {
    let at = || EnrolError::io(format!("steer at {}", pin.display()));
    if let Ok(link) = sys::open_pin(pin) {
        let info = sys::link_info(&link).map_err(at())?;
        // A link's namespace inode is 32 bits in the kernel's description.
        if info.target == LinkTarget::Netns(inode as u32) {
            return sys::link_update(&link, steer).map_err(at());
        }
    }
    match fs::remove_file(pin) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(at()(error)),
        _ => {}
    }
    let link = sys::link_create(steer, netns, AttachType::SkLookup).map_err(at())?;
    sys::pin(&link, pin).map_err(at())
}

/// Where the self-probe dials: an address of each family that nobody has.
pub(super) fn probes(sources: Sources) -> Vec<SocketAddr> {
    let to = |source: IpAddr| if source.is_ipv4() { PROBE_V4 } else { PROBE_V6 };
    let probe = |source| SocketAddr::new(to(source), PROBE_PORT);
    sources.each().map(probe).collect()
}

/// A connection with this mark from inside the namespace must arrive at one of the listeners with
/// its true addresses, for each of `probes`: the whole path, before any application is put on it.
///
/// A workload that was held until now (its failure mode is in force, captured from its first
/// listener on) may connect in the meantime: such a connection is closed, as it was refused before.
pub(super) fn self_probe(
    netns: &OwnedFd,
    listeners: &[TcpListener],
    probes: &[SocketAddr],
    mark: u32,
) -> Result<(), EnrolError> {
    for towards in probes.iter().copied() {
        let failed = |why: String| EnrolError::ProbeFailed { towards, why };
        let socket = sockets::inside(netns, || sockets::connecting(towards, mark))
            .and_then(|made| made)
            .map_err(|error| failed(format!("connect: {error}")))?;
        let own = socket.local_addr().ok().and_then(|addr| addr.as_socket());
        let own = own.ok_or_else(|| failed("no local address".to_owned()))?;
        let end = Instant::now() + PROBE_LIMIT;
        let mut strangers = Vec::new();
        loop {
            let (peer, local) = accept_one(listeners, end)
                .map_err(|error| failed(format!("accept: {error}")))?
                .ok_or_else(|| failed(did_not_arrive(own, &strangers)))?;
            if local == towards && peer == own {
                break;
            }
            strangers.truncate(STRANGERS_TOLD - 1);
            strangers.push(format!("{peer} -> {local}"));
        }
    }
    Ok(())
}

fn did_not_arrive(own: SocketAddr, strangers: &[String]) -> String {
    if strangers.is_empty() {
        "it did not arrive".to_owned()
    } else {
        let others = strangers.join(", ");
        format!("expected it from {own}, arrived: {others}")
    }
}

/// Takes one connection from any of the listeners: peer and local address, of their own family.
fn accept_one(
    listeners: &[TcpListener],
    end: Instant,
) -> io::Result<Option<(SocketAddr, SocketAddr)>> {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    loop {
        let left = end.saturating_duration_since(Instant::now());
        let mut fds: Vec<PollFd<'_>> = listeners
            .iter()
            .map(|l| PollFd::new(l.as_fd(), PollFlags::POLLIN))
            .collect();
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        if poll(&mut fds, timeout)? == 0 {
            return Ok(None);
        }
        for listener in listeners {
            match listener.accept() {
                Ok((stream, peer)) => {
                    return Ok(Some((canonical(peer), canonical(stream.local_addr()?))));
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
    }
}

/// Refuses a listener that is not inside the namespace.
pub(super) fn check_listener(listener: impl AsFd, identity: &Identity) -> Result<(), EnrolError> {
    let cookie = match sockets::netns_cookie(listener) {
        Ok(cookie) => cookie,
        // Before Linux 5.14 a socket doesn't say: the self-probe finds such a listener out.
        Err(error) if error.raw_os_error() == Some(libc::ENOPROTOOPT) => return Ok(()),
        Err(error) => return Err(EnrolError::io("namespace of a listener")(error)),
    };
    if cookie == identity.cookie {
        Ok(())
    } else {
        Err(EnrolError::ForeignListener(
            identity.path.display().to_string(),
        ))
    }
}

/// A dual-stack socket shows IPv4 as v4-mapped.
pub(super) fn canonical(addr: SocketAddr) -> SocketAddr {
    SocketAddr::new(addr.ip().to_canonical(), addr.port())
}

pub(super) fn listener_key(pod_id: u32, kind: u16, shard: u16) -> ListenerKey {
    ListenerKey {
        pod_id,
        kind,
        shard,
    }
}

pub(super) fn map_addr(ip: &IpAddr) -> Addr {
    Addr::from_ip(*ip)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Pitfall 2. Without it: a listener of another namespace is given the workload's connections,
    /// and each of them is reset.
    #[test]
    fn listener_of_another_namespace_is_refused() {
        let own = Netns::Path("/proc/thread-self/ns/net".into());
        let (_, identity) = netns::open(&own).expect("needs root: it enters the namespace");
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        assert!(check_listener(&listener, &identity).is_ok());
        let mut other = identity;
        other.cookie += 1;
        let error = check_listener(&listener, &other).unwrap_err();
        assert!(matches!(error, EnrolError::ForeignListener(_)), "{error}");
    }
}
