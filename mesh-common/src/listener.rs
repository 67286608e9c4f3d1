//! Keys of the agent's in-pod listeners.

use crate::{abi::SHARDS_MAX, addr::Addr, plain::plain};

/// Key of `LISTENERS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ListenerKey {
    /// The workload whose namespace the listener stands in.
    pub pod_id: u32,
    /// What it serves: [`KIND_OUT`] or [`KIND_IN`].
    pub kind: u16,
    /// 0 to `Config::shards` - 1.
    pub shard: u16,
}
plain!(ListenerKey, 8, [u32, u16, u16]);

/// Connections that leave the workload.
pub const KIND_OUT: u16 = 0;
/// Connections that come to the workload.
pub const KIND_IN: u16 = 1;

/// The listener shard of a connection: the same for every packet of it, so that the ACK of a SYN
/// cookie meets the same listener. 0 to `shards` - 1; `shards` counts as 1 to [`SHARDS_MAX`].
///
/// Multiplicative hashing, high bits taken: Linux hands out ephemeral ports of one parity, so the
/// low bits alone would leave every second shard idle.
#[inline(always)]
pub fn shard(remote: &Addr, remote_port: u16, shards: u32) -> u16 {
    let words = remote.v6_be();
    let seed = words[0] ^ words[1] ^ words[2] ^ words[3];
    let mixed = (seed ^ u32::from(remote_port)).wrapping_mul(0x9E37_79B1);
    let hash = (mixed ^ (mixed >> 15)).wrapping_mul(0x85EB_CA77);
    // Scaled, not a remainder: uses the high bits, and the verifier sees the bound.
    let count = u64::from(shards.clamp(1, SHARDS_MAX));
    ((u64::from(hash) * count) >> 32) as u16
}
