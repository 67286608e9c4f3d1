//! The decisions.

pub mod connect;
pub mod datagram;
pub mod guard;
pub mod mark;
pub mod shield;
pub mod steer;

use mesh_common::service::ServiceEntry;

/// IP protocol number of TCP.
pub const TCP: u8 = 6;
/// IP protocol number of UDP.
pub const UDP: u8 = 17;

/// Whether the agent is alive: its heartbeat is not older than `stale_ns`. All times are
/// CLOCK_MONOTONIC in nanoseconds; a heartbeat of 0 was never written.
#[inline(always)]
pub const fn fresh(heartbeat: u64, now: u64, stale_ns: u64) -> bool {
    heartbeat != 0 && now.saturating_sub(heartbeat) <= stale_ns
}

/// The slot that the sequence number chooses: slots repeat in their weighted, interleaved order,
/// so any run of `slots_len` connections of the node hits the weights exactly.
#[inline(always)]
pub const fn slot(entry: &ServiceEntry, sequence: u64) -> u32 {
    if entry.slots_len == 0 {
        return entry.slots_off;
    }
    entry
        .slots_off
        .wrapping_add((sequence % entry.slots_len as u64) as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heartbeat_is_fresh_up_to_its_limit() {
        assert!(fresh(10, 110, 100));
        assert!(!fresh(10, 111, 100));
        assert!(
            fresh(120, 110, 100),
            "a tick later than our own clock read is fresh"
        );
        assert!(!fresh(0, 50, 100), "never written");
    }

    #[test]
    fn slots_wrap_inside_their_range() {
        let entry = ServiceEntry {
            service_id: 1,
            decision: 0,
            slots_off: 7,
            slots_len: 3,
            flags: 0,
            _pad: 0,
        };
        let picked: [u32; 7] = core::array::from_fn(|i| slot(&entry, i as u64));
        assert_eq!(picked, [7, 8, 9, 7, 8, 9, 7]);
        assert_eq!(
            slot(
                &ServiceEntry {
                    slots_len: 0,
                    ..entry
                },
                5
            ),
            7
        );
        assert_eq!(slot(&entry, u64::MAX), 7 + (u64::MAX % 3) as u32);
    }
}
