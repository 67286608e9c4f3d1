//! The shield's thread: follows the configuration, its list files and its interfaces.
//!
//! Apart from the control loop, so that a list of a million ranges delays no enrolment. A shield
//! that can't be started or attached never stops the agent: what went wrong stands in
//! `mesh shield status` and in the log, and what was in force before stays.

use std::{
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};

use serde_json::{Value, json};

use crate::{
    admin::{ShieldAsk, document},
    clock,
    kernel::{
        Instance,
        shield::{self, FileList, Shield, ShieldOptions},
    },
    model::shield::{Net, Shield as Wanted},
    platform::lists::ListFile,
    telemetry::ShieldSample,
};

/// How often it looks around: entries whose time is over, interfaces, files.
const TICK: Duration = Duration::from_secs(1);

/// Rules that `/metrics` shows, by name: those with a million ranges are one each.
const METRIC_RULES_MAX: usize = 256;

/// What there is when nothing is configured.
const NOT_CONFIGURED: &str =
    "the shield is not configured: add `shield:` to the configuration file (docs/SHIELD.md)";

/// The shield of an agent, if it is configured.
#[derive(Debug)]
pub(super) struct Shielding(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    instance: Instance,
    wanted: Option<Wanted>,
    lists: Vec<ListFile>,
    kernel: Option<Shield>,
    /// What went wrong last; none: all that is wanted is in force.
    fault: Option<String>,
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    // A panic elsewhere is no reason to let go of the shield: every change below is whole.
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shielding {
    /// Starts the thread. It ends when this value is dropped.
    pub(super) fn start(instance: Instance) -> std::io::Result<Self> {
        let state = Arc::new(Mutex::new(State {
            instance,
            wanted: None,
            lists: Vec::new(),
            kernel: None,
            fault: None,
        }));
        let weak = Arc::downgrade(&state);
        std::thread::Builder::new()
            .name("mesh-shield".into())
            .spawn(move || watch(&weak))?;
        Ok(Self(state))
    }

    /// Follows a configuration that is in force; also reads the list files again.
    pub(super) fn follow(&self, wanted: Option<&Wanted>) {
        lock(&self.0).follow(wanted);
    }

    /// Answers a question of the admin interface.
    pub(super) fn ask(&self, ask: &ShieldAsk) -> Result<Value, String> {
        lock(&self.0).ask(ask)
    }

    /// What `/metrics` shows; none: it is not configured.
    pub(super) fn sample(&self) -> Option<ShieldSample> {
        lock(&self.0).sample()
    }
}

/// The thread.
fn watch(state: &Weak<Mutex<State>>) {
    loop {
        std::thread::sleep(TICK);
        let Some(state) = state.upgrade() else { return };
        lock(&state).tick();
    }
}

impl State {
    fn follow(&mut self, wanted: Option<&Wanted>) {
        self.wanted = wanted.cloned();
        let Some(wanted) = wanted else {
            self.kernel = None;
            self.lists.clear();
            let removed = shield::remove(&self.instance);
            self.note(removed.map_err(|error| error.to_string()));
            return;
        };
        let mut before = std::mem::take(&mut self.lists);
        self.lists = wanted
            .deny_files
            .iter()
            .map(|path| {
                let known = before.iter().position(|list| list.path() == path);
                known.map_or_else(|| ListFile::new(path), |index| before.swap_remove(index))
            })
            .collect();
        for list in &mut self.lists {
            list.look(true);
        }
        self.apply();
    }

    /// Puts everything in force that is wanted.
    fn apply(&mut self) {
        let done = self.try_apply();
        self.note(done);
    }

    fn note(&mut self, done: Result<(), String>) {
        if let Err(error) = &done
            && self.fault.as_ref() != Some(error)
        {
            tracing::error!(%error, "the shield");
        }
        self.fault = done.err();
    }

    fn try_apply(&mut self) -> Result<(), String> {
        let Some(wanted) = &self.wanted else {
            return Ok(());
        };
        let kernel = match &mut self.kernel {
            Some(kernel) => kernel,
            none => {
                let options = ShieldOptions {
                    instance: self.instance.clone(),
                    tcx: true,
                };
                let started = Shield::start(&options).map_err(|error| error.to_string())?;
                none.insert(started)
            }
        };
        let files = self.lists.iter().map(|list| {
            let path = list.path().display().to_string();
            FileList {
                nets: match &list.good {
                    Some(nets) => Arc::clone(nets),
                    None => kernel.last_of_file(&path),
                },
                path,
            }
        });
        let files = files.collect();
        kernel
            .apply(wanted, files)
            .map_err(|error| error.to_string())
    }

    fn tick(&mut self) {
        let mut changed = false;
        for list in &mut self.lists {
            changed |= list.look(false);
        }
        if changed {
            tracing::info!("a list file of the shield was read again");
            self.apply();
        }
        if let Some(kernel) = &mut self.kernel
            && let Err(error) = kernel.tick(clock::now())
        {
            self.note(Err(error.to_string()));
        }
    }

    fn running(&mut self) -> Result<&mut Shield, String> {
        if self.wanted.is_none() {
            return Err(NOT_CONFIGURED.to_owned());
        }
        let fault = self.fault.clone().unwrap_or_default();
        self.kernel
            .as_mut()
            .ok_or_else(|| format!("the shield could not be started: {fault}"))
    }

    fn ask(&mut self, ask: &ShieldAsk) -> Result<Value, String> {
        if *ask == ShieldAsk::Status {
            return self.status();
        }
        let kernel = self.running()?;
        let text = |error: serde_json::Error| error.to_string();
        match ask {
            ShieldAsk::Status => Err(NOT_CONFIGURED.to_owned()),
            ShieldAsk::Rules => {
                document::list("ShieldRuleList", &kernel.rules(clock::now())).map_err(text)
            }
            ShieldAsk::Sources { limit } => {
                document::list("ShieldSourceList", &kernel.sources(*limit)).map_err(text)
            }
            ShieldAsk::Check { address } => {
                document::one("ShieldCheck", &kernel.check(*address)).map_err(text)
            }
            ShieldAsk::Add { cidr, allow, for_s } => {
                let after = for_s.map(Duration::from_secs);
                let expires = shield::expiry(clock::now(), after);
                kernel
                    .add(*cidr, *allow, expires)
                    .map_err(|error| error.to_string())?;
                tracing::info!(%cidr, allow, for_s, "an operator added a shield entry");
                Ok(changed(*cidr))
            }
            ShieldAsk::Remove { cidr, allow } => {
                kernel
                    .remove(*cidr, *allow)
                    .map_err(|error| error.to_string())?;
                tracing::info!(%cidr, allow, "an operator removed a shield entry");
                Ok(changed(*cidr))
            }
        }
    }

    fn status(&self) -> Result<Value, String> {
        let Some(wanted) = &self.wanted else {
            return Err(NOT_CONFIGURED.to_owned());
        };
        let overview = self.kernel.as_ref().map(Shield::overview);
        let file = |list: &ListFile| {
            let nets = list.good.as_ref().map(|nets| nets.len());
            json!({"path": shown(list.path()), "prefixes": nets, "error": list.fault})
        };
        document::one(
            "ShieldStatus",
            &json!({
                "fault": self.fault,
                "overview": overview,
                "files": self.lists.iter().map(file).collect::<Vec<_>>(),
                "settings": {
                    "syn_rate": wanted.syn_rate,
                    "connection_rate": wanted.connection_rate,
                    "bogus_flags": if wanted.drop_bogus { "drop" } else { "pass" },
                },
            }),
        )
        .map_err(|error| error.to_string())
    }

    fn sample(&self) -> Option<ShieldSample> {
        let kernel = self.kernel.as_ref()?;
        let overview = kernel.overview();
        let rules = kernel.rules(clock::now()).into_iter();
        Some(ShieldSample {
            counts: overview
                .counts
                .iter()
                .map(|count| (count.reason, count.packets, count.bytes))
                .collect(),
            rules: rules
                .filter(|row| row.origin != "cli")
                .take(METRIC_RULES_MAX)
                .map(|row| (row.rule, row.packets))
                .collect(),
            interfaces: overview
                .interfaces
                .into_iter()
                .map(|row| (row.interface, row.attached.unwrap_or("none")))
                .collect(),
            prefixes: overview.prefixes as u64,
        })
    }
}

fn changed(cidr: Net) -> Value {
    json!({"cidr": cidr})
}

fn shown(path: &Path) -> String {
    path.display().to_string()
}
