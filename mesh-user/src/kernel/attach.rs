//! Starts the kernel side: loads, fills `CONFIG`, attaches or takes over; undoes all of it when a
//! step fails.

use std::{
    fs, io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
};

use super::{
    Kernel, KernelOptions, Parts,
    audit::Hook,
    cgroups::{self, Cgroup},
    config, cookie,
    error::KernelError,
    feedback::Counters,
    hooks::{self, Hooks},
    kubelet::Kubelet,
    marks::Marks,
    object::{
        self, CGROUP_HOOKS, EGRESS_GUARD, FLOW_OPS, OPTIONAL_HOOKS, PROBE_OPS, Programs, STEER,
    },
    origin::Origins,
    pins::{Lock, Pins},
    sys::{self, AttachType, LinkTarget},
    tables::{Sockets, Tables},
    write_config,
};

/// What was made so far; removed in reverse on drop, unless kept.
#[derive(Default)]
struct Made {
    pins: Vec<PathBuf>,
    pin_dirs: Option<Pins>,
    agent_cgroup: Option<PathBuf>,
    /// Where the process was before it entered the agent's cgroup.
    home: Option<PathBuf>,
    keep: bool,
}

impl Drop for Made {
    fn drop(&mut self) {
        if self.keep {
            return;
        }
        for path in self.pins.iter().rev() {
            let _ = fs::remove_file(path);
        }
        if let Some(pins) = &self.pin_dirs {
            // Empty directories only: another agent's pins stay.
            for dir in [&pins.progs(), &pins.links(), &pins.root, &pins.instance] {
                let _ = fs::remove_dir(dir);
            }
        }
        if let Some(home) = &self.home {
            let _ = fs::write(home.join("cgroup.procs"), "0");
        }
        if let Some(cgroup) = &self.agent_cgroup {
            let _ = fs::remove_dir(cgroup);
        }
    }
}

/// Everything of [`Kernel::start`] that has to be undone on an error, with the instance taken.
///
/// `shards`: how many shards the listeners have that an agent left which lives; the count stays
/// until ours are in their place.
pub(super) fn start(
    options: &KernelOptions,
    mount: &Path,
    points: Vec<Cgroup>,
    lock: Lock,
    shards: Option<u32>,
) -> Result<Kernel, KernelError> {
    let mut made = Made::default();
    match open(options, mount, points, &mut made, shards) {
        Ok(parts) => {
            made.keep = true;
            Ok(Kernel::new(options, parts, lock))
        }
        Err(error) => {
            drop(made);
            // Last: as long as we hold it, nobody starts in the middle of what is taken back.
            lock.undo();
            Err(error)
        }
    }
}

fn open(
    options: &KernelOptions,
    mount: &Path,
    points: Vec<Cgroup>,
    made: &mut Made,
    shards: Option<u32>,
) -> Result<Parts, KernelError> {
    let pins = Pins::make(&options.instance)?;
    made.pin_dirs = Some(pins.clone());
    pins.check_versions()?;
    let mut programs = object::load(Some((&pins, &mut made.pins)), &options.capacities)?;
    made.home = own_cgroup(mount);
    let (agent, fresh) = cgroups::enter_agent(mount, &options.instance)?;
    made.agent_cgroup = fresh.then(|| agent.path.clone());
    let mut tables = Tables::open(&pins)?;
    let cookie = cookie::own().map_err(KernelError::io("network namespace cookie"))?;
    // An operator's «redirect off» outlives a restart.
    let before = tables.config.get(&0, 0).ok();
    let paused = before.map_or(0, |before| before.paused);
    // The rules in the workloads that it left are for its bits.
    if let Some(found) = before.as_ref().and_then(Marks::of)
        && found != options.marks
    {
        return Err(KernelError::OtherMarks {
            found: found.mask(),
            wanted: options.marks.mask(),
        });
    }
    let mut config = config(options, agent.id, cookie, paused);
    config.shards = shards.unwrap_or(config.shards);
    write_config(&mut tables, config)?;
    let named = options.kubelet_cgroup.as_deref();
    let kubelet = Kubelet::start(&pins, mount, named, programs.take(PROBE_OPS)?)?;
    made.pins.extend(kubelet.pin(&pins));
    // Of an agent before us.
    let loopback = (tables.pod_by_netns.iter().flatten())
        .any(|(_, entry)| entry.mode == mesh_common::pod::MODE_LOOPBACK);
    let standing = attach_all(&pins, &programs, &points, &agent, loopback, &mut made.pins)?;
    Ok(Parts {
        counters: Counters::map(&pins)?,
        listeners: Sockets::pinned(&pins)?,
        origins: Origins::open(&pins)?,
        steer: programs.take(STEER)?,
        guard: programs.take(EGRESS_GUARD)?,
        standing,
        kubelet,
        log: programs.log(),
        hooks: Hooks::new(programs, points, agent),
        pins,
        tables,
        config,
    })
}

