//! The kernel side's user half: loads, attaches, pins, fills maps, enrols workloads.
//!
//! The only module that names aya's types. Everything it makes is pinned below one versioned
//! directory, so that the CLI reads it with the agent dead and a restart adopts it.
//!
//! Order that is an invariant (DESIGN §2): connect hooks and `flow_ops` -> sysctl, rule and route
//! in the pod (inert until something is marked) -> listeners -> `POD_BY_ADDR` -> `LISTENERS` ->
//! `steer` -> self-probe -> `POD_BY_NETNS`. Undo: `POD_BY_NETNS`, `steer`, listeners, routes.

mod adopt;
mod apply;
pub mod atomics;
mod attach;
pub mod audit;
mod capability;
mod cgroups;
pub mod cleanup;
mod cookie;
mod diag;
mod enrol;
mod error;
mod features;
pub mod feedback;
pub mod foreign;
mod guard;
mod heartbeat;
mod hooks;
mod inbound;
mod instances;
pub mod inventory;
mod kubelet;
mod loopback;
mod marks;
pub mod mounts;
mod netns;
mod numbers;
mod object;
mod origin;
mod pins;
pub mod probe;
mod ranges;
mod records;
mod route;
mod shards;
pub mod shield;
mod sockets;
pub mod survey;
mod sys;
mod tables;
mod takeover;
pub mod verify;
pub mod view;
mod watch;
mod workload;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::TcpListener,
    os::fd::{AsFd, OwnedFd},
    path::PathBuf,
    sync::Arc,
    time::Instant,
};

use mesh_common::{
    abi::{ABI_VERSION, Config, SHARDS_MAX, UNKNOWN_PASS, UNKNOWN_REFUSE},
    reason::Event,
};
use serde::Serialize;

use self::{
    apply::Installed, audit::Audit, feedback::Feedback, guard::Guard, pins::Pins, records::Record,
    route::Steering, tables::Tables, workload::Workload,
};
pub use self::{
    error::{EnrolError, KernelError},
    heartbeat::Heartbeat,
    marks::Marks,
    shards::Shards,
    takeover::Inherited,
};
use crate::{
    model::{Interception, Netns, inbound::InboundPorts, kernel_table::KernelTables},
    proxy::wire::{OriginLookup, SocketSource},
};

/// A heartbeat older than this means that the agent is dead or hung: four missed ticks of 250 ms.
const HEARTBEAT_STALE_NS: u64 = 1_000_000_000;

/// The name that keeps agents on one machine apart (DESIGN §10.1): pin directory, admin socket,
/// agent cgroup.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Instance(String);

impl Instance {
    /// From a name of 1 to 32 characters of `a-z`, `0-9` and `-`.
    ///
    /// # Errors
    /// Any other name, with what is allowed.
    pub fn new(name: &str) -> Result<Self, String> {
        let good = (1..=32).contains(&name.len())
            && name
                .bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
        if good {
            Ok(Self(name.to_owned()))
        } else {
            Err(format!(
                "instance name {name:?}: expected 1 to 32 of a-z, 0-9 and '-'"
            ))
        }
    }

    /// The name.
    pub fn name(&self) -> &str {
        &self.0
    }

    /// Where its admin socket and run-time files are.
    pub fn run_dir(&self) -> PathBuf {
        PathBuf::from("/run/mesh").join(&self.0)
    }

    /// Its admin socket.
    pub fn admin_socket(&self) -> PathBuf {
        self.run_dir().join("admin.sock")
    }
}

/// What the kernel side is started with.
#[derive(Clone, Debug)]
pub struct KernelOptions {
    /// The instance.
    pub instance: Instance,
    /// Cgroups at which the connect hooks attach, below the cgroup2 mount or absolute. Empty:
    /// search for the kubepods parent.
    pub attach: Vec<PathBuf>,
    /// Listener shards for each workload: the number of workers, 1 to 8.
    pub shards: u16,
    /// Whether unknown network namespaces below the attach point are refused.
    pub refuse_unknown: bool,
    /// The kubelet's own cgroup, below the cgroup2 mount or absolute. None: the usual names are
    /// looked for.
    pub kubelet_cgroup: Option<PathBuf>,
    /// Other capacities of maps than [`mesh_common::maps::ALL`] says, by name: for tests that fill
    /// them. An agent has none.
    pub capacities: Vec<(String, u32)>,
    /// Which bits of a socket's mark are ours.
    pub marks: Marks,
}

/// A workload that shall be enrolled.
#[derive(Clone, Debug)]
pub struct Enrol {
    /// `namespace/name`.
    pub key: Arc<str>,
    /// Its network namespace.
    pub netns: Netns,
    /// How its connections are intercepted.
    pub interception: Interception,
    /// What happens to connections that come in, by port.
    pub inbound: InboundPorts,
}

