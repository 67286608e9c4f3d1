use core::cell::Cell;

use mesh_common::{
    abi::{AGENT_MARK, CAPTURE_MARK, MARK_MASK},
    pod::{FAIL_OPEN, MODE_MARK},
};

use super::*;

const AGENT: u64 = 7;

struct Fake {
    config: bool,
    cgroup: u64,
    flags: u16,
    mark: u32,
    wanted: Option<u32>,
    asked_pod: Cell<bool>,
}

impl Fake {
    fn new(mark: u32, wanted: u32) -> Self {
        Self {
            config: true,
            cgroup: 1,
            flags: POD_GUARDED,
            mark,
            wanted: Some(wanted),
            asked_pod: Cell::new(false),
        }
    }
}

impl World for Fake {
    fn config(&self) -> Option<Config> {
        self.config.then_some(Config {
            abi: ABI_VERSION,
            capture_mark: CAPTURE_MARK,
            agent_mark: AGENT_MARK,
            mark_mask: MARK_MASK,
            agent_cgroup: AGENT,
            heartbeat_stale_ns: 0,
            shards: 1,
            unknown_netns: 0,
            paused: 0,
            _pad: 0,
            agent_netns: 0,
            _reserved: 0,
        })
    }
    fn cgroup(&self) -> u64 {
        self.cgroup
    }
    fn pod(&self) -> Option<PodEntry> {
        self.asked_pod.set(true);
        Some(PodEntry {
            pod_id: 5,
            mode: MODE_MARK,
            fail: FAIL_OPEN,
            flags: self.flags,
            generation: 1,
            _pad2: 0,
        })
    }
    fn mark(&self) -> u32 {
        self.mark
    }
    fn wanted(&self) -> Option<u32> {
        self.wanted
    }
}

fn set(world: &Fake) -> Verdict {
    decide(SOL_SOCKET, SO_MARK, world)
}

/// Pitfall 34: bits outside our mask belong to others, whatever ours are.
#[test]
fn bits_of_others_are_free_and_ours_stay_as_they_are() {
    for mark in [0, CAPTURE_MARK, AGENT_MARK, 0x539] {
        for bit in 0..32 {
            let expected = if MARK_MASK & (1 << bit) == 0 {
                Verdict::Sealed
            } else {
                Verdict::Refuse(5)
            };
            assert_eq!(
                set(&Fake::new(mark, mark ^ (1 << bit))),
                expected,
                "bit {bit}"
            );
        }
        assert_eq!(set(&Fake::new(mark, mark)), Verdict::Sealed);
    }
}

#[test]
fn agent_and_unguarded_workloads_set_what_they_like() {
    let agent = Fake {
        cgroup: AGENT,
        ..Fake::new(0, AGENT_MARK)
    };
    assert_eq!(set(&agent), Verdict::Pass);
    let free = Fake {
        flags: 0,
        ..Fake::new(0, AGENT_MARK)
    };
    assert_eq!(set(&free), Verdict::Pass);
    let unset = Fake {
        config: false,
        ..Fake::new(0, AGENT_MARK)
    };
    assert_eq!(set(&unset), Verdict::Pass);
}

/// Without it: every option that any pod sets costs a look-up.
#[test]
fn other_options_look_nothing_up() {
    let world = Fake::new(0, AGENT_MARK);
    for (level, name) in [
        (SOL_SOCKET, 35),
        (SOL_SOCKET, 37),
        (0, SO_MARK),
        (41, SO_MARK),
    ] {
        assert_eq!(decide(level, name, &world), Verdict::Pass);
    }
    assert!(!world.asked_pod.get());
}

#[test]
fn option_too_short_for_a_mark_is_left_to_the_kernel() {
    let short = Fake {
        wanted: None,
        ..Fake::new(0, 0)
    };
    assert_eq!(set(&short), Verdict::Pass);
}
