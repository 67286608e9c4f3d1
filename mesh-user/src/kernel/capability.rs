//! Capabilities of the process, from /proc/self/status.

use std::fs;

use super::error::KernelError;

/// A capability, and what it is for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Need {
    /// Without `CAP_`.
    pub(super) name: &'static str,
    bits: &'static [u8],
    pub(super) purpose: &'static str,
}

const NET_ADMIN: u8 = 12;
const SYS_ADMIN: u8 = 21;
const BPF: u8 = 39;

/// What the agent can't run without.
pub(super) const NEEDS: [Need; 3] = [
    Need {
        name: "BPF",
        bits: &[BPF, SYS_ADMIN],
        purpose: "loads programs and makes maps",
    },
    Need {
        name: "NET_ADMIN",
        bits: &[NET_ADMIN],
        purpose: "attaches network programs, sets routes, marks sockets",
    },
    Need {
        name: "SYS_ADMIN",
        bits: &[SYS_ADMIN],
        purpose: "enters workloads' network namespaces, pins objects",
    },
];

/// The effective set, as a bit mask; nothing when it can't be read.
pub(super) fn effective() -> u64 {
    parse(&fs::read_to_string("/proc/self/status").unwrap_or_default())
}

fn parse(status: &str) -> u64 {
    status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok())
        .unwrap_or(0)
}

impl Need {
    /// Whether one of the capabilities that allow it is in the set.
    pub(super) fn met(&self, set: u64) -> bool {
        self.bits.iter().any(|bit| set & (1 << bit) != 0)
    }
}

/// Inode of the user namespace that the kernel starts with: `PROC_USER_INIT_INO`.
const FIRST_USER_NAMESPACE: &str = "user:[4026531837]";

/// Whether capabilities reach the kernel's programs: bpf(2) looks at the first user namespace only.
/// A system that can't say is taken to have no other.
pub(super) fn in_first_user_namespace() -> bool {
    fs::read_link("/proc/self/ns/user")
        .map_or(true, |link| link.as_os_str() == FIRST_USER_NAMESPACE)
}

/// Refuses with the names of all that are missing.
pub(super) fn require() -> Result<(), KernelError> {
    missing(effective())?;
    if in_first_user_namespace() {
        Ok(())
    } else {
        Err(KernelError::UserNamespace)
    }
}

fn missing(set: u64) -> Result<(), KernelError> {
    let names: Vec<_> = NEEDS
        .iter()
        .filter(|need| !need.met(set))
        .map(|need| need.name)
        .collect();
    if names.is_empty() {
        Ok(())
    } else {
        Err(KernelError::MissingCapability(names))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_capabilities_are_all_named() {
        assert!(
            missing(1 << NET_ADMIN | 1 << SYS_ADMIN).is_ok(),
            "SYS_ADMIN covers BPF"
        );
        assert!(missing(u64::MAX).is_ok());
        let error = missing(1 << BPF).unwrap_err().to_string();
        assert!(error.contains("NET_ADMIN, SYS_ADMIN"), "{error}");
    }

    #[test]
    fn effective_set_is_read_from_its_line() {
        assert_eq!(parse("CapPrm:\t0f\nCapEff:\t00000000000000ff\n"), 0xff);
        assert_eq!(parse("CapEff: zz"), 0);
        assert_eq!(parse(""), 0);
    }
}
