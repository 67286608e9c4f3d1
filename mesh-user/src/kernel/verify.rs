//! Whether what an instance attached and pinned is really in force: for `mesh check`.
//!
//! Not by what was written down, but by the kernel's own answers: the links' targets, the programs
//! that are effective for the cgroups in which a workload's processes live, and a connection from
//! inside each workload's namespace that must find a listener.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io,
    net::SocketAddr,
    os::{fd::AsFd as _, unix::fs::MetadataExt as _},
    path::{Path, PathBuf},
    time::Duration,
};

use aya::programs::ProgramInfo;
use mesh_common::maps::{ALL, Kind};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::{
    Instance, KernelError, foreign, mounts, netns, object,
    pins::Pins,
    probe::Check,
    records::{self, Record},
    route::Netlink,
    sockets,
    sys::{self, AttachType, LinkTarget},
    view::View,
    workload::{PROBE_PORT, PROBE_V4, PROBE_V6, Sources},
};
use crate::clock;

/// A map that is filled to this part of its capacity is named.
const NEARLY_FULL: f64 = 0.8;
/// A connection over `lo` stands within microseconds.
const PROBE_LIMIT: Duration = Duration::from_secs(2);

/// Looks at everything of an instance. `None`: nothing of it is pinned.
///
/// # Errors
/// Pins of another ABI, or the maps can't be read.
pub fn verify(instance: &Instance) -> Result<Option<Vec<Check>>, KernelError> {
    let pins = Pins::find(instance).map_err(KernelError::io("/proc/self/mountinfo"))?;
    let Some(pins) = pins.filter(|pins| pins.root.exists()) else {
        return Ok(None);
    };
    let view = View::open(instance)?;
    let mut checks = hooks(&pins);
    checks.extend(maps(&view));
    checks.push(before_ours(&pins));
    let alive = view.alive();
    checks.push(heartbeat(&view, alive));
    let homes = homes();
    let mark = view.capture_mark();
    for record in records::read(instance) {
        checks.push(effective(&record, &pins, &homes));
        if let (true, Some(mark)) = (alive && !record.held, mark) {
            checks.push(path(&record, mark));
        }
    }
    Ok(Some(checks))
}

/// Each pinned link: to what it is attached, and which program it holds.
fn hooks(pins: &Pins) -> Vec<Check> {
    const REMEDY: &str = "restart the agent: it attaches what is missing";
    let links = pins.all_links();
    let mut checks: Vec<Check> = object::CGROUP_HOOKS
        .iter()
        .filter(|(name, _)| links.iter().all(|(other, _, _)| other != name))
        .map(|(name, _)| {
            Check::required(format!("hook {name}"), Err("not attached".into()), REMEDY)
        })
        .collect();
    let mut tags: BTreeMap<u32, String> = BTreeMap::new();
    for (name, number, path) in links {
        let found = hook(&path, &mut tags).map_err(|error| error.to_string());
        let gone = found.as_ref().is_ok_and(|text| text.starts_with("GONE"));
        let found = if gone {
            Err("attached to what is gone".to_owned())
        } else {
            found
        };
        checks.push(Check::required(
            format!("hook {name}-{number}"),
            found,
            REMEDY,
        ));
    }
    checks
}

fn hook(path: &Path, tags: &mut BTreeMap<u32, String>) -> io::Result<String> {
    let info = sys::link_info(sys::open_pin(path)?)?;
    let target = match info.target {
        LinkTarget::Cgroup(0) | LinkTarget::Netns(0) | LinkTarget::Interface(0) => {
            return Ok("GONE".to_owned());
        }
        LinkTarget::Cgroup(id) => {
            let mount = mounts::cgroup2()?.unwrap_or_default();
            let dir = foreign::find(&mount, id, 8);
            dir.map_or_else(|| format!("cgroup {id}"), |dir| dir.display().to_string())
        }
        LinkTarget::Netns(inode) => format!("netns {inode}"),
        LinkTarget::Interface(index) => format!("interface {index}"),
        LinkTarget::Other => "another kind of place".to_owned(),
    };
    // Programs are few, links may be thousands.
    let tag = tags
        .entry(info.prog_id)
        .or_insert_with(|| tag(info.prog_id));
    Ok(format!(
        "at {target}, pinned, program {} tag {tag}",
        info.prog_id
    ))
}

