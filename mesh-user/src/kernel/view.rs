//! Reads the **pinned** maps, also with the agent dead: what `mesh bpf ...` and `/metrics` show.
//!
//! Opening a pin needs no CAP_SYS_ADMIN; enumerating objects by id would.

mod endpoints;
mod rows;

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    net::{IpAddr, SocketAddr},
    os::fd::{AsFd, OwnedFd},
    time::Duration,
};

pub use self::rows::{
    ConnRow, EndpointRow, InboundRow, MapRow, ProgRow, RedirectRow, ServiceRow, StatRow,
    WorkloadRow,
};
use super::{
    Instance, KernelError, diag, mounts, netns,
    numbers::Numbers,
    object::{self, EGRESS_GUARD, PROBE_OPS, STEER},
    pins::Pins,
    records::{self, Record},
    sys::{self, LinkTarget},
    tables::Readable,
};
use crate::clock::{self, MonoNanos};
use aya::programs::ProgramInfo;
use mesh_common::{
    addr::Addr,
    flow::{
        BACKEND_NONE, ESTABLISHED, PROXY_APP, Tuple, VERDICT_KERNEL, VERDICT_PASS, VERDICT_PROXY,
    },
    listener::{KIND_OUT, ListenerKey},
    maps::{ALL, Kind},
    pod::{
        FAIL_CLOSED, INBOUND_CAPTURE, INBOUND_DENY, INBOUND_PASS, MODE_LOOPBACK, MODE_MARK,
        PodEntry,
    },
    reason::Reason,
    service::{
        BACKEND_REFUSE, DECIDE_KERNEL, DECIDE_PASS, DECIDE_PROXY, FLAG_ROUTABLE, ServiceEntry,
    },
};

/// The pinned maps of one instance.
#[derive(Debug)]
pub struct View {
    pins: Pins,
    tables: Readable,
    names: HashMap<u32, String>,
    /// Service and version by the number of the version.
    versions: BTreeMap<u32, (String, String)>,
    records: Vec<Record>,
}

impl View {
    /// Opens the pins of an instance.
    ///
    /// # Errors
    /// No pins (nothing runs or ran), or pins of another ABI, by name.
    pub fn open(instance: &Instance) -> Result<Self, KernelError> {
        let pins = Pins::find(instance).map_err(KernelError::io("/proc/self/mountinfo"))?;
        let pins = pins.ok_or_else(|| KernelError::NoPins("/sys/fs/bpf".into()))?;
        if !pins.root.exists() {
            return Err(pins.missing());
        }
        pins.check_layouts(None)?;
        let tables = Readable::open(&pins)?;
        let records = records::read(instance);
        let names = records.iter().map(|r| (r.pod_id, r.key.clone())).collect();
        Ok(Self {
            pins,
            tables,
            names,
            versions: Numbers::read(instance).names(),
            records,
        })
    }

    fn name(&self, pod_id: u32) -> String {
        self.names
            .get(&pod_id)
            .cloned()
            .unwrap_or_else(|| "?".to_owned())
    }

    /// Enrolled workloads, by number.
    pub fn workloads(&self) -> Vec<WorkloadRow> {
        let mut rows: BTreeMap<u32, WorkloadRow> = BTreeMap::new();
        let row = |pod_id, fail| WorkloadRow {
            pod_id,
            workload: self.name(pod_id),
            netns: 0,
            mode: "off".to_owned(),
            failure: if fail == FAIL_CLOSED {
                "closed"
            } else {
                "open"
            }
            .to_owned(),
            addresses: Vec::new(),
        };
        for (addr, entry) in self.tables.pod_by_addr.iter().flatten() {
            let row = rows
                .entry(entry.pod_id)
                .or_insert_with(|| row(entry.pod_id, entry.fail));
            row.addresses.push(addr.to_ip());
        }
        for (netns, entry) in self.tables.pod_by_netns.iter().flatten() {
            let row = rows
                .entry(entry.pod_id)
                .or_insert_with(|| row(entry.pod_id, entry.fail));
            row.netns = netns;
            row.mode = mode(&entry).to_owned();
        }
        rows.into_values()
            .map(|mut row| {
                row.addresses.sort();
                row
            })
            .collect()
    }

