//! Whether a socket option may be set: a guarded workload keeps its hands off our mark bits.

use mesh_common::{
    abi::{ABI_VERSION, Config},
    pod::{POD_GUARDED, PodEntry},
};

/// `SOL_SOCKET`.
pub const SOL_SOCKET: u32 = 1;
/// `SO_MARK`.
pub const SO_MARK: u32 = 36;

/// What the decision may look up; asked only when needed.
pub trait World {
    /// `CONFIG[0]`.
    fn config(&self) -> Option<Config>;
    /// Cgroup id of the calling process.
    fn cgroup(&self) -> u64;
    /// The workload of the socket's network namespace.
    fn pod(&self) -> Option<PodEntry>;
    /// The socket's mark now.
    fn mark(&self) -> u32;
    /// The mark that is asked for; `None` when the option is too short to be one.
    fn wanted(&self) -> Option<u32>;
}

/// The decision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// None of our business.
    Pass,
    /// A mark that leaves our bits as they are: the bytes that were looked at are set, not those
    /// that may stand at the caller's address by then.
    Sealed,
    /// EPERM; with the workload's number.
    Refuse(u32),
}

/// Decides.
#[inline(always)]
pub fn decide(level: u32, name: u32, world: &impl World) -> Verdict {
    if level != SOL_SOCKET || name != SO_MARK {
        return Verdict::Pass;
    }
    let Some(config) = world.config() else {
        return Verdict::Pass;
    };
    // The agent marks its own sockets inside the workload's namespace.
    if config.abi != ABI_VERSION || world.cgroup() == config.agent_cgroup {
        return Verdict::Pass;
    }
    let Some(pod) = world.pod() else {
        return Verdict::Pass;
    };
    if pod.flags & POD_GUARDED == 0 {
        return Verdict::Pass;
    }
    // Too short: the kernel refuses it itself.
    let Some(wanted) = world.wanted() else {
        return Verdict::Pass;
    };
    if (wanted ^ world.mark()) & config.mark_mask == 0 {
        Verdict::Sealed
    } else {
        Verdict::Refuse(pod.pod_id)
    }
}

#[cfg(test)]
mod tests;