/// The kernel's hash of the program's instructions.
fn tag(id: u32) -> String {
    let programs = aya::programs::loaded_programs().flatten();
    let found: Option<ProgramInfo> = { programs }.find(|info| info.id() == id);
    found.map_or_else(|| "?".to_owned(), |info| format!("{:016x}", info.tag()))
}

/// How full each map is that can be full.
fn maps(view: &View) -> Vec<Check> {
    let mut checks = Vec::new();
    for row in view.maps() {
        let spec = ALL.iter().find(|spec| spec.name == row.map);
        let array = spec.is_none_or(|s| matches!(s.kind, Kind::Array | Kind::PerCpuArray));
        let (false, Some(entries)) = (array || row.capacity == 0, row.entries) else {
            continue;
        };
        let part = entries as f64 / row.capacity as f64;
        let text = format!("{:.1}% ({entries} of {})", part * 100.0, row.capacity);
        let lru = spec.is_some_and(|spec| spec.kind == Kind::LruHash);
        let found = if part >= NEARLY_FULL && !lru {
            Err(text)
        } else {
            Ok(text)
        };
        let full = spec.map_or("", |spec| spec.full);
        let remedy = format!("when it is full: {full}; run fewer workloads on this node");
        checks.push(Check::wanted(format!("map {}", row.map), found, &remedy));
    }
    checks
}

/// Somebody's connect hook before ours.
fn before_ours(pins: &Pins) -> Check {
    let found = foreign::before_ours(pins);
    let found = if found.is_empty() {
        Ok("none".to_owned())
    } else {
        let each: Vec<String> = found
            .iter()
            .map(|f| format!("{} before {}: programs {:?}", f.cgroup, f.hook, f.programs))
            .collect();
        Err(each.join("; "))
    };
    Check::wanted(
        "connect hooks before ours",
        found,
        "one that rewrites destinations hides the service's address from the mesh: attach it at a \
         parent cgroup, or restart the agent when it stands at the same one",
    )
}

fn heartbeat(view: &View, alive: bool) -> Check {
    let age = view.heartbeat_age(clock::now());
    let text = age.map_or_else(
        || "never written".to_owned(),
        |age| format!("{} ms old", age.as_millis()),
    );
    Check::wanted(
        "heartbeat",
        if alive { Ok(text) } else { Err(text) },
        "no agent serves this instance: workloads follow their failure mode; start one, or remove \
         everything with `mesh cleanup`",
    )
}

/// Cgroups by the namespaces of the processes that live in them.
fn homes() -> BTreeMap<u64, BTreeSet<PathBuf>> {
    let mut homes: BTreeMap<u64, BTreeSet<PathBuf>> = BTreeMap::new();
    let Ok(Some(mount)) = mounts::cgroup2() else {
        return homes;
    };
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let dir = entry.path();
        let numeric = entry.file_name().to_string_lossy().parse::<u32>().is_ok();
        let netns = fs::metadata(dir.join("ns/net"));
        let (true, Ok(netns)) = (numeric, netns) else {
            continue;
        };
        let table = fs::read_to_string(dir.join("cgroup")).unwrap_or_default();
        if let Some(path) = table.lines().find_map(|line| line.strip_prefix("0::/")) {
            homes
                .entry(netns.ino())
                .or_default()
                .insert(mount.join(path));
        }
    }
    homes
}

