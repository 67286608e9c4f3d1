//! The running agent as the admin interface and the control loop see it.

use std::{
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

use arc_swap::ArcSwap;
use mesh_common::reason::{Event, Reason};

use super::enrolment::Enrolments;
use crate::{
    admin::{
        Agent, Condition, ConfigStatus, Drain, KernelSample, LastError, Status,
        events::{EventRow, Events, seconds_ago},
    },
    clock::{self, MonoNanos},
    config::{self, AgentConfig, Config},
    kernel::{Instance, Kernel, KernelError, foreign::ForeignHook, view::View},
    platform::file::keep_until_restart,
    policy::{
        Snapshot,
        ejection::{Change, What},
    },
    proxy::Workers,
    telemetry::Telemetry,
};

/// Hooks without which nothing is captured.
const HOOKS: &[&str] = &["connect4", "connect6", "flow_ops"];

/// How often the pinned links are looked at: somebody may have removed one.
const LINKS_LOOK: Duration = Duration::from_secs(10);

/// A worker that did not turn for so long makes the agent «not alive»: well above the second after
/// which the kernel stops capturing, for a restart cuts every connection.
const STUCK: Duration = Duration::from_secs(10);

/// Events that are taken in each tick (250 ms). The rest stays in the ring buffer for the next one,
/// or is counted as `event_lost`.
const EVENTS_PER_TICK: usize = 1_024;

/// Of these, those that are logged: a pod that is refused in a loop must not fill the log.
const LOGGED_PER_TICK: usize = 16;

/// The parts, and what is in force.
#[derive(Debug)]
pub(super) struct NodeAgent {
    instance: Instance,
    config_path: PathBuf,
    started: SystemTime,
    /// Settings at start: what can't change without a restart is kept at them.
    settings: AgentConfig,
    workers: Arc<Workers>,
    telemetry: Arc<Telemetry>,
    snapshot: ArcSwap<Snapshot>,
    events: Arc<Events>,
    /// Hooks of others that were told.
    foreign: Mutex<Vec<ForeignHook>>,
    /// Control work only: no worker ever takes this lock.
    control: Mutex<Control>,
    /// Apart from `control`, so that `mesh status` answers while a reload runs.
    report: Mutex<Reported>,
}

#[derive(Debug)]
struct Control {
    /// The configuration in force.
    in_force: Option<Config>,
    kernel: Kernel,
    enrolments: Enrolments,
    swept: MonoNanos,
}

#[derive(Debug, Default)]
struct Reported {
    last_success: Option<SystemTime>,
    last_error: Option<LastError>,
    restart_needed: Vec<String>,
    workloads: Vec<crate::admin::WorkloadStatus>,
    paused: bool,
    draining: bool,
    /// What the look at the pinned links found.
    links: Links,
}

/// The hooks that must stand for anything to be captured.
#[derive(Debug)]
struct Links {
    looked: MonoNanos,
    missing: Vec<&'static str>,
    count: usize,
}

impl Default for Links {
    fn default() -> Self {
        Self {
            looked: MonoNanos(0),
            missing: HOOKS.to_vec(),
            count: 0,
        }
    }
}

/// Logs the first of what the programs reported since the last tick. The counters count all of it,
/// and `mesh monitor` shows it.
fn log_events(events: &[Event]) {
    for event in events.iter().take(LOGGED_PER_TICK) {
        let reason = Reason::decode(event.reason).map_or("unknown", Reason::label);
        tracing::warn!(
            reason,
            pod_id = event.pod_id,
            source = %event.src.with_port(event.sport),
            destination = %event.dst.with_port(event.dport),
            netns = event.netns,
            tgid = event.tgid,
            "kernel"
        );
    }
}

/// For those who watch.
fn event_row(event: &Event, workloads: &[crate::admin::WorkloadStatus], now: MonoNanos) -> EventRow {
    let reason = Reason::decode(event.reason);
    let known = workloads.iter().find(|w| w.pod_id == Some(event.pod_id));
    let label = reason.map_or("unknown", Reason::label);
    let kind = match reason {
        Some(Reason::SteerMissOpen | Reason::SteerMissClosed) => "miss",
        Some(reason) if reason.is_refusal() => "refused",
        _ => "bypass",
    };
    let place = |addr: std::net::SocketAddr| (!addr.ip().is_unspecified()).then(|| addr.to_string());
    EventRow {
        time: seconds_ago(now.since(MonoNanos(event.time_ns))),
        kind: kind.to_owned(),
        reason: label.to_owned(),
        workload: known.map(|workload| workload.key.clone()),
        source: place(event.src.with_port(event.sport)),
        destination: place(event.dst.with_port(event.dport)),
        tgid: (event.tgid != 0).then_some(event.tgid),
        ..EventRow::default()
    }
}

/// An endpoint that left or came back.
fn ejection_row(change: &Change) -> EventRow {
    let (reason, detail) = match change.what {
        What::Ejected { by, for_ms } => ("ejected", Some(format!("by {by:?} for {for_ms} ms"))),
        What::Skipped { by } => ("skipped", Some(format!("by {by:?}"))),
        What::Returned => ("returned", None),
    };
    EventRow {
        time: seconds_ago(Duration::ZERO),
        kind: "ejection".to_owned(),
        reason: reason.to_owned(),
        destination: Some(change.endpoint.to_string()),
        service: Some(change.service.clone()),
        detail,
        ..EventRow::default()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic elsewhere is no reason to stop controlling the node: every write below is whole.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl NodeAgent {
    pub(super) fn new(
        instance: Instance,
        config_path: PathBuf,
        settings: AgentConfig,
        kernel: Kernel,
        workers: Arc<Workers>,
        telemetry: Arc<Telemetry>,
    ) -> Self {
        let paused = kernel.paused();
        Self {
            instance,
            config_path,
            started: SystemTime::now(),
            settings,
            workers,
            telemetry,
            snapshot: ArcSwap::from_pointee(Snapshot::empty()),
            events: Arc::default(),
            foreign: Mutex::default(),
            control: Mutex::new(Control {
                in_force: None,
                kernel,
                enrolments: Enrolments::default(),
                swept: MonoNanos(0),
            }),
            report: Mutex::new(Reported {
                paused,
                ..Reported::default()
            }),
        }
    }

    /// What happens, for those who watch.
    pub(super) fn events(&self) -> Arc<Events> {
        Arc::clone(&self.events)
    }

    /// Puts a configuration in force as a whole.
    ///
    /// Three steps, so that at no moment the kernel captures for a service that a worker doesn't
    /// know: the kernel forgets what goes, the workers swap, the kernel learns what comes.
    pub(super) fn put_in_force(&self, config: &Config, now: MonoNanos) -> Result<u64, KernelError> {
        let mut control = lock(&self.control);
        if control.in_force.as_ref() == Some(config) {
            // The watcher and `mesh reload` both saw the same change, or a bad edit was undone.
            let mut report = lock(&self.report);
            report.last_success = Some(SystemTime::now());
            report.last_error = None;
            return Ok(self.snapshot.load().generation);
        }
        let old = self.snapshot.load_full();
        let new = Arc::new(Snapshot::compile(
            Arc::new(config.model.clone()),
            Some(&old),
            now,
        ));
        let (old_table, table) = (old.kernel_table(), new.kernel_table());
        let mut staying = old_table.clone();
        staying
            .services
            .retain(|key, _| table.services.contains_key(key));
        if staying.services.len() != old_table.services.len() {
            control.kernel.apply(&staying)?;
        }
        self.workers.swap(Arc::clone(&new));
        if let Err(error) = control.kernel.apply(&table) {
            self.workers.swap(Arc::clone(&old));
            // At a start nothing of ours was in force: what a predecessor left stays, for it is
            // what `failure: closed` and the last split stand on.
            if control.in_force.is_some() {
                // The maps were not full with the old table, so they take it again.
                control.kernel.apply(&old_table)?;
            }
            return Err(error);
        }
        self.workers.set_limits(&config.agent.limits);
        self.snapshot.store(Arc::clone(&new));
        control.in_force = Some(config.clone());
        let Control {
            kernel, enrolments, ..
        } = &mut *control;
        enrolments.follow(&new.model, kernel, &self.workers, now);
        if let Err(error) = self.telemetry.set_access_log(&config.agent.access_log) {
            tracing::warn!(%error, "the access log can't be written, the old one goes on");
        }
        let mut report = lock(&self.report);
        report.last_success = Some(SystemTime::now());
        report.last_error = None;
        report.workloads = enrolments.status();
        Ok(new.generation)
    }

    /// A new valid file. `waiting`: settings in it that wait for a restart; the platform put the
    /// running values in their place.
    ///
    /// # Errors
    /// Why it could not be put in force, which is logged and kept for `mesh status`.
    pub(super) fn loaded(
        &self,
        config: &Config,
        waiting: Vec<String>,
        now: MonoNanos,
    ) -> Result<u64, String> {
        match self.put_in_force(config, now) {
            Ok(generation) => {
                tracing::info!(generation, "snapshot in force");
                lock(&self.report).restart_needed = waiting;
                Ok(generation)
            }
            Err(error) => Err(self.refused(error.to_string())),
        }
    }

    /// A file that can't be used, as the platform said and logged: the old snapshot stays.
    pub(super) fn rejected(&self, message: String) {
        lock(&self.report).last_error = Some(LastError {
            at: SystemTime::now(),
            message,
        });
    }

    /// The same, found here: logged here.
    fn refused(&self, message: String) -> String {
        tracing::warn!(%message, "configuration refused, the last snapshot stays in force");
        self.rejected(message.clone());
        message
    }

    /// Looks around: lost and late workloads, ejection sweeps (each second).
    pub(super) fn tick(&self, now: MonoNanos) {
        let mut control = lock(&self.control);
        let Control {
            kernel,
            enrolments,
            swept,
            ..
        } = &mut *control;
        self.look_at_links(kernel, now);
        let events = kernel.events(EVENTS_PER_TICK);
        if !events.is_empty() {
            log_events(&events);
            let workloads = &lock(&self.report).workloads;
            let rows = events.iter().map(|event| event_row(event, workloads, now));
            self.events.publish(rows);
        }
        enrolments.tick(kernel, &self.workers, now);
        lock(&self.report).workloads = enrolments.status();
        if now.since(*swept).as_millis() >= 1000 {
            *swept = now;
            let snapshot = self.snapshot.load();
            for change in snapshot.sweep(now) {
                self.telemetry.ejection(&change);
            }
        }
        let changes = self.telemetry.take_ejections();
        if !changes.is_empty() {
            self.events.publish(changes.iter().map(ejection_row));
        }
    }

    fn look_at_links(&self, kernel: &Kernel, now: MonoNanos) {
        let looked = lock(&self.report).links.looked;
        if looked != MonoNanos(0) && now.since(looked) < LINKS_LOOK {
            return;
        }
        let rows = View::open(&self.instance)
            .map(|view| view.progs())
            .unwrap_or_default();
        let stands = |hook: &str| rows.iter().any(|row| row.program == hook);
        let missing: Vec<_> = HOOKS.iter().copied().filter(|hook| !stands(hook)).collect();
        if !missing.is_empty() {
            tracing::error!(
                ?missing,
                "links are gone: restart the agent to attach them again"
            );
        }
        self.look_at_foreign(kernel, now);
        lock(&self.report).links = Links {
            looked: now,
            missing,
            count: rows.len(),
        };
    }

    /// Hooks of others before ours: each is told once, as long as it stands.
    fn look_at_foreign(&self, kernel: &Kernel, now: MonoNanos) {
        let found = kernel.foreign_hooks();
        let mut told = lock(&self.foreign);
        for hook in found.iter().filter(|hook| !told.contains(hook)) {
            tracing::warn!(
                cgroup = hook.cgroup,
                hook = hook.hook,
                programs = ?hook.programs,
                "a connect hook of somebody else runs before ours: if it rewrites destinations, \
                 the services' addresses are hidden"
            );
            self.events.publish([EventRow {
                time: seconds_ago(clock::now().since(now)),
                kind: "foreign-hook".to_owned(),
                reason: format!("before_{}", hook.hook),
                detail: Some(format!("{} programs {:?}", hook.cgroup, hook.programs)),
                ..EventRow::default()
            }]);
        }
        *told = found;
    }

    /// How long a stop waits, by the configuration in force.
    pub(super) fn drain_limit(&self) -> Duration {
        let control = lock(&self.control);
        control
            .in_force
            .as_ref()
            .map_or(self.settings.drain, |config| config.agent.drain)
    }

    /// While draining nothing is enrolled any more, but a pod that goes must be let go.
    pub(super) fn tick_draining(&self) {
        let mut control = lock(&self.control);
        let Control {
            kernel, enrolments, ..
        } = &mut *control;
        enrolments.let_go_of_gone(kernel, &self.workers, clock::now());
    }

    pub(super) fn set_draining(&self) {
        lock(&self.report).draining = true;
    }
}

impl Agent for NodeAgent {
    fn status(&self) -> Status {
        let generation = self.snapshot.load().generation;
        let report = lock(&self.report);
        let live = report
            .workloads
            .iter()
            .filter(|w| w.pod_id.is_some())
            .count();
        Status {
            instance: self.instance.name().to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            started: self.started,
            conditions: vec![
                Condition {
                    name: "programs".into(),
                    ok: report.links.missing.is_empty(),
                    detail: match report.links.missing.as_slice() {
                        [] => format!("{} links attached and pinned", report.links.count),
                        missing => format!("not attached: {}", missing.join(", ")),
                    },
                },
                Condition {
                    name: "model".into(),
                    ok: report.last_success.is_some(),
                    detail: match report.last_success {
                        Some(_) => {
                            format!("generation {generation} in force, {live} workloads live")
                        }
                        None => "no snapshot yet".into(),
                    },
                },
            ],
            generation,
            config: ConfigStatus {
                path: self.config_path.display().to_string(),
                last_success: report.last_success,
                last_error: report.last_error.clone(),
            },
            workloads: report.workloads.clone(),
            workers: self.workers.count(),
            drain: if report.draining {
                Drain::Draining
            } else {
                Drain::No
            },
            redirect: !report.paused,
            restart_needed: report.restart_needed.clone(),
        }
    }

    fn live(&self) -> Result<(), String> {
        let still = clock::now().since(self.workers.oldest_tick());
        if still < STUCK {
            return Ok(());
        }
        Err(format!("a worker stands still since {} s", still.as_secs()))
    }

    fn snapshot(&self) -> Arc<Snapshot> {
        self.snapshot.load_full()
    }

    fn kernel(&self) -> KernelSample {
        match View::open(&self.instance) {
            Ok(view) => KernelSample {
                stats: view.stats(),
                maps: view.maps(),
            },
            Err(error) => {
                tracing::warn!(%error, "the kernel's counters can't be read");
                KernelSample::default()
            }
        }
    }

    fn redirect(&self, on: bool) -> Result<(), String> {
        lock(&self.control)
            .kernel
            .set_paused(!on)
            .map_err(|error| error.to_string())?;
        lock(&self.report).paused = !on;
        tracing::info!(on, "redirect");
        Ok(())
    }

    fn reload(&self) -> Result<u64, String> {
        match config::load(&self.config_path) {
            Ok(mut config) => {
                let waiting = keep_until_restart(&self.settings, &mut config.agent);
                self.loaded(&config, waiting, clock::now())
            }
            Err(error) => Err(self.refused(error.render(false))),
        }
    }
}
