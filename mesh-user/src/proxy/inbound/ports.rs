//! Source ports of dials to applications, and the clients' ports that they must not meet.
//!
//! Such a dial has the client's address. Were its port that of a live connection of the same client
//! to the same port, both would be the same 4-tuple on the application's side: the SYN would hit
//! the live connection. So a worker knows the client's live ports. It knows all of them: it takes
//! only ports of its own shard, and those are steered to it alone. Nothing is shared between cores.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    rc::Rc,
};

use mesh_common::{addr::Addr, listener::shard};

use super::{super::core::Core, App};

/// Below the range from which Linux takes ephemeral ports (32768 and up), above those that servers
/// listen on.
const FIRST: u16 = 10_000;
const LAST: u16 = 31_999;
/// Ports looked at for one dial: enough for a free one of the own shard out of eight.
const LOOKS: u32 = 256;

/// What is known of one port of a client.
#[derive(Clone, Copy, Debug, Default)]
struct Use {
    /// The client's own connections.
    clients: u32,
    /// Our dial.
    dialled: bool,
}

/// The ports of one worker.
#[derive(Debug, Default)]
pub(in crate::proxy) struct Ports {
    used: RefCell<HashMap<App, HashMap<u16, Use>>>,
    /// Goes on for all clients alike: a port rests as long as possible, for its connection may be
    /// in TIME_WAIT.
    next: Cell<u16>,
}

/// A port in use. Free again when it is dropped.
#[derive(Debug)]
pub(in crate::proxy) struct Held {
    core: Rc<Core>,
    app: App,
    port: u16,
    dialled: bool,
}

impl Held {
    pub(in crate::proxy) const fn port(&self) -> u16 {
        self.port
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let mut used = self.core.app_ports.used.borrow_mut();
        let Some(ports) = used.get_mut(&self.app) else {
            return;
        };
        if let Some(entry) = ports.get_mut(&self.port) {
            if self.dialled {
                entry.dialled = false;
            } else {
                entry.clients -= 1;
            }
            if entry.clients == 0 && !entry.dialled {
                ports.remove(&self.port);
            }
        }
        if ports.is_empty() {
            used.remove(&self.app);
        }
    }
}

impl Ports {
    /// Notes that the client has a live connection from this port.
    pub(in crate::proxy) fn hold(core: &Rc<Core>, app: App, port: u16) -> Held {
        let mut used = core.app_ports.used.borrow_mut();
        used.entry(app)
            .or_default()
            .entry(port)
            .or_default()
            .clients += 1;
        Held {
            core: Rc::clone(core),
            app,
            port,
            dialled: false,
        }
    }

    /// Whether we have dialled from this port with the client's address, and it lives.
    pub(in crate::proxy) fn dialled(&self, app: App, port: u16) -> bool {
        let used = self.used.borrow();
        let entry = used.get(&app).and_then(|ports| ports.get(&port));
        entry.is_some_and(|entry| entry.dialled)
    }

    /// Chooses a port for a dial; none when 256 candidates in a row were not free.
    pub(in crate::proxy) fn choose(core: &Rc<Core>, app: App) -> Option<Held> {
        let shards = core.shared.ticks.len() as u32;
        let client = Addr::from_ip(app.client);
        let own = core.index as u16;
        let port = core
            .app_ports
            .free(app, |port| shard(&client, port, shards) == own)?;
        let mut used = core.app_ports.used.borrow_mut();
        used.entry(app)
            .or_default()
            .entry(port)
            .or_default()
            .dialled = true;
        Some(Held {
            core: Rc::clone(core),
            app,
            port,
            dialled: true,
        })
    }

    fn free(&self, app: App, own: impl Fn(u16) -> bool) -> Option<u16> {
        let used = self.used.borrow();
        let taken = used.get(&app);
        for _look in 0..LOOKS {
            let port = FIRST + self.next.get();
            self.next.set((self.next.get() + 1) % (LAST - FIRST + 1));
            if own(port) && !taken.is_some_and(|ports| ports.contains_key(&port)) {
                return Some(port);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn app() -> App {
        App {
            client: "10.0.0.9".parse().unwrap(),
            to: "10.0.0.1:8080".parse().unwrap(),
        }
    }

    fn ports(taken: &[u16]) -> Ports {
        let ports = Ports::default();
        let list = taken.iter().map(|port| {
            (
                *port,
                Use {
                    clients: 1,
                    dialled: false,
                },
            )
        });
        ports.used.borrow_mut().insert(app(), list.collect());
        ports
    }

    /// Pitfall 8: the client's own live ports are never chosen.
    #[test]
    fn live_port_of_the_client_is_passed_over() {
        let ports = ports(&[FIRST, FIRST + 1, FIRST + 3]);
        let chosen: Vec<_> = (0..2)
            .map(|_| ports.free(app(), |_| true).unwrap())
            .collect();
        assert_eq!(chosen, [FIRST + 2, FIRST + 4]);
        let other = App {
            client: "10.0.0.8".parse().unwrap(),
            ..app()
        };
        ports.next.set(0);
        assert_eq!(ports.free(other, |_| true), Some(FIRST), "another client's");
    }

    #[test]
    fn ports_stay_in_their_range_and_of_their_shard_and_the_search_ends() {
        let none = ports(&[]);
        let client = Addr::from_ip(app().client);
        let mut seen = std::collections::HashSet::new();
        for _ in 0..4_000 {
            let port = none
                .free(app(), |port| shard(&client, port, 8) == 5)
                .unwrap();
            assert!((FIRST..=LAST).contains(&port));
            assert_eq!(shard(&client, port, 8), 5);
            seen.insert(port);
        }
        // An eighth of the range, all of it, before one comes again.
        assert!((2_400..3_100).contains(&seen.len()), "{}", seen.len());
        let all: Vec<u16> = (FIRST..=LAST).collect();
        assert_eq!(ports(&all).free(app(), |_| true), None);
        assert_eq!(none.free(app(), |_| false), None);
    }
}