    /// Redirections, by workload and shard.
    pub fn redirects(&self) -> Vec<RedirectRow> {
        let live: HashMap<u32, PodEntry> = self
            .tables
            .pod_by_netns
            .iter()
            .flatten()
            .map(|(_, entry)| (entry.pod_id, entry))
            .collect();
        let agent = self.agent_alive(clock::now());
        let state = |pod_id| match live.get(&pod_id) {
            Some(_) if self.paused() => "paused",
            Some(entry) if mode(entry) == "off" => "off",
            Some(_) if !agent => "agent-gone",
            Some(_) => "on",
            None => "not-live",
        };
        let mut listeners: Vec<(ListenerKey, u64)> =
            self.tables.listeners.all().unwrap_or_default();
        // Live workloads whose listeners are gone are the ones worth seeing.
        let served: HashSet<u32> = listeners.iter().map(|(key, _)| key.pod_id).collect();
        for pod_id in live.keys().filter(|pod_id| !served.contains(pod_id)) {
            listeners.push((
                ListenerKey {
                    pod_id: *pod_id,
                    kind: KIND_OUT,
                    shard: 0,
                },
                0,
            ));
        }
        listeners.sort_by_key(|(key, _)| (key.pod_id, key.kind, key.shard));
        let rows = listeners.into_iter().map(|(key, listener)| RedirectRow {
            pod_id: key.pod_id,
            workload: self.name(key.pod_id),
            direction: if key.kind == KIND_OUT { "out" } else { "in" }.to_owned(),
            shard: key.shard,
            listener,
            state: if listener == 0 {
                "agent-gone"
            } else {
                state(key.pod_id)
            }
            .to_owned(),
        });
        rows.collect()
    }

    /// What happens to connections that come in, by workload and port.
    pub fn inbound(&self) -> Vec<InboundRow> {
        let mut found: BTreeMap<(u32, Option<u16>), u32> = BTreeMap::new();
        for (_, entry) in self.tables.pod_by_addr.iter().flatten() {
            found.insert((entry.pod_id, None), entry.inbound.into());
        }
        for (key, action) in self.tables.in_rules.iter().flatten() {
            found.insert((key.pod_id, Some(key.port)), action);
        }
        found
            .into_iter()
            .map(|((pod_id, port), action)| InboundRow {
                pod_id,
                workload: self.name(pod_id),
                port: port.map_or_else(|| "*".to_owned(), |port| port.to_string()),
                action: inbound(action).to_owned(),
            })
            .collect()
    }

    /// Services, by address.
    pub fn services(&self) -> Vec<ServiceRow> {
        let mut rows: Vec<ServiceRow> = self
            .tables
            .services
            .iter()
            .flatten()
            .map(|(key, entry)| ServiceRow {
                address: key.addr.with_port(key.port),
                service_id: entry.service_id,
                decision: decision(entry.decision).to_owned(),
                service: self.service_of(&entry),
                slots: entry.slots_len,
                backends: self.split(&entry),
                routable: entry.flags & FLAG_ROUTABLE != 0,
            })
            .collect();
        rows.sort_by_key(|row| row.address);
        rows
    }

    /// Endpoints of a service with how many of its slots each has.
    fn split(&self, entry: &ServiceEntry) -> Vec<(SocketAddr, u32)> {
        let mut shares: BTreeMap<SocketAddr, u32> = BTreeMap::new();
        for index in entry.slots_off..entry.slots_off.saturating_add(entry.slots_len) {
            // Out of range: nonsense in the map, nothing more to find.
            let Ok(place) = self.tables.slots.get(&index, 0) else {
                break;
            };
            if let Ok(backend) = self.tables.backends.get(&place, 0)
                && backend.state != BACKEND_REFUSE
            {
                *shares
                    .entry(backend.addr.with_port(backend.port))
                    .or_default() += 1;
            }
        }
        shares.into_iter().collect()
    }

