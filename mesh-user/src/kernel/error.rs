//! Why the kernel side refuses, each with a name and what to do.

use std::{io, net::IpAddr, path::PathBuf};

/// Why the kernel side could not be started or written. Nothing half-attached is left.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// The binary was built before the eBPF object.
    #[error("this binary holds no eBPF object: run cargo xtask build-ebpf, then build it again")]
    NotBuilt,
    /// Another agent runs this instance.
    #[error("instance {instance} is held by process {pid}: stop it, or choose another --instance")]
    Locked {
        /// The instance.
        instance: String,
        /// Who holds it; `?` when it left no number.
        pid: String,
    },
    /// The agent before us used other bits of the socket mark.
    #[error(
        "`agent.marks` names other bits ({wanted:#x}) than the workloads are set up with \
         ({found:#x}): run `mesh cleanup` first, or keep the bits"
    )]
    OtherMarks {
        /// The bits in use.
        found: u32,
        /// The bits asked for.
        wanted: u32,
    },
    /// There is no unified cgroup hierarchy.
    #[error(
        "no cgroup2 mount in /proc/self/mountinfo: mount one (mount -t cgroup2 none \
         /sys/fs/cgroup/unified), or give the container the host's"
    )]
    NoCgroup2,
    /// There is no bpffs and none could be mounted.
    #[error("no bpffs, and mounting one at /sys/fs/bpf failed: {0}; mount -t bpf bpf /sys/fs/bpf")]
    NoBpffs(#[source] io::Error),
    /// The bpffs takes no files.
    #[error(
        "pins can't be made at {}: {source}; mount the bpffs there writable (mount -o remount,rw; \
         not readOnly in a container)", .dir.display()
    )]
    PinsRefused {
        /// Where.
        dir: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// Capabilities count only in the first user namespace.
    #[error(
        "the process lives in a user namespace of its own, where capabilities don't reach the \
         kernel's programs: run it in the host's (hostUsers: true, no rootless container)"
    )]
    UserNamespace,
    /// The process lacks capabilities.
    #[error("missing capabilities: {}; run as root, or grant them", .0.join(", "))]
    MissingCapability(Vec<&'static str>),
    /// An attach point does not exist.
    #[error("attach: cgroup {} does not exist: create it or correct the path", .0.display())]
    AttachMissing(PathBuf),
    /// The root of the hierarchy is no attach point.
    #[error(
        "attach: {} is the root of the hierarchy, where the hooks would catch the whole machine \
         and run after the platform's own: name a cgroup below it", .0.display()
    )]
    AttachRoot(PathBuf),
    /// One attach point is inside another: the hook would run twice.
    #[error(
        "attach: {} is inside {}, so hooks would run twice there: keep one of the two",
        .inner.display(), .outer.display()
    )]
    AttachNested {
        /// The one below.
        inner: PathBuf,
        /// The one above.
        outer: PathBuf,
    },
    /// No attach point was named and none was found.
    #[error("no kubepods cgroup was found: name the workloads' cgroup with attach:")]
    AttachUnknown,
    /// A pinned map has another layout.
    #[error(
        "map {map} is pinned with another layout (found {found}, expected {expected}): run \
         mesh cleanup, then start again"
    )]
    MapLayout {
        /// The map.
        map: &'static str,
        /// What is pinned.
        found: String,
        /// What this build needs.
        expected: String,
    },
    /// An agent with another kernel layout left its programs in force.
    #[error(
        "instance {instance} has pins of kernel layout {found} ({links} links) and this build \
         makes v{expected}: both would run at every hook. Stop the agent that made them, run \
         mesh cleanup --instance {instance}, then start again"
    )]
    PredecessorAbi {
        /// The instance.
        instance: String,
        /// Name of the other version's directory.
        found: String,
        /// How many links are pinned there.
        links: usize,
        /// Our layout.
        expected: u32,
    },
    /// A successor writes what the kernel holds.
    #[error(
        "a successor is taking over (mesh run --takeover): ask it, or try again when it has failed"
    )]
    HandingOver,
    /// The kernel refused the object.
    #[error("the kernel refused {what}: {why}")]
    Load {
        /// The program or map.
        what: String,
        /// What it said; the end of the verifier's log for programs.
        why: String,
    },
    /// A program could not be attached.
    #[error("attaching {program} to {at}: {source}")]
    Attach {
        /// The program.
        program: &'static str,
        /// Cgroup or namespace.
        at: String,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// A map can't take the table; nothing was changed.
    #[error("map {map} is full: {needed} entries are needed, it holds {capacity}")]
    Full {
        /// The map.
        map: &'static str,
        /// How many the table needs.
        needed: usize,
        /// How many there can be.
        capacity: usize,
    },
    /// The table contradicts itself; nothing was changed.
    #[error("the kernel table is wrong: {0}")]
    BadTable(String),
    /// Nothing is pinned.
    #[error("nothing is pinned at {}: no agent of this instance runs or ran", .0.display())]
    NoPins(PathBuf),
    /// Something is pinned, by another build.
    #[error(
        "pins of ABI {found} at {}, this build reads ABI {expected}: use the matching mesh",
        .dir.display()
    )]
    OtherAbi {
        /// Where.
        dir: PathBuf,
        /// The versions there.
        found: String,
        /// Ours.
        expected: u32,
    },
    /// The kubelet's cgroup that was named is not there.
    #[error(
        "the kubelet's cgroup {0} is not there: name the cgroup that the kubelet runs in \
         (/proc/PID/cgroup says it), or leave agent.kubelet-cgroup out"
    )]
    KubeletMissing(PathBuf),
    /// Something else that the system refused.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: String,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A map could not be read or written.
    #[error("map {map}: {source}")]
    Map {
        /// The map.
        map: &'static str,
        /// What aya said.
        #[source]
        source: aya::maps::MapError,
    },
}