/// A workload that is enrolled: everything stands but `POD_BY_NETNS`. The caller hands the
/// listeners to the workers, then calls [`Kernel::go_live`]: state first, capture second.
#[derive(Debug)]
pub struct Enrolled {
    /// Its number.
    pub pod_id: u32,
    /// One listener for each shard, in order; listening and non-blocking.
    pub listeners: Vec<TcpListener>,
    /// The same for connections that come in.
    pub inbound: Vec<TcpListener>,
    /// Makes sockets in its namespace.
    pub sockets: Arc<dyn SocketSource>,
}

/// Why a workload disappeared without being asked to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gone {
    /// The workload's number.
    pub pod_id: u32,
    /// `namespace/name`.
    pub key: Arc<str>,
    /// What was seen.
    pub why: String,
}

/// The programs and maps of one instance, loaded, attached and pinned.
///
/// Dropping it leaves everything in the kernel, as a killed agent would: the failure mode of each
/// workload holds, and the next start adopts it. [`cleanup::cleanup`] removes it.
#[derive(Debug)]
pub struct Kernel {
    instance: Instance,
    pins: Pins,
    config: Config,
    tables: Tables,
    listeners: Arc<Shards>,
    steer: OwnedFd,
    guard: Guard,
    audit: Audit,
    kubelet: kubelet::Kubelet,
    /// How many listeners a workload gets of each kind.
    shards: u16,
    installed: Installed,
    feedback: Feedback,
    workloads: BTreeMap<u32, Workload>,
    /// What an agent before us enrolled and we have not, yet; and what we could not enrol and hold
    /// by its failure mode.
    adopted: BTreeMap<u32, Record>,
    /// What the model wants captured; `None` before there is one.
    wanted: Option<BTreeSet<Arc<str>>>,
    /// An agent before us serves still, and takes everything back should we fail.
    beside: bool,
    started: Instant,
    next_id: u32,
    generation: u32,
    /// Where the next round of address watching begins.
    watch_from: u32,
    origins: Arc<origin::Origins>,
    hooks: hooks::Hooks,
    /// What the programs themselves say; only objects built with the feature `log` say anything.
    log: Option<object::ProgramLog>,
    /// Last, so that nothing of ours is left open when another agent may come.
    lock: pins::Lock,
}

impl Kernel {
    /// Probes, loads (or adopts pinned maps and updates pinned links), attaches, pins. Moves the
    /// calling process into the instance's agent cgroup.
    ///
    /// # Errors
    /// The missing feature, capability or mount by name, with what to do.
    pub fn start(options: &KernelOptions) -> Result<Self, KernelError> {
        object::present()?;
        capability::require()?;
        let mount = cgroups::mount()?;
        let points = cgroups::attach_points(&mount, &options.attach)?;
        let lock = pins::lock(&options.instance)?;
        attach::start(options, &mount, points, lock, None)
    }

    fn new(options: &KernelOptions, parts: Parts, lock: pins::Lock) -> Self {
        let mut kernel = Self {
            instance: options.instance.clone(),
            feedback: Feedback::new(parts.counters),
            shards: options.shards.clamp(1, SHARDS_MAX as u16),
            installed: Installed::adopt(&parts.tables, &options.instance),
            pins: parts.pins,
            config: parts.config,
            tables: parts.tables,
            listeners: Arc::new(Shards::new(parts.listeners)),
            steer: parts.steer,
            guard: Guard::new(parts.guard),
            audit: Audit::of(parts.standing),
            kubelet: parts.kubelet,
            workloads: BTreeMap::new(),
            adopted: BTreeMap::new(),
            wanted: None,
            beside: false,
            started: Instant::now(),
            next_id: 1,
            generation: 1,
            watch_from: 0,
            origins: Arc::new(parts.origins),
            hooks: parts.hooks,
            log: parts.log,
            lock,
        };
        kernel.adopt();
        kernel
    }

    /// Writes the difference between the maps and the table.
    ///
    /// # Errors
    /// A map is full or the table contradicts itself: nothing was changed. The kernel refused a
    /// write: the next call writes what is missing.
    pub fn apply(&mut self, wanted: &KernelTables) -> Result<(), KernelError> {
        let news = self
            .installed
            .apply(&mut self.tables, wanted, &self.instance)?;
        self.feedback.follow(&self.installed, &news);
        self.hooks.datagrams(&self.pins, wanted.denies_datagrams())
    }

    /// What the kernel counted since the last call, at the endpoints of the table that stands: those
    /// alone with which something happened.
    pub fn endpoint_counts(&mut self) -> Vec<feedback::Counted> {
        self.feedback.read()
    }

    /// Pauses or resumes capture (`mesh redirect off|on`).
    ///
    /// # Errors
    /// The map could not be written.
    pub fn set_paused(&mut self, paused: bool) -> Result<(), KernelError> {
        let config = Config {
            paused: u32::from(paused),
            ..self.config
        };
        write_config(&mut self.tables, config)?;
        self.config = config;
        Ok(())
    }

