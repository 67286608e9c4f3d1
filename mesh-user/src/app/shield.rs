//! The shield's thread: follows the configuration, its list files and its interfaces.
//!
//! Apart from the control loop, so that a list of a million ranges delays no enrolment. A shield
//! that can't be started or attached never stops the agent: what went wrong stands in
//! `mesh shield status`, in `mesh status` and in the log, what was in force before stays, and it is
//! tried again. While a successor starts, and ever after when it has taken over, nothing is written.

use std::{
    path::Path,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use crate::{
    admin::{ShieldAsk, document},
    clock,
    kernel::{
        Instance, KernelError,
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

/// How long the start waits for the first configuration to stand: the log then names what was
/// refused before anything else. Enrolment goes on after it, whatever the lists hold.
const FIRST_WAIT: Duration = Duration::from_secs(2);

/// How long a question waits for a configuration that came before it.
const ASK_WAIT: Duration = Duration::from_secs(5);

/// What failed is tried again after a tick, then ever later, up to this: an object that can't be
/// loaded must not cost a core.
const RETRY_MAX: Duration = Duration::from_secs(60);

/// The shield of an agent, if it is configured. Its thread ends when this value is dropped.
#[derive(Debug)]
pub(super) struct Shielding(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    instance: Instance,
    desk: Mutex<Desk>,
    /// Of `desk`: something is asked, or was done.
    news: Condvar,
    /// Never waited for with `desk` in hand.
    state: Mutex<State>,
}

/// What the thread is asked for, and what it told last. Held for moments only, so that the control
/// loop never waits for a list.
#[derive(Debug, Default)]
struct Desk {
    wanted: Option<Wanted>,
    /// How often something was asked for, and up to which of these it was done.
    asked: u64,
    done: u64,
    /// A successor writes what the kernel holds.
    frozen: bool,
    ended: bool,
    /// What is wrong; none: all that is wanted is in force.
    fault: Option<String>,
    /// Interfaces where nothing stands, with the reason.
    bare: Vec<String>,
}

impl Desk {
    fn pending(&self) -> bool {
        self.asked != self.done && !self.frozen && !self.ended
    }
}

/// The kernel's side. Held while it is written.
#[derive(Debug, Default)]
struct State {
    /// Nothing is written any more.
    frozen: bool,
    wanted: Option<Wanted>,
    files: Vec<FileRow>,
    kernel: Option<Shield>,
    /// Why what is wanted could not be put in force.
    refused: Option<String>,
    /// Why the last look around failed.
    tick_fault: Option<String>,
}

/// A list file, as it was when it was last put in force.
#[derive(Debug)]
struct FileRow {
    path: String,
    prefixes: Option<usize>,
    fault: Option<String>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic elsewhere is no reason to let go of the shield: every change below is whole.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shielding {
    /// Starts the thread.
    pub(super) fn start(instance: Instance) -> std::io::Result<Self> {
        let shared = Arc::new(Shared {
            instance,
            desk: Mutex::default(),
            news: Condvar::new(),
            state: Mutex::default(),
        });
        let of_thread = Arc::clone(&shared);
        std::thread::Builder::new()
            .name("mesh-shield".into())
            .spawn(move || watch(&of_thread))?;
        Ok(Self(shared))
    }

    /// Follows a configuration that is in force; also reads the list files again. The thread does
    /// it; only the first time it is waited for, and not long.
    pub(super) fn follow(&self, wanted: Option<&Wanted>) {
        let mut desk = lock(&self.0.desk);
        desk.wanted = wanted.cloned();
        desk.asked += 1;
        let first = desk.asked == 1;
        drop(desk);
        self.0.news.notify_all();
        if first {
            self.0.settle(FIRST_WAIT);
        }
    }

    /// From here on nothing is written: a successor does. Waits for a write that is going on.
    pub(super) fn freeze(&self) {
        lock(&self.0.desk).frozen = true;
        lock(&self.0.state).frozen = true;
        self.0.news.notify_all();
    }

    /// The successor failed: what it left is adopted, then brought to what is wanted.
    pub(super) fn thaw(&self) {
        let mut state = lock(&self.0.state);
        state.frozen = false;
        // What it knows of maps and links may be wrong now.
        state.kernel = None;
        drop(state);
        let mut desk = lock(&self.0.desk);
        desk.frozen = false;
        desk.asked += 1;
        drop(desk);
        self.0.news.notify_all();
    }

    /// Answers a question of the admin interface.
    pub(super) fn ask(&self, ask: &ShieldAsk) -> Result<Value, String> {
        let changes = matches!(ask, ShieldAsk::Add { .. } | ShieldAsk::Remove { .. });
        // An operator under attack doesn't wait for a list that is read.
        if !changes || lock(&self.0.state).kernel.is_none() {
            self.0.settle(ASK_WAIT);
        }
        let mut state = lock(&self.0.state);
        if changes && state.frozen {
            return Err(KernelError::HandingOver.to_string());
        }
        state.ask(ask)
    }

    /// What `/metrics` shows; none: it is not configured.
    pub(super) fn sample(&self) -> Option<ShieldSample> {
        lock(&self.0.state).sample()
    }

    /// Whether what is wanted is in force, and in words; none: nothing is configured. Never waits.
    pub(super) fn condition(&self) -> Option<(bool, String)> {
        let desk = lock(&self.0.desk);
        desk.wanted.as_ref()?;
        Some(match (&desk.fault, desk.bare.as_slice()) {
            (Some(fault), _) => (false, fault.clone()),
            (None, _) if desk.done == 0 => (true, "is being put in force".to_owned()),
            (None, []) => (true, "in force".to_owned()),
            (None, bare) => (true, format!("in force, but not on {}", bare.join("; "))),
        })
    }
}

impl Drop for Shielding {
    fn drop(&mut self) {
        lock(&self.0.desk).ended = true;
        self.0.news.notify_all();
    }
}

impl Shared {
    /// Waits until everything that was asked for is done, or for so long.
    fn settle(&self, limit: Duration) {
        let desk = lock(&self.desk);
        // Neither a time-out nor a panic elsewhere is an error: whoever waits looks for itself.
        let _waited = self
            .news
            .wait_timeout_while(desk, limit, |desk| desk.pending());
    }
}

/// The thread.
fn watch(shared: &Shared) {
    let mut follower = Follower::default();
    loop {
        let desk = lock(&shared.desk);
        let waited = shared
            .news
            .wait_timeout_while(desk, TICK, |desk| !desk.pending() && !desk.ended);
        let (desk, _) = waited.unwrap_or_else(PoisonError::into_inner);
        if desk.ended {
            return;
        }
        if desk.frozen {
            continue;
        }
        let news = desk.pending().then(|| (desk.wanted.clone(), desk.asked));
        drop(desk);
        follower.round(shared, news);
    }
}

/// What only the thread knows: files are read with no lock held.
#[derive(Debug, Default)]
struct Follower {
    lists: Vec<ListFile>,
    /// When what failed is tried again, and how long it was waited for last.
    retry: Option<(Instant, Duration)>,
}

impl Follower {
    /// Once around; `news`: a configuration, and up to which question it answers.
    fn round(&mut self, shared: &Shared, news: Option<(Option<Wanted>, u64)>) {
        if let Some((wanted, _)) = &news {
            self.know(wanted.as_ref());
        }
        let mut changed = false;
        for list in &mut self.lists {
            changed |= list.look(news.is_some());
        }
        let anew = news.is_some();
        let mut state = lock(&shared.state);
        if state.frozen {
            // Whoever thaws it asks for everything.
            return;
        }
        let mut done = None;
        if let Some((wanted, number)) = news {
            state.wanted = wanted;
            done = Some(number);
        } else if changed {
            tracing::info!("a list file of the shield was read again");
        }
        let due = self.retry.is_some_and(|(at, _)| at <= Instant::now());
        if anew || changed || due {
            let applied = state.apply(&shared.instance, &self.lists, anew);
            self.retry = applied.is_err().then(|| self.later(anew));
            note(&mut state.refused, applied);
        }
        state.files = self.lists.iter().map(FileRow::of).collect();
        let ticked = match &mut state.kernel {
            Some(kernel) => kernel.tick(clock::now()).map_err(|error| error.to_string()),
            None => Ok(()),
        };
        note(&mut state.tick_fault, ticked);
        let (fault, bare) = (state.fault(), state.bare());
        drop(state);
        let mut desk = lock(&shared.desk);
        desk.done = done.unwrap_or(desk.done);
        (desk.fault, desk.bare) = (fault, bare);
        drop(desk);
        shared.news.notify_all();
    }

    /// The list files of a configuration; what was read of those that stay is kept.
    fn know(&mut self, wanted: Option<&Wanted>) {
        let mut before = std::mem::take(&mut self.lists);
        let files = wanted.map(|wanted| wanted.deny_files.as_slice());
        self.lists = files
            .unwrap_or_default()
            .iter()
            .map(|path| {
                let known = before.iter().position(|list| list.path() == path);
                known.map_or_else(|| ListFile::new(path), |index| before.swap_remove(index))
            })
            .collect();
    }

    fn later(&self, anew: bool) -> (Instant, Duration) {
        let wait = match self.retry {
            Some((_, wait)) if !anew => (wait * 2).min(RETRY_MAX),
            _ => TICK,
        };
        (Instant::now() + wait, wait)
    }
}

impl FileRow {
    fn of(list: &ListFile) -> Self {
        Self {
            path: shown(list.path()),
            prefixes: list.good.as_ref().map(|nets| nets.len()),
            fault: list.fault.clone(),
        }
    }
}

/// Keeps what went wrong, and says it once.
fn note(fault: &mut Option<String>, done: Result<(), String>) {
    if let Err(error) = &done
        && fault.as_ref() != Some(error)
    {
        tracing::error!(%error, "the shield");
    }
    *fault = done.err();
}

impl State {
    /// Puts everything in force that is wanted; `anew`: also looks again at interfaces where it
    /// stands.
    fn apply(&mut self, instance: &Instance, lists: &[ListFile], anew: bool) -> Result<(), String> {
        let Some(wanted) = &self.wanted else {
            self.kernel = None;
            return shield::remove(instance).map_err(|error| error.to_string());
        };
        let kernel = match &mut self.kernel {
            Some(kernel) => kernel,
            none => {
                let options = ShieldOptions {
                    instance: instance.clone(),
                    tcx: true,
                };
                let started = Shield::start(&options).map_err(|error| error.to_string())?;
                none.insert(started)
            }
        };
        let files = lists.iter().map(|list| {
            let path = shown(list.path());
            FileList {
                nets: match &list.good {
                    Some(nets) => Arc::clone(nets),
                    None => kernel.last_of_file(&path),
                },
                path,
            }
        });
        let files = files.collect();
        let done = if anew {
            kernel.apply(wanted, files)
        } else {
            kernel.apply_lists(wanted, files)
        };
        done.map_err(|error| error.to_string())
    }

    fn fault(&self) -> Option<String> {
        match (&self.refused, &self.tick_fault) {
            (Some(refused), Some(tick)) if refused != tick => Some(format!("{refused}; {tick}")),
            (refused, tick) => refused.clone().or_else(|| tick.clone()),
        }
    }

    fn bare(&self) -> Vec<String> {
        self.kernel.as_ref().map(Shield::bare).unwrap_or_default()
    }

    fn running(&mut self) -> Result<&mut Shield, String> {
        if self.wanted.is_none() {
            return Err(NOT_CONFIGURED.to_owned());
        }
        let fault = self.fault().unwrap_or_default();
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
        let file =
            |row: &FileRow| json!({"path": row.path, "prefixes": row.prefixes, "error": row.fault});
        document::one(
            "ShieldStatus",
            &json!({
                "fault": self.fault(),
                "overview": overview,
                "files": self.files.iter().map(file).collect::<Vec<_>>(),
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