/// Why a workload could not be enrolled. Nothing of it is left.
#[derive(Debug, thiserror::Error)]
pub enum EnrolError {
    /// The namespace is not there.
    #[error("{place}: the network namespace is gone or never was ({source})")]
    NamespaceGone {
        /// Path or process.
        place: String,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The path is something else.
    #[error("{0} is no network namespace: expected a path such as /run/netns/NAME")]
    NotANamespace(String),
    /// The namespace is the agent's: steering there would rule the node.
    #[error(
        "{0} is the agent's own network namespace: workloads with the host's network are not captured"
    )]
    OwnNamespace(String),
    /// Another workload has this namespace.
    #[error("{place} is enrolled already, as {other}")]
    AlreadyEnrolled {
        /// Path or process.
        place: String,
        /// The other workload.
        other: String,
    },
    /// Another workload has one of its addresses.
    #[error("address {addr} belongs to {other} already: addresses must be unique on a node")]
    AddressTaken {
        /// The address.
        addr: IpAddr,
        /// The other workload.
        other: String,
    },
    /// Another instance steers this namespace.
    #[error(
        "{place} belongs to {other}: one namespace can follow one instance only; release it there, \
         or run mesh cleanup --instance with its name"
    )]
    OtherInstance {
        /// Path or process.
        place: String,
        /// The other instance.
        other: String,
    },
    /// It has no address.
    #[error("{0} has no address but loopback and link-local ones: give it one first")]
    NoAddress(String),
    /// A map is full.
    #[error("map {map} is full at {capacity} entries")]
    MapFull {
        /// The map.
        map: &'static str,
        /// How many it holds.
        capacity: u32,
    },
    /// A captured connection did not arrive.
    #[error("the self-probe to {towards} failed ({why}): another program or route may interfere")]
    ProbeFailed {
        /// The documentation address.
        towards: std::net::SocketAddr,
        /// What was seen.
        why: String,
    },
    /// `bypass-guard: on`, `failure: closed`, and a way out of the namespace that can't be guarded.
    #[error(
        "{workload} can't be guarded ({why}): bypass-guard needs every way out to be a veth with its \
         other end on the node; with failure: open it goes on with the gap in mesh status"
    )]
    NotGuarded {
        /// The workload.
        workload: String,
        /// Which way out, and what it is.
        why: String,
    },
    /// A listener that would be given the workload's connections is not inside its namespace.
    #[error(
        "a listener for {0} stands in another network namespace: connections given to it would be reset"
    )]
    ForeignListener(String),
    /// `mode: loopback` on a kernel that can't tell where an accepted connection was going.
    #[error(
        "mode loopback needs bpf_get_netns_cookie in sock_ops (Linux 5.15 or newer): use mode mark"
    )]
    NoLoopback,
    /// No such workload.
    #[error("no workload has number {0}")]
    Unknown(u32),
    /// Something else that the system refused.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: String,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

impl KernelError {
    pub(super) fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io {
            what: what.into(),
            source,
        }
    }
}

impl EnrolError {
    pub(super) fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io {
            what: what.into(),
            source,
        }
    }
}