/// Attaches every cgroup hook that is always needed at every point, `flow_ops` at the agent's cgroup too, and removes
/// links of points that are not named any more.
pub(super) fn attach_all(
    pins: &Pins,
    programs: &Programs,
    points: &[Cgroup],
    agent: &Cgroup,
    loopback: bool,
    made: &mut Vec<PathBuf>,
) -> Result<Vec<Hook>, KernelError> {
    let mut wanted: Vec<Hook> = Vec::new();
    let agent_covered = points
        .iter()
        .any(|point| agent.path.starts_with(&point.path));
    let optional = OPTIONAL_HOOKS.into_iter();
    let optional = optional.filter(|(name, _)| programs.has(name));
    for (name, kind) in CGROUP_HOOKS.into_iter().chain(optional) {
        for point in points {
            let pin = attach(pins, programs.get(name)?, name, kind, point, made)?;
            wanted.push(hook(name, kind, point, pin));
        }
        if name == FLOW_OPS {
            // A variant of its own must stand there also when the workloads' one runs too: that
            // one takes no socket for the agent's.
            let own = programs.agents_flow_ops();
            let covered = own.is_none() && agent_covered;
            if !covered {
                let program = own.map_or_else(|| programs.get(name), Ok)?;
                let pin = attach(pins, program, name, kind, agent, made)?;
                wanted.push(hook(name, kind, agent, pin));
            }
        }
    }
    let kept = hooks::renew(pins, programs, points, agent, loopback)?;
    for (name, _, path) in pins.all_links() {
        let elsewhere = [STEER, EGRESS_GUARD, PROBE_OPS].contains(&name.as_str());
        let known = kept.contains(&path) || wanted.iter().any(|hook| hook.pin == path);
        if !elsewhere && !known {
            fs::remove_file(&path).map_err(KernelError::io(format!("{}", path.display())))?;
        }
    }
    Ok(wanted)
}

/// A hook that must stand.
pub(super) fn hook(program: &'static str, kind: AttachType, cgroup: &Cgroup, pin: PathBuf) -> Hook {
    Hook {
        program,
        kind,
        cgroup: cgroup.path.clone(),
        id: cgroup.id,
        pin,
    }
}

/// One hook at one cgroup: the program of a pinned link is replaced in place, so that exactly one
/// stands there and no connection meets a gap.
pub(super) fn attach(
    pins: &Pins,
    program: &OwnedFd,
    name: &'static str,
    kind: AttachType,
    point: &Cgroup,
    made: &mut Vec<PathBuf>,
) -> Result<PathBuf, KernelError> {
    let path = pins.link(name, point.id);
    let refused = |source| KernelError::Attach {
        program: name,
        at: point.path.display().to_string(),
        source,
    };
    match sys::open_pin(&path) {
        Ok(link) => {
            let info = sys::link_info(&link).map_err(refused)?;
            if info.target == LinkTarget::Cgroup(point.id) {
                sys::link_update(&link, program).map_err(refused)?;
                return Ok(path);
            }
            // Its cgroup was removed, and the kernel gave the number to a new one.
            fs::remove_file(&path).map_err(refused)?;
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(refused(error)),
    }
    let link = sys::link_create(program, &point.dir, kind).map_err(refused)?;
    sys::pin(&link, &path).map_err(refused)?;
    made.push(path.clone());
    Ok(path)
}

/// The calling process's cgroup in the unified hierarchy.
fn own_cgroup(mount: &Path) -> Option<PathBuf> {
    let table = fs::read_to_string("/proc/self/cgroup").ok()?;
    let path = table.lines().find_map(|line| line.strip_prefix("0::/"))?;
    Some(mount.join(path))
}