    /// Connections, by workload and age.
    pub fn conns(&self) -> Vec<ConnRow> {
        let now = clock::now();
        let mut rows: Vec<ConnRow> = Vec::new();
        for (key, flow) in self.tables.flows.iter().flatten() {
            rows.push(ConnRow {
                asked: Some(flow.asked.with_port(flow.asked_port)),
                endpoint: self.chosen(flow.backend),
                cookie: flow.cookie,
                verdict: verdict(flow.verdict).to_owned(),
                version: self.version_of(flow.backend),
                tgid: flow.tgid,
                ..self.conn(
                    "out",
                    key.pod_id,
                    &key.tuple,
                    flow.state,
                    now,
                    flow.connect_ns,
                )
            });
        }
        for (tuple, flow) in self.tables.proxy_flows.iter().flatten() {
            let leg = if flow.kind == PROXY_APP { "app" } else { "up" };
            rows.push(ConnRow {
                endpoint: Some(tuple.dst.with_port(tuple.dport)),
                ..self.conn(leg, flow.pod_id, &tuple, flow.state, now, flow.connect_ns)
            });
        }
        rows.sort_by(|a, b| a.pod_id.cmp(&b.pod_id).then(b.age_s.total_cmp(&a.age_s)));
        rows
    }

    /// Asks TCP about the rows' connections, in each namespace once: bytes and round-trip time. A
    /// namespace that can't be entered leaves its rows without; why is returned, by workload.
    pub fn measure(&self, rows: &mut [ConnRow]) -> Vec<String> {
        let mut failed = Vec::new();
        let wanted: HashSet<u32> = rows.iter().map(|row| row.pod_id).collect();
        for record in self.records.iter().filter(|r| wanted.contains(&r.pod_id)) {
            let asked = netns::inside_if(&record.netns, record.inode, diag::connections);
            let found = match asked {
                Ok(Some(Ok(found))) => found,
                Ok(None) => continue,
                Ok(Some(Err(error))) | Err(error) => {
                    failed.push(format!("{}: {error}", record.key));
                    continue;
                }
            };
            for row in rows.iter_mut().filter(|row| row.pod_id == record.pod_id) {
                let tuple = (row.source, row.destination);
                let seen = found.by_cookie.get(&row.cookie);
                if let Some(seen) = seen.or_else(|| found.by_tuple.get(&tuple)) {
                    row.bytes_out = Some(seen.sent);
                    row.bytes_in = Some(seen.received);
                    row.rtt_ms = Some(f64::from(seen.rtt_us) / 1_000.0);
                }
            }
        }
        failed
    }

    /// The endpoint that the kernel chose.
    fn chosen(&self, backend: u32) -> Option<SocketAddr> {
        if backend == BACKEND_NONE {
            return None;
        }
        let backend = self.tables.backends.get(&backend, 0).ok()?;
        Some(backend.addr.with_port(backend.port))
    }

    fn conn(
        &self,
        leg: &str,
        pod_id: u32,
        tuple: &Tuple,
        state: u8,
        now: MonoNanos,
        since: u64,
    ) -> ConnRow {
        ConnRow {
            leg: leg.to_owned(),
            pod_id,
            workload: if pod_id == 0 {
                "-".to_owned()
            } else {
                self.name(pod_id)
            },
            source: tuple.src.with_port(tuple.sport),
            destination: tuple.dst.with_port(tuple.dport),
            asked: None,
            verdict: "-".to_owned(),
            version: None,
            state: if state == ESTABLISHED {
                "established"
            } else {
                "connecting"
            }
            .to_owned(),
            age_s: now.since(MonoNanos(since)).as_secs_f64(),
            service: None,
            endpoint: None,
            bytes_out: None,
            bytes_in: None,
            rtt_ms: None,
            cookie: 0,
            tgid: 0,
        }
    }

