//! The eBPF object: embedded, loaded against the pinned maps, its programs pinned.

use std::{
    fs,
    os::fd::{AsFd, OwnedFd},
    path::PathBuf,
};

use aya::{Ebpf, EbpfLoader, programs::ProgramError};
use aya_log::EbpfLogger;
use mesh_common::maps::ALL;

use super::{
    atomics,
    error::KernelError,
    features::{Features, Role},
    pins::Pins,
    survey,
    sys::AttachType,
};

/// The object's bytes; empty: it was not built when this binary was.
#[cfg(mesh_bpf_object)]
pub(super) static OBJECT: &[u8] = aya::include_bytes_aligned!(env!("MESH_BPF_OBJECT_FILE"));
#[cfg(not(mesh_bpf_object))]
pub(super) static OBJECT: &[u8] = &[];

/// Programs that attach to the workloads' cgroups.
pub(super) const CGROUP_HOOKS: [(&str, AttachType); 6] = [
    ("flow_ops", AttachType::SockOps),
    // Before the connect hooks: what they hold must be given back.
    ("sock_release", AttachType::SockRelease),
    ("getpeername4", AttachType::GetPeername4),
    ("getpeername6", AttachType::GetPeername6),
    ("connect4", AttachType::Connect4),
    ("connect6", AttachType::Connect6),
];
/// Programs that attach there too, and that a kernel may refuse: it does without. Before Linux 5.12
/// binds can't be given options; up to 6.0 not this one. Before 5.15 the guard of the mark can't
/// tell workloads apart: `egress_guard` alone then drops what a wrong mark sends past the hooks.
pub(super) const OPTIONAL_HOOKS: [(&str, AttachType); 3] = [
    ("bind4", AttachType::Bind4),
    ("bind6", AttachType::Bind6),
    ("mark_guard", AttachType::SetSockopt),
];
/// Programs that attach there while a workload is in mode `loopback`, see `hooks`.
pub(super) const LOOPBACK_HOOKS: [(&str, AttachType); 2] = [
    ("getsockname4", AttachType::GetSockname4),
    ("getsockname6", AttachType::GetSockname6),
];
/// The one that attaches to the agent's cgroup then.
pub(super) const ORIGINAL_DST: (&str, AttachType) = ("original_dst", AttachType::Getsockopt);
/// Programs that attach to the workloads' cgroups while a rule denies datagrams, see `hooks`.
pub(super) const DATAGRAM_HOOKS: [(&str, AttachType); 2] = [
    ("sendmsg4", AttachType::Sendmsg4),
    ("sendmsg6", AttachType::Sendmsg6),
];

/// Every program of the object, by name.
pub(super) fn names() -> impl Iterator<Item = &'static str> {
    (CGROUP_HOOKS.iter().chain(&OPTIONAL_HOOKS))
        .chain(&LOOPBACK_HOOKS)
        .chain([&ORIGINAL_DST])
        .chain(&DATAGRAM_HOOKS)
        .map(|(name, _)| *name)
        .chain([STEER, EGRESS_GUARD, PROBE_OPS])
}

/// The program that attaches to the kubelet's cgroup.
pub(super) const PROBE_OPS: &str = "probe_ops";
/// The program that attaches to each workload's network namespace.
pub(super) const STEER: &str = "steer";
/// The program that attaches to the node's side of each guarded workload's veths.
pub(super) const EGRESS_GUARD: &str = "egress_guard";
/// The one that attaches to the agent's own cgroup too.
pub(super) const FLOW_OPS: &str = "flow_ops";

/// Reads what the programs say (aya-log) and hands it to the process's own log, where it has the
/// target `mesh::hook`.
pub(super) struct ProgramLog(EbpfLogger<&'static dyn log::Log>);

impl ProgramLog {
    /// The map of aya-log. Only objects built with the feature `log` have it.
    const MAP: &str = "AYA_LOGS";

    fn open(object: &mut Ebpf) -> Option<Self> {
        object.map(Self::MAP)?;
        match EbpfLogger::init(object) {
            Ok(logger) => {
                tracing::warn!("the eBPF object logs every connection: for debugging only");
                Some(Self(logger))
            }
            Err(error) => {
                tracing::warn!(error = chain(&error), "the programs' log can't be read");
                None
            }
        }
    }

    /// Passes on what was said since the last call. Only our own programs write there, and aya-log
    /// on their side makes every record: it takes one that it can't read for a bug and panics.
    pub(super) fn flush(&mut self) {
        self.0.flush();
    }
}

impl std::fmt::Debug for ProgramLog {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ProgramLog").finish_non_exhaustive()
    }
}

