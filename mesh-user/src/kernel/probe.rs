//! What this machine can do: found by trying, never by version string.

use std::{
    fs::{self, File},
    io,
    path::Path,
};

use serde::Serialize;

use super::{
    KernelError, atomics, capability, cgroups, cookie,
    features::{self, CGROUP_SOCK, EXIT, SK_LOOKUP, SOCK_ADDR, SOCK_OPS, call, mov_r0},
    mounts, object,
    sys::{self, AttachType},
};

/// One line of `mesh check`.
#[derive(Clone, Debug, Serialize)]
pub struct Check {
    /// What was looked at: `kernel`, `btf`, `cgroup2`, `bpffs`, `capability BPF`, ...
    pub name: String,
    /// Whether it is good.
    pub ok: bool,
    /// Whether the agent can't run without it.
    pub required: bool,
    /// What was found.
    pub found: String,
    /// What to do when it is not good.
    pub remedy: Option<String>,
}

impl Check {
    pub(super) fn info(name: &str, found: impl Into<String>) -> Self {
        Self {
            name: name.to_owned(),
            ok: true,
            required: false,
            found: found.into(),
            remedy: None,
        }
    }

    /// Something that the agent can't run without.
    pub(super) fn required(
        name: impl Into<String>,
        found: Result<String, String>,
        remedy: &str,
    ) -> Self {
        let ok = found.is_ok();
        Self {
            name: name.into(),
            ok,
            required: true,
            found: found.unwrap_or_else(|error| error),
            remedy: (!ok).then(|| remedy.to_owned()),
        }
    }

    /// Something that is good to have.
    pub(super) fn wanted(
        name: impl Into<String>,
        found: Result<String, String>,
        remedy: &str,
    ) -> Self {
        Self {
            required: false,
            ..Self::required(name, found, remedy)
        }
    }
}

/// Looks at everything that the agent needs. Leaves nothing behind.
pub fn check() -> Vec<Check> {
    let mut checks = vec![Check::info("kernel", release()), btf(), cgroup2(), bpffs()];
    let set = capability::effective();
    checks.extend(capability::NEEDS.iter().map(|need| {
        let found = if need.met(set) {
            Ok("granted".to_owned())
        } else {
            Err("missing".to_owned())
        };
        Check::required(
            format!("capability {}", need.name),
            found,
            &format!(
                "it {}: run as root, or add it to the container's or unit's capabilities",
                need.purpose
            ),
        )
    }));
    checks.push(kubelet_cgroup());
    checks.push(user_namespace());
    checks.push(netns_cookie());
    if capability::require().is_ok() {
        checks.extend(features());
        checks.push(ebpf_object());
        checks.push(foreign_hooks());
    } else {
        // One line, not a dozen that blame the kernel for the same EPERM.
        checks.push(Check::required(
            "kernel features",
            Err("not tried: the process may not call bpf(2)".to_owned()),
            "grant what the capability and user namespace lines ask for, then check again",
        ));
    }
    checks
}

/// Where the kubelet's probes come from.
fn kubelet_cgroup() -> Check {
    let mount = mounts::cgroup2().ok().flatten();
    let found = match mount.and_then(|mount| super::kubelet::usual(&mount)) {
        Some(path) => Ok(path.display().to_string()),
        None => Err("none under a usual name: probes meet the inbound rules".to_owned()),
    };
    Check::wanted(
        "kubelet cgroup",
        found,
        "only where a kubelet runs and inbound rules are used: name its cgroup in \
         agent.kubelet-cgroup",
    )
}

/// A full set of capabilities means nothing to bpf(2) in a namespace of one's own.
fn user_namespace() -> Check {
    let found = if capability::in_first_user_namespace() {
        Ok("the host's".to_owned())
    } else {
        Err("one of its own: capabilities don't reach the kernel's programs".to_owned())
    };
    Check::required(
        "user namespace",
        found,
        "run it in the host's: hostUsers: true in the pod, no rootless container, no unshare -r",
    )
}

fn release() -> String {
    fs::read_to_string("/proc/sys/kernel/osrelease")
        .map_or_else(|error| error.to_string(), |text| text.trim().to_owned())
}

/// For tools that print maps; the programs read stable contexts only and need no CO-RE.
fn btf() -> Check {
    const PATH: &str = "/sys/kernel/btf/vmlinux";
    let found = fs::metadata(PATH)
        .map(|stat| format!("{PATH}, {} KiB", stat.len() / 1_024))
        .map_err(|error| format!("{PATH}: {error}"));
    Check::wanted(
        "btf",
        found,
        "not needed by this build; a kernel with CONFIG_DEBUG_INFO_BTF helps when debugging",
    )
}