    /// Counters, by code; all of them, also zeros.
    pub fn stats(&self) -> Vec<StatRow> {
        Reason::ALL
            .iter()
            .map(|reason| StatRow {
                reason: reason.label().to_owned(),
                count: self
                    .tables
                    .counters
                    .get(&(*reason as u32), 0)
                    .map_or(0, |cpus| cpus.iter().sum()),
                refusal: reason.is_refusal(),
            })
            .collect()
    }

    /// Fill of every map.
    pub fn maps(&self) -> Vec<MapRow> {
        ALL.iter()
            .map(|spec| MapRow {
                map: spec.name.to_owned(),
                entries: self.entries(spec.name).map(|entries| entries as u64),
                // An array is always full; its capacity says enough.
                capacity: if spec.kind == Kind::SkStorage {
                    0
                } else {
                    spec.capacity.into()
                },
            })
            .collect()
    }

    fn entries(&self, map: &str) -> Option<usize> {
        let tables = &self.tables;
        match map {
            "FLOWS" => Some(tables.flows.keys().flatten().count()),
            "GRANTS" => Some(tables.grants.keys().flatten().count()),
            "GUARDED" => Some(tables.guarded.keys().flatten().count()),
            "IN_RULES" => Some(tables.in_rules.keys().flatten().count()),
            "LISTENERS" => tables.listeners.all().ok().map(|all| all.len()),
            "LOOP_FLOWS" => Some(tables.loop_flows.keys().flatten().count()),
            "OUT_RULES" => Some(tables.out_rules.keys().flatten().count()),
            "POD_BY_ADDR" => Some(tables.pod_by_addr.keys().flatten().count()),
            "POD_BY_NETNS" => Some(tables.pod_by_netns.keys().flatten().count()),
            "PROXY_FLOWS" => Some(tables.proxy_flows.keys().flatten().count()),
            "SERVICES" => Some(tables.services.keys().flatten().count()),
            _ => None,
        }
    }

    /// Pinned links with their programs.
    pub fn progs(&self) -> Vec<ProgRow> {
        let programs: HashMap<u32, ProgramInfo> = object::names()
            .filter_map(|name| ProgramInfo::from_pin(self.pins.prog(name)).ok())
            .map(|info| (info.id(), info))
            .collect();
        let cgroups = cgroup_paths();
        let mut rows = Vec::new();
        for (name, number, path) in self.pins.all_links() {
            let Ok(info) =
                sys::open_pin(&path).and_then(|link: OwnedFd| sys::link_info(link.as_fd()))
            else {
                continue;
            };
            let program = programs.get(&info.prog_id);
            rows.push(ProgRow {
                pin: format!("{name}-{number}"),
                kind: kind(&name).to_owned(),
                prog_id: info.prog_id,
                link_id: info.id,
                attached: attached(info.target, &cgroups),
                verified_insns: program
                    .and_then(ProgramInfo::verified_instruction_count)
                    .unwrap_or(0),
                program: name,
            });
        }
        rows
    }

    /// Whether capture is paused.
    pub fn paused(&self) -> bool {
        self.tables
            .config
            .get(&0, 0)
            .is_ok_and(|config| config.paused != 0)
    }

    /// Age of the heartbeat; none when it was never written.
    pub fn heartbeat_age(&self, now: MonoNanos) -> Option<Duration> {
        match self.tables.heartbeat.get(&0, 0) {
            Ok(beat) if beat != 0 => Some(now.since(MonoNanos(beat))),
            _ => None,
        }
    }

    /// Whether the programs take the agent for alive now.
    pub(super) fn alive(&self) -> bool {
        self.agent_alive(clock::now())
    }

    /// The mark of a captured connection; `None` when the settings can't be read.
    pub(super) fn capture_mark(&self) -> Option<u32> {
        let config = self.tables.config.get(&0, 0).ok()?;
        Some(config.capture_mark)
    }

    /// Whether the programs take the agent for alive.
    fn agent_alive(&self, now: MonoNanos) -> bool {
        let stale = self
            .tables
            .config
            .get(&0, 0)
            .map_or(0, |config| config.heartbeat_stale_ns);
        self.heartbeat_age(now)
            .is_some_and(|age| age <= Duration::from_nanos(stale))
    }