    /// Whether capture is paused: kept over a restart, so that an operator's word stands.
    pub fn paused(&self) -> bool {
        self.config.paused != 0
    }

    /// The heartbeat's writer.
    ///
    /// # Errors
    /// The map could not be mapped.
    pub fn heartbeat(&self) -> Result<Heartbeat, KernelError> {
        let path = self.pins.map("HEARTBEAT");
        let what = || KernelError::io(format!("{}", path.display()));
        let fd = sys::open_pin(&path).map_err(what())?;
        Heartbeat::map(fd.as_fd()).map_err(what())
    }

    /// Which worker each shard of the listeners leads to.
    pub fn shards(&self) -> Arc<Shards> {
        Arc::clone(&self.listeners)
    }

    /// Sockets that leave from the agent's own namespace, with the agent's mark.
    pub fn node_sockets(&self) -> Arc<dyn SocketSource> {
        sockets::NodeSockets::source(self.config.agent_mark)
    }

    /// Looks original destinations up: in `ORIGIN` for mode `loopback`, else in `FLOWS`.
    pub fn origins(&self) -> Arc<dyn OriginLookup> {
        Arc::clone(&self.origins) as Arc<dyn OriginLookup>
    }

    /// Takes events that the programs sent since the last call, at most `limit`: refusals,
    /// bypasses, misses. What nobody takes is lost and counted (`event_lost`).
    ///
    /// Lines of an object with the feature `log` go to the process's log in the same step.
    pub fn events(&mut self, limit: usize) -> Vec<Event> {
        if let Some(log) = &mut self.log {
            log.flush();
        }
        let waiting = self.audit.events.len().min(limit);
        let mut found: Vec<Event> = self.audit.events.drain(..waiting).collect();
        while found.len() < limit
            && let Some(record) = self.tables.events.next()
        {
            found.extend(Event::from_bytes(&record));
        }
        found
    }

    /// Connect hooks of others that run before ours.
    pub fn foreign_hooks(&self) -> Vec<foreign::ForeignHook> {
        foreign::before_ours(&self.pins)
    }

    fn steering(&self) -> Steering {
        Steering {
            mark: self.config.capture_mark,
            mask: self.config.mark_mask,
        }
    }

    /// Names for the CLI, and what a cleanup must undo. A failure is no reason to stop serving.
    fn write_records(&self) {
        self.write_records_and(None);
    }

    /// With one more, of a workload that is about to be touched.
    fn write_records_and(&self, more: Option<&Record>) {
        let own: Vec<Record> = self
            .workloads
            .iter()
            .map(|(pod_id, workload)| workload.record(*pod_id))
            .collect();
        let all: Vec<&Record> = (own.iter().chain(self.adopted.values()))
            .chain(more)
            .collect();
        if let Err(error) = records::write(&self.instance, &all) {
            tracing::warn!(%error, "workloads.json could not be written: the command line shows no names");
        }
    }
}

/// What a start has opened.
struct Parts {
    counters: feedback::Counters,
    pins: Pins,
    tables: Tables,
    listeners: tables::Sockets,
    origins: origin::Origins,
    hooks: hooks::Hooks,
    config: Config,
    steer: OwnedFd,
    guard: OwnedFd,
    standing: Vec<audit::Hook>,
    kubelet: kubelet::Kubelet,
    log: Option<object::ProgramLog>,
}

fn config(options: &KernelOptions, agent_cgroup: u64, agent_netns: u64, paused: u32) -> Config {
    Config {
        abi: ABI_VERSION,
        capture_mark: options.marks.capture,
        agent_mark: options.marks.agent,
        mark_mask: options.marks.mask(),
        agent_cgroup,
        heartbeat_stale_ns: HEARTBEAT_STALE_NS,
        shards: u32::from(options.shards).clamp(1, SHARDS_MAX),
        unknown_netns: if options.refuse_unknown {
            UNKNOWN_REFUSE
        } else {
            UNKNOWN_PASS
        },
        paused,
        _pad: 0,
        agent_netns,
        _reserved: 0,
    }
}

fn write_config(tables: &mut Tables, config: Config) -> Result<(), KernelError> {
    tables
        .config
        .set(0, config, 0)
        .map_err(|source| KernelError::Map {
            map: "CONFIG",
            source,
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The control thread owns the kernel side; the heartbeat is anybody's.
    #[test]
    fn kernel_side_may_move_between_threads() {
        fn send<T: Send>() {}
        fn shared<T: Send + Sync>() {}
        send::<Kernel>();
        shared::<Heartbeat>();
        shared::<view::View>();
    }

    #[test]
    fn instance_names_are_bounded_and_safe_in_paths() {
        for good in ["a", "default", "t-1", &"x".repeat(32)] {
            assert!(Instance::new(good).is_ok(), "{good}");
        }
        for bad in ["", "A", "a/b", "..", "a_b", "a b", &"x".repeat(33)] {
            assert!(Instance::new(bad).is_err(), "{bad}");
        }
    }
}