fn cgroup2() -> Check {
    let found = match mounts::cgroup2() {
        // Mounted, but hidden by another mount or out of a chroot: the path must lead there.
        Ok(Some(path)) if path.join("cgroup.procs").exists() => Ok(path.display().to_string()),
        Ok(Some(path)) => Err(format!("{} is hidden by another mount", path.display())),
        Ok(None) => Err("no cgroup2 mount in /proc/self/mountinfo".to_owned()),
        Err(error) => Err(format!("/proc/self/mountinfo: {error}")),
    };
    Check::required(
        "cgroup2",
        found,
        "mount -t cgroup2 none /sys/fs/cgroup/unified, or give the container the host's",
    )
}

fn bpffs() -> Check {
    use nix::sys::statvfs::{FsFlags, statvfs};
    let (found, remedy) = match mounts::bpffs() {
        Ok(Some(path)) => match statvfs(&path) {
            Ok(stat) if stat.flags().contains(FsFlags::ST_RDONLY) => (
                Err(format!("{} is mounted read-only", path.display())),
                "mount -o remount,rw it, or mount it without readOnly in the container",
            ),
            Ok(_) => (Ok(path.display().to_string()), ""),
            Err(error) => (
                Err(format!("{}: {error}", path.display())),
                "mount -t bpf bpf /sys/fs/bpf",
            ),
        },
        // The agent mounts one itself where the kernel has made the place for it.
        Ok(None) if Path::new("/sys/fs/bpf").is_dir() => (
            Ok("none yet: the agent mounts one at its start".to_owned()),
            "",
        ),
        Ok(None) => (
            Err("no bpffs, and no /sys/fs/bpf to mount one at".to_owned()),
            "mount sysfs at /sys (its fs/bpf needs CONFIG_BPF_SYSCALL), or a bpffs anywhere: \
             mount -t bpf bpf DIR",
        ),
        Err(error) => (
            Err(format!("/proc/self/mountinfo: {error}")),
            "mount proc at /proc",
        ),
    };
    Check::required("bpffs", found, remedy)
}

/// Each program type, helper and map type that the object uses: the smallest program of its kind.
fn features() -> Vec<Check> {
    let program = |name: &str, kind, attach: AttachType, insns: &[u64], since: &str| {
        let found = sys::prog_load(kind, attach as u32, insns);
        feature(name, found.map(drop), since)
    };
    let allow = [mov_r0(1), EXIT];
    let connect = AttachType::Connect4;
    vec![
        program(
            "program cgroup_sock_addr",
            SOCK_ADDR,
            connect,
            &allow,
            "4.17",
        ),
        program(
            "program getpeername",
            SOCK_ADDR,
            AttachType::GetPeername4,
            &allow,
            "5.8",
        ),
        program(
            "program sock_ops",
            SOCK_OPS,
            AttachType::SockOps,
            &allow,
            "4.13",
        ),
        program(
            "program sock_release",
            CGROUP_SOCK,
            AttachType::SockRelease,
            &allow,
            "5.9",
        ),
        program(
            "program sk_lookup",
            SK_LOOKUP,
            AttachType::SkLookup,
            &allow,
            "5.9",
        ),
        without(
            "interface in sk_lookup",
            features::interface(),
            "Linux 5.17 or newer has it; until then a connection that a foreign load balancer sends \
             to another workload of this node is not captured",
        ),
        without(
            "helper bpf_set_retval",
            features::set_retval(),
            "Linux 5.18 or newer has it; until then a refused connect fails with EPERM instead of \
             ECONNREFUSED",
        ),
        without(
            "helper bpf_skc_to_mptcp_sock in connect",
            features::multipath(),
            "Linux 5.19 or newer has it; until then a multipath TCP connect that fails before its \
             SYN keeps its place of a connection cap",
        ),
        program(
            "helper bpf_get_netns_cookie in connect",
            SOCK_ADDR,
            connect,
            &[call(122), mov_r0(1), EXIT],
            "5.7",
        ),
        without(
            "helper bpf_get_current_cgroup_id in sock_ops",
            features::current_cgroup(),
            "nothing to do: a variant of flow_ops for the agent's cgroup takes its place",
        ),
        without(
            "helper bpf_get_netns_cookie in sock_ops",
            features::ops_netns(),
            "Linux 5.15 or newer has it; until then mode loopback is refused",
        ),
        without(
            "helper bpf_get_netns_cookie in setsockopt",
            features::sockopt_netns(),
            "Linux 5.15 or newer has it; until then a guarded workload may set any mark, and the \
             guard drops what it sends with it",
        ),
        Check::wanted(
            "fetching atomics",
            match atomics::fetching() {
                Ok(true) => Ok("work: splits and connection caps of the kernel are exact".into()),
                Ok(false) => Err(
                    "this kernel lacks them: the kernel's splits and connection caps \
                                  are off by as many connections as CPUs connect at once"
                        .into(),
                ),
                Err(error) => Err(error.to_string()),
            },
            "Linux 5.12 or newer has them",
        ),
        feature(
            "map ring buffer",
            sys::map_create(27, 0, 0, 4_096, 0).map(drop),
            "5.8",
        ),
        feature(
            "map sockhash with cookies",
            sys::map_create(18, 8, 8, 1, 0).map(drop),
            "5.7",
        ),
        feature(
            "map memory mapping",
            sys::map_create(2, 4, 8, 1, 1 << 10).map(drop),
            "5.5",
        ),
    ]
}