    /// Addresses that are denied or passed for TCP before services are looked at: address, prefix length
    /// over 128 bits, port (0: any), whether it denies.
    pub fn outbound_rules(&self) -> Vec<(IpAddr, u8, u16, bool)> {
        self.tables
            .out_rules
            .iter()
            .flatten()
            .filter(|(key, _)| {
                let data = key.data();
                data.proto == super::tables::TCP
            })
            .map(|(key, action)| {
                let fixed = mesh_common::maps::OUT_RULE_FIXED_BITS;
                let bits = key.prefix_len().saturating_sub(fixed).min(128) as u8;
                let addr: Addr = key.data().addr;
                let port = u16::from_be_bytes(key.data().port_be);
                (
                    addr.to_ip(),
                    bits,
                    port,
                    action == mesh_common::maps::OUT_DENY,
                )
            })
            .collect()
    }
}

fn mode(entry: &PodEntry) -> &'static str {
    match entry.mode {
        MODE_MARK => "mark",
        MODE_LOOPBACK => "loopback",
        _ => "off",
    }
}

fn inbound(code: u32) -> &'static str {
    match u8::try_from(code) {
        Ok(INBOUND_PASS) => "pass",
        Ok(INBOUND_CAPTURE) => "capture",
        Ok(INBOUND_DENY) => "deny",
        _ => "?",
    }
}

fn decision(code: u32) -> &'static str {
    match code {
        DECIDE_PASS => "pass",
        DECIDE_KERNEL => "kernel",
        DECIDE_PROXY => "proxy",
        _ => "?",
    }
}

fn verdict(code: u8) -> &'static str {
    match code {
        VERDICT_PASS => "pass",
        VERDICT_KERNEL => "kernel",
        VERDICT_PROXY => "proxy",
        _ => "?",
    }
}

fn kind(program: &str) -> &'static str {
    match program {
        "flow_ops" | PROBE_OPS => "sock_ops",
        "sock_release" => "cgroup_sock",
        STEER => "sk_lookup",
        EGRESS_GUARD => "sched_cls",
        "mark_guard" | "original_dst" => "cgroup_sockopt",
        _ => "cgroup_sock_addr",
    }
}

/// What [`ProgRow::attached`] says of a link whose cgroup was removed under it: it does nothing any
/// more.
pub const REMOVED_CGROUP: &str = "removed cgroup";

fn attached(target: LinkTarget, cgroups: &HashMap<u64, String>) -> String {
    match target {
        LinkTarget::Cgroup(0) => REMOVED_CGROUP.to_owned(),
        LinkTarget::Cgroup(id) => cgroups
            .get(&id)
            .cloned()
            .unwrap_or_else(|| format!("cgroup {id}")),
        LinkTarget::Netns(0) => "deleted netns".to_owned(),
        LinkTarget::Netns(inode) => format!("netns {inode}"),
        LinkTarget::Interface(0) => "deleted interface".to_owned(),
        LinkTarget::Interface(index) => format!("interface {index}"),
        LinkTarget::Other => "?".to_owned(),
    }
}

/// Paths of cgroups by their id. Bounded: a node has thousands at most, and depth ends the walk.
fn cgroup_paths() -> HashMap<u64, String> {
    let mut found = HashMap::new();
    if let Ok(Some(mount)) = mounts::cgroup2() {
        collect(&mount, &mount, 8, &mut found);
    }
    found
}

fn collect(
    mount: &std::path::Path,
    dir: &std::path::Path,
    depth: usize,
    found: &mut HashMap<u64, String>,
) {
    use std::os::unix::fs::DirEntryExt as _;
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            let path = entry.path();
            let name = path
                .strip_prefix(mount)
                .unwrap_or(&path)
                .display()
                .to_string();
            found.insert(entry.ino(), format!("/{name}"));
            if depth > 1 {
                collect(mount, &path, depth - 1, found);
            }
        }
    }
}