/// Whether our hooks run for the sockets of every process of the workload.
fn effective(record: &Record, pins: &Pins, homes: &BTreeMap<u64, BTreeSet<PathBuf>>) -> Check {
    let name = format!("workload {}: hooks", record.key);
    const REMEDY: &str = "its processes live in a cgroup that is not below the attach point: name \
                          that cgroup's parent in `attach`";
    let Some(cgroups) = homes.get(&record.inode) else {
        return Check::info(&name, "no process lives in its namespace now");
    };
    // The agent's own sockets are there too, but not its process: it stands in the node's.
    let mut bad = Vec::new();
    for cgroup in cgroups {
        for (hook, attach) in [
            ("connect4", AttachType::Connect4),
            ("connect6", AttachType::Connect6),
            ("flow_ops", AttachType::SockOps),
        ] {
            let found = File::open(cgroup).and_then(|dir| sys::effective(dir, attach));
            let ours = ours(pins, hook);
            match found {
                Ok(ids) if ids.iter().any(|id| ours.contains(id)) => {}
                Ok(_) => bad.push(format!("{hook} does not run at {}", cgroup.display())),
                Err(error) => bad.push(format!("{hook} at {}: {error}", cgroup.display())),
            }
        }
    }
    let found = if bad.is_empty() {
        Ok(format!("effective in {} cgroups", cgroups.len()))
    } else {
        Err(bad.join("; "))
    };
    Check::required(name, found, REMEDY)
}

/// Numbers of our programs of that name.
fn ours(pins: &Pins, hook: &str) -> Vec<u32> {
    let links = pins.all_links().into_iter();
    links
        .filter(|(name, _, _)| name == hook)
        .filter_map(|(_, _, path)| sys::open_pin(&path).and_then(sys::link_info).ok())
        .map(|info| info.prog_id)
        .collect()
}

/// A marked connection from inside the namespace must find a listener.
fn path(record: &Record, mark: u32) -> Check {
    let found = match netns::inside_if(&record.netns, record.inode, || probe(mark)) {
        Ok(Some(Ok(families))) => Ok(format!("a connection arrives ({})", families.join(", "))),
        Ok(Some(Err(error))) => Err(error),
        Ok(None) => Err("its namespace is gone".to_owned()),
        Err(error) => Err(format!("its namespace can't be entered: {error}")),
    };
    Check::required(
        format!("workload {}: path", record.key),
        found,
        "rule, route or steer is missing in its namespace: restart the agent, which sets them up \
         again; `ip rule` and `ip route show table 1512` there show what is left",
    )
}

/// To an address that nobody has: only `steer` can have found the listener.
fn probe(mark: u32) -> Result<Vec<&'static str>, String> {
    let addresses = Netlink::open().and_then(|mut netlink| netlink.addresses());
    let addresses = addresses.map_err(|error| format!("its addresses: {error}"))?;
    let mut arrived = Vec::new();
    for source in Sources::of(&addresses).each() {
        let (to, family) = if source.is_ipv4() {
            (PROBE_V4, "IPv4")
        } else {
            (PROBE_V6, "IPv6")
        };
        one(SocketAddr::new(to, PROBE_PORT), mark).map_err(|error| format!("{family}: {error}"))?;
        arrived.push(family);
    }
    Ok(arrived)
}

fn one(towards: SocketAddr, mark: u32) -> io::Result<()> {
    let socket = sockets::connecting(towards, mark)?;
    let mut fds = [PollFd::new(socket.as_fd(), PollFlags::POLLOUT)];
    let limit = PollTimeout::try_from(PROBE_LIMIT).unwrap_or(PollTimeout::MAX);
    if poll(&mut fds, limit)? == 0 {
        return Err(io::Error::new(
            io::ErrorKind::TimedOut,
            "a connection does not arrive",
        ));
    }
    match socket.take_error()? {
        // It stood, and the agent ended it at once: nobody knows the address. (Without a listener
        // the answer to the SYN would be «refused».)
        Some(error) if error.kind() == io::ErrorKind::ConnectionReset => Ok(()),
        Some(error) => Err(error),
        None => Ok(()),
    }
}