/// Something with a documented way to do without.
fn without(name: &str, found: io::Result<()>, remedy: &str) -> Check {
    let found = found
        .map(|()| "works".to_owned())
        .map_err(|error| format!("this kernel lacks it ({error})"));
    Check::wanted(name, found, remedy)
}

fn feature(name: &str, found: io::Result<()>, since: &str) -> Check {
    let text = found.map(|()| "works".to_owned()).map_err(|error| {
        if error.raw_os_error() == Some(libc::EPERM) {
            // Not for lack of a capability, which was looked at before.
            format!("bpf(2) is forbidden ({error}): by a seccomp profile, or by kernel lockdown")
        } else {
            format!("this kernel lacks it ({error})")
        }
    });
    Check::required(
        name,
        text,
        &format!("Linux {since} or newer has it; where bpf(2) is forbidden, allow it first"),
    )
}

fn netns_cookie() -> Check {
    let found = cookie::own()
        .map(|cookie| format!("this namespace has {cookie}"))
        .map_err(|error| error.to_string());
    Check::required(
        "network namespace cookie",
        found,
        "Linux 5.14 or newer has SO_NETNS_COOKIE; older ones tell it to a connect hook, for which \
         the process must be in a cgroup of the unified hierarchy",
    )
}

/// The object itself, loaded and thrown away: the verifier's word on the real programs.
fn ebpf_object() -> Check {
    let found = object::load(None, &[]).map(|_| "every program loads".to_owned());
    let remedy = match &found {
        Err(KernelError::NotBuilt) => "cargo xtask build-ebpf, then build mesh again",
        _ => {
            "report it with the text above and the kernel's release: the lines before say whether a \
             feature is missing"
        }
    };
    Check::required(
        "eBPF object",
        found.map_err(|error| error.to_string()),
        remedy,
    )
}

/// Connect hooks of others, for the record: ours runs before those of parent cgroups.
fn foreign_hooks() -> Check {
    const NAME: &str = "connect hooks at the root cgroup";
    let count = cgroups::mount()
        .map_err(|error| error.to_string())
        .and_then(|mount| File::open(mount).map_err(|error| error.to_string()))
        .and_then(|root| {
            sys::effective(root, AttachType::Connect4).map_err(|error| error.to_string())
        });
    match count {
        Ok(ids) if ids.is_empty() => Check::info(NAME, "none"),
        Ok(ids) => Check::info(
            NAME,
            format!("{} (programs {ids:?}), run after ours", ids.len()),
        ),
        Err(error) => Check::wanted(
            NAME,
            Err(error),
            "not needed to run; bpftool cgroup tree shows who else rewrites connects",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::{
        features::{load_r0, mov_r1},
        *,
    };

    #[test]
    fn instructions_have_the_kernels_encoding() {
        // mov64 r1, -111: opcode 0xb7, register 1 in the low nibble of byte 1, value in bytes 4-7.
        assert_eq!(
            mov_r1(-111).to_le_bytes(),
            [0xb7, 1, 0, 0, 0x91, 0xff, 0xff, 0xff]
        );
        assert_eq!(load_r0(64).to_le_bytes(), [0x61, 0x10, 64, 0, 0, 0, 0, 0]);
        assert_eq!(mov_r0(1).to_le_bytes(), [0xb7, 0, 0, 0, 1, 0, 0, 0]);
        assert_eq!(call(187).to_le_bytes(), [0x85, 0, 0, 0, 187, 0, 0, 0]);
    }

    #[test]
    fn only_a_bad_check_carries_a_remedy() {
        let good = Check::required("x", Ok("there".into()), "do this");
        assert!(good.ok && good.remedy.is_none());
        let bad = Check::wanted("x", Err("gone".into()), "do this");
        assert!(!bad.ok && !bad.required && bad.remedy.is_some_and(|text| text == "do this"));
    }
}
