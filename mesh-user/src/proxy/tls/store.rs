//! What the TLS settings of the model stand for, kept as new as their files.
//!
//! Settings are found by the address of the model's value, which a snapshot keeps alive: a decision
//! costs no comparison of paths. Settings that are equal share what was read, over reloads too.

use std::{
    collections::HashMap,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

use arc_swap::{ArcSwap, ArcSwapOption};
use rustls::ServerConfig;

use super::{
    client::{self, Client},
    files::{Contents, Fault, stamp},
    server,
};
use crate::{
    model::tls::{Originate, Terminate},
    policy::snapshot::TlsUses,
    telemetry::Telemetry,
};

/// How often files are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Everything that TLS settings stand for.
#[derive(Debug)]
pub(in crate::proxy) struct Store {
    telemetry: Arc<Telemetry>,
    table: ArcSwap<Table>,
    /// Whether somebody looks at the files; held by whoever changes the table.
    watched: Mutex<bool>,
}

#[derive(Debug, Default)]
struct Table {
    servers: Kind<Terminate, ServerConfig>,
    clients: Kind<Originate, Client>,
}

/// Settings by their address, which the value beside it keeps from being used again.
type Kind<C, T> = HashMap<usize, (Arc<C>, Arc<Slot<T>>)>;

/// The newest good content of the files of equal settings.
#[derive(Debug)]
struct Slot<T> {
    live: ArcSwapOption<T>,
    seen: Mutex<Seen>,
}

#[derive(Debug, Default)]
struct Seen {
    stamp: Option<u64>,
    hash: Option<u64>,
    problem: Option<String>,
}

impl<T> Slot<T> {
    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks at the files; what they hold comes into force when it is good, and differs.
    fn look(&self, paths: &[PathBuf], build: impl FnOnce(&Contents) -> Result<T, Fault>) {
        let mut seen = self.seen();
        let stamp = stamp(paths, SystemTime::now());
        if seen.hash.is_some() && stamp.is_some() && stamp == seen.stamp {
            return;
        }
        let contents = Contents::read(paths);
        let hash = contents.hash();
        seen.stamp = stamp;
        if seen.hash == Some(hash) {
            return;
        }
        let first = seen.hash.replace(hash).is_none();
        match build(&contents) {
            Ok(built) => {
                self.live.store(Some(Arc::new(built)));
                seen.problem = None;
                if !first {
                    tracing::info!(files = ?paths, "TLS files taken over");
                }
            }
            Err(fault) => {
                let kept = self.live.load().is_some();
                tracing::warn!(%fault, kept, "TLS files can't be used");
                seen.problem = Some(fault.to_string());
            }
        }
    }
}

fn follow<C: Eq + std::hash::Hash, T>(
    old: &Kind<C, T>,
    uses: &[Arc<C>],
    load: impl Fn(&C, &Slot<T>),
) -> Kind<C, T> {
    let at = |config: &Arc<C>| Arc::as_ptr(config).addr();
    // Whose snapshot still stands somewhere: one is ours.
    let kept = old
        .iter()
        .filter(|(_, (config, _))| Arc::strong_count(config) > 1);
    let mut table: Kind<C, T> = kept
        .map(|(at, (config, slot))| (*at, (Arc::clone(config), Arc::clone(slot))))
        .collect();
    let mut equal: HashMap<Arc<C>, Arc<Slot<T>>> = old
        .values()
        .map(|(config, slot)| (Arc::clone(config), Arc::clone(slot)))
        .collect();
    for config in uses {
        if table.contains_key(&at(config)) {
            continue;
        }
        let slot = equal.entry(Arc::clone(config)).or_insert_with(|| {
            let slot = Arc::new(Slot {
                live: ArcSwapOption::empty(),
                seen: Mutex::default(),
            });
            load(config, &slot);
            slot
        });
        table.insert(at(config), (Arc::clone(config), Arc::clone(slot)));
    }
    table
}

fn look_server(config: &Terminate, slot: &Slot<ServerConfig>) {
    slot.look(&server::paths(config), |contents| {
        server::build(config, contents)
    });
}

fn look_client(config: &Originate, slot: &Slot<Client>) {
    slot.look(&client::paths(config), |contents| {
        client::build(config, contents)
    });
}

impl Store {
    pub(in crate::proxy) fn new(telemetry: Arc<Telemetry>) -> Self {
        Self {
            telemetry,
            table: ArcSwap::default(),
            watched: Mutex::default(),
        }
    }

    fn watched(&self) -> MutexGuard<'_, bool> {
        self.watched.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes in what a snapshot needs, before it comes into force; reads files that are new.
    pub(in crate::proxy) fn follow(self: &Arc<Self>, uses: &TlsUses) {
        let mut watched = self.watched();
        let old = self.table.load();
        if uses.is_empty() && old.servers.is_empty() && old.clients.is_empty() {
            return;
        }
        let table = Table {
            servers: follow(&old.servers, &uses.terminate, look_server),
            clients: follow(&old.clients, &uses.originate, look_client),
        };
        self.table.store(Arc::new(table));
        self.telemetry.set_tls_files_refused(self.problems().len());
        if !*watched {
            *watched = true;
            let store = Arc::downgrade(self);
            let watch = move || {
                while let Some(store) = store.upgrade() {
                    store.look();
                    drop(store);
                    std::thread::sleep(LOOK_EVERY);
                }
            };
            let thread = std::thread::Builder::new().name("mesh-tls-files".to_owned());
            if let Err(error) = thread.spawn(watch) {
                *watched = false;
                tracing::error!(%error, "nobody looks at TLS files: no thread");
            }
        }
    }

    /// Looks at all files once.
    fn look(&self) {
        let table = self.table.load_full();
        for (config, slot) in table.servers.values() {
            look_server(config, slot);
        }
        for (config, slot) in table.clients.values() {
            look_client(config, slot);
        }
        self.telemetry.set_tls_files_refused(self.problems().len());
    }

    /// What is shown to the clients of a port. None: its files were never good.
    pub(in crate::proxy) fn server(&self, config: &Arc<Terminate>) -> Option<Arc<ServerConfig>> {
        let table = self.table.load();
        let (_, slot) = table.servers.get(&Arc::as_ptr(config).addr())?;
        slot.live.load_full()
    }

    /// What endpoints are asked for. None: its files were never good.
    pub(in crate::proxy) fn client(&self, config: &Arc<Originate>) -> Option<Arc<Client>> {
        let table = self.table.load();
        let (_, slot) = table.clients.get(&Arc::as_ptr(config).addr())?;
        slot.live.load_full()
    }

    /// Why the newest content of files is not in force, each once, in order.
    pub(in crate::proxy) fn problems(&self) -> Vec<String> {
        let table = self.table.load();
        let servers = table
            .servers
            .values()
            .map(|(_, slot)| slot.seen().problem.clone());
        let clients = table
            .clients
            .values()
            .map(|(_, slot)| slot.seen().problem.clone());
        let mut problems: Vec<String> = servers.chain(clients).flatten().collect();
        problems.sort_unstable();
        problems.dedup();
        problems
    }

    /// Whether any TLS begins or ends here.
    pub(in crate::proxy) fn is_empty(&self) -> bool {
        let table = self.table.load();
        table.servers.is_empty() && table.clients.is_empty()
    }
}
