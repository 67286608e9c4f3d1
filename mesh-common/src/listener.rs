//! Keys of the agent's in-pod listeners.

use crate::plain::plain;

/// Key of `LISTENERS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ListenerKey {
    /// The workload whose namespace the listener stands in.
    pub pod_id: u32,
    /// What it serves: [`KIND_OUT`].
    pub kind: u16,
    /// 0 to `Config::shards` - 1.
    pub shard: u16,
}
plain!(ListenerKey, 8, [u32, u16, u16]);

/// Connections that leave the workload.
pub const KIND_OUT: u16 = 0;
/// Connections that come to the workload.
pub const KIND_IN: u16 = 1;