/// The loaded programs, by name.
pub(super) struct Programs {
    fds: Vec<(&'static str, OwnedFd)>,
    /// The variant of `flow_ops` for the agent's own cgroup, where the kernel needs one.
    agents: Option<OwnedFd>,
    /// What the kernel has.
    features: Features,
    log: Option<ProgramLog>,
}

impl std::fmt::Debug for Programs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Programs").finish_non_exhaustive()
    }
}

impl Programs {
    /// Whether mode `loopback` can work with this kernel.
    pub(super) const fn can_loop(&self) -> bool {
        self.features.ops_netns
    }

    /// Pins them anew in the place of whatever is pinned by their names, with those that were taken
    /// out.
    pub(super) fn pin_again(
        &self,
        pins: &Pins,
        taken: &[(&'static str, &OwnedFd)],
    ) -> Result<(), KernelError> {
        let own = self.fds.iter().map(|(name, fd)| (*name, fd));
        for (name, fd) in own.chain(taken.iter().copied()) {
            replace_pin(pins, name, fd, &mut Vec::new())?;
        }
        Ok(())
    }

    /// The reader of what they say.
    pub(super) fn log(&mut self) -> Option<ProgramLog> {
        self.log.take()
    }

    /// The variant of `flow_ops` for the agent's own cgroup; `None` where one does for all.
    pub(super) fn agents_flow_ops(&self) -> Option<&OwnedFd> {
        self.agents.as_ref()
    }

    pub(super) fn get(&self, name: &'static str) -> Result<&OwnedFd, KernelError> {
        self.fds
            .iter()
            .find(|(other, _)| *other == name)
            .map(|(_, fd)| fd)
            .ok_or_else(|| KernelError::Load {
                what: name.to_owned(),
                why: "the object lacks it".to_owned(),
            })
    }

    /// Whether the kernel took it.
    pub(super) fn has(&self, name: &str) -> bool {
        self.fds.iter().any(|(other, _)| *other == name)
    }

    pub(super) fn take(&mut self, name: &'static str) -> Result<OwnedFd, KernelError> {
        match self.fds.iter().position(|(other, _)| *other == name) {
            Some(index) => Ok(self.fds.swap_remove(index).1),
            None => Err(KernelError::Load {
                what: name.to_owned(),
                why: "the object lacks it".to_owned(),
            }),
        }
    }
}

/// Whether this binary holds the object at all.
pub(super) fn present() -> Result<(), KernelError> {
    if OBJECT.is_empty() {
        Err(KernelError::NotBuilt)
    } else {
        Ok(())
    }
}

/// Loads the object. With pins: against the pinned maps, those that are missing are made and
/// pinned (added to `made`), and the programs' pins are replaced. Without: for a probe, leaving
/// nothing. `capacities`: see [`super::KernelOptions`].
pub(super) fn load(
    pins: Option<(&Pins, &mut Vec<PathBuf>)>,
    capacities: &[(String, u32)],
) -> Result<Programs, KernelError> {
    present()?;
    let features = Features::probe();
    let mut loader = loader(features, Role::Workloads);
    for (map, entries) in capacities {
        loader.map_max_entries(map, *entries);
    }
    let (mut made, mut agents) = (None, None);
    if let Some((pins, list)) = pins {
        pins.check_layouts(Some(capacities))?;
        for spec in ALL {
            let path = pins.map(spec.name);
            if !path.exists() {
                list.push(path.clone());
            }
            loader.map_pin_path(spec.name, path);
        }
        made = Some((pins, list));
    }
    let mut object = open(&mut loader)?;
    let mut programs = Vec::new();
    for name in names() {
        let optional = OPTIONAL_HOOKS.iter().any(|(other, _)| *other == name);
        match load_one(&mut object, name) {
            Ok(fd) => programs.push((name, fd)),
            Err(error) if optional => {
                tracing::info!(program = name, %error, "this kernel does without");
            }
            Err(error) => return Err(error),
        }
    }
    if let Some((pins, list)) = made {
        for (name, fd) in &programs {
            replace_pin(pins, name, fd, list)?;
        }
        // Its link alone holds it: it is the same program to whoever looks at the pins.
        if !features.current_cgroup {
            agents = Some(load_agents(pins, features)?);
        }
    }
    Ok(Programs {
        fds: programs,
        agents,
        features,
        log: ProgramLog::open(&mut object),
    })
}

/// A loader that sets the object's constants for this kernel.
pub(super) fn loader(features: Features, role: Role) -> EbpfLoader<'static> {
    let mut loader = EbpfLoader::new();
    // No CO-RE relocations in the object: the kernel's own types are not needed.
    loader.btf(None);
    features.choose(&mut loader, role);
    loader
}

pub(super) fn open(loader: &mut EbpfLoader<'_>) -> Result<Ebpf, KernelError> {
    let fetching = atomics::fetching().map_err(KernelError::io("a program with an atomic"))?;
    let patched = (!fetching).then(|| atomics::without_fetch(OBJECT).0);
    let bytes = patched.as_deref().unwrap_or(OBJECT);
    loader.load(bytes).map_err(|error| KernelError::Load {
        what: "the eBPF object".to_owned(),
        why: chain(&error),
    })
}

/// `flow_ops` for the agent's own cgroup, against the maps that are pinned by now.
fn load_agents(pins: &Pins, features: Features) -> Result<OwnedFd, KernelError> {
    let mut loader = loader(features, Role::Agent);
    for spec in ALL {
        loader.map_pin_path(spec.name, pins.map(spec.name));
    }
    load_one(&mut open(&mut loader)?, FLOW_OPS)
}

fn replace_pin(
    pins: &Pins,
    name: &str,
    fd: &OwnedFd,
    made: &mut Vec<PathBuf>,
) -> Result<(), KernelError> {
    let path = pins.prog(name);
    match fs::remove_file(&path) {
        Ok(()) => {}
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => made.push(path.clone()),
        Err(error) => return Err(KernelError::io(format!("{}", path.display()))(error)),
    }
    super::sys::pin(fd, &path).map_err(KernelError::io(format!("pinning {}", path.display())))
}

fn load_one(object: &mut Ebpf, name: &'static str) -> Result<OwnedFd, KernelError> {
    let refused = |error: &ProgramError| KernelError::Load {
        what: format!("program {name}"),
        why: chain(error),
    };
    let program = object.program_mut(name).ok_or_else(|| KernelError::Load {
        what: format!("program {name}"),
        why: "the object lacks it".to_owned(),
    })?;
    survey::load(program).map_err(|error| refused(&error))?;
    let fd = program.fd().map_err(|error| refused(&error))?;
    fd.as_fd()
        .try_clone_to_owned()
        .map_err(KernelError::io(name))
}

/// An error with its causes; a verifier log is cut to its end, where the reason stands.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let inner_text = inner.to_string();
        if !text.contains(&inner_text) {
            text.push_str(": ");
            text.push_str(&inner_text);
        }
        cause = inner.source();
    }
    const KEEP: usize = 2_000;
    if text.len() <= KEEP {
        return text;
    }
    let mut start = text.len() - KEEP;
    while !text.is_char_boundary(start) {
        start += 1;
    }
    format!("... {}", &text[start..])
}

#[cfg(test)]
mod tests {
    use super::*;

    /// In a build without the object, starting says how to get it; with it, it is an ELF file.
    #[test]
    fn object_is_there_or_its_absence_says_what_to_run() {
        match present() {
            Ok(()) => assert!(OBJECT.starts_with(b"\x7fELF")),
            Err(error) => assert!(
                error.to_string().contains("cargo xtask build-ebpf"),
                "{error}"
            ),
        }
    }

    #[test]
    fn long_verifier_log_keeps_its_end() {
        let error = std::io::Error::other(format!("{}é last line", "x".repeat(5_000)));
        let text = chain(&error);
        assert!(text.len() < 2_100 && text.ends_with("é last line"));
    }
}
