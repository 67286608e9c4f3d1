//! Whether a datagram may leave: it may, unless an outbound rule denies it.
//!
//! No service is looked up and nothing is rewritten: UDP, QUIC and DNS are not the mesh's business.
//! For a connected socket the connect hook asks, once; for an unconnected one the sendmsg hooks do,
//! for each datagram.

use mesh_common::{
    abi::{ABI_VERSION, Config},
    addr::Addr,
    maps::OUT_DENY,
};

/// What the decision may look up; asked only when needed.
pub trait World {
    /// `CONFIG[0]`.
    fn config(&self) -> Option<Config>;
    /// The workload of the socket's network namespace, 0 when it is not enrolled.
    fn pod_id(&self) -> u32;
    /// `OUT_RULES` for datagrams: the action of the longest prefix for exactly this port (0: any).
    fn rule(&self, port: u16, addr: &Addr) -> Option<u32>;
}

/// The workload that is refused; 0: the datagram goes. `cgroup` is the caller's cgroup id.
#[inline(always)]
pub fn refused(addr: &Addr, port: u16, cgroup: u64, world: &impl World) -> u32 {
    let Some(config) = world.config() else {
        return 0;
    };
    if config.abi != ABI_VERSION || cgroup == config.agent_cgroup || inside(addr) {
        return 0;
    }
    let pod_id = world.pod_id();
    if pod_id != 0 && denied(port, |port| world.rule(port, addr)) {
        pod_id
    } else {
        0
    }
}

/// Whether the destination is inside the namespace: nobody's business.
#[inline(always)]
pub(super) const fn inside(addr: &Addr) -> bool {
    addr.is_loopback() | addr.is_unspecified()
}

/// Whether the rules deny: one for exactly this port goes before one for any.
#[inline(always)]
pub(super) fn denied(port: u16, rule: impl Fn(u16) -> Option<u32>) -> bool {
    let found = match rule(port) {
        None => rule(0),
        exact => exact,
    };
    found == Some(OUT_DENY)
}

#[cfg(test)]
mod tests {
    use core::{cell::Cell, net::IpAddr};

    use mesh_common::maps::OUT_PASS;

    use super::*;

    const AGENT: u64 = 7;

    struct Fake {
        abi: u32,
        pod_id: u32,
        exact: Option<u32>,
        any: Option<u32>,
        looked: Cell<u32>,
    }

    impl World for Fake {
        fn config(&self) -> Option<Config> {
            Some(Config {
                abi: self.abi,
                capture_mark: 1,
                agent_mark: 2,
                mark_mask: 3,
                agent_cgroup: AGENT,
                heartbeat_stale_ns: 1,
                shards: 1,
                unknown_netns: 0,
                paused: 0,
                _pad: 0,
                agent_netns: 1,
                _reserved: 0,
            })
        }
        fn pod_id(&self) -> u32 {
            self.pod_id
        }
        fn rule(&self, port: u16, _: &Addr) -> Option<u32> {
            self.looked.set(self.looked.get() + 1);
            if port == 0 { self.any } else { self.exact }
        }
    }

    fn fake(exact: Option<u32>, any: Option<u32>) -> Fake {
        Fake {
            abi: ABI_VERSION,
            pod_id: 5,
            exact,
            any,
            looked: Cell::new(0),
        }
    }

    fn ask(world: &Fake, to: &str, cgroup: u64) -> u32 {
        let addr = Addr::from_ip(to.parse::<IpAddr>().unwrap());
        refused(&addr, 53, cgroup, world)
    }

    #[test]
    fn datagram_is_refused_only_by_a_rule_that_denies_it() {
        let (deny, pass) = (Some(OUT_DENY), Some(OUT_PASS));
        for (exact, any, expected) in [
            (None, None, 0),
            (None, deny, 5),
            (None, pass, 0),
            (deny, None, 5),
            (deny, pass, 5),
            (pass, deny, 0),
        ] {
            assert_eq!(ask(&fake(exact, any), "10.0.0.1", 1), expected);
        }
    }

    #[test]
    fn rules_are_for_workloads_and_for_what_leaves_them() {
        let deny = Some(OUT_DENY);
        for (to, cgroup) in [
            ("127.0.0.53", 1),
            ("::1", 1),
            ("0.0.0.0", 1),
            ("10.0.0.1", AGENT),
        ] {
            let world = fake(deny, deny);
            assert_eq!(ask(&world, to, cgroup), 0, "{to}");
            assert_eq!(world.looked.get(), 0, "{to}: nothing to look up");
        }
        let stranger = Fake {
            pod_id: 0,
            ..fake(deny, deny)
        };
        assert_eq!(
            (ask(&stranger, "10.0.0.1", 1), stranger.looked.get()),
            (0, 0)
        );
        let other = Fake {
            abi: ABI_VERSION + 1,
            ..fake(deny, deny)
        };
        assert_eq!(ask(&other, "10.0.0.1", 1), 0);
    }
}
