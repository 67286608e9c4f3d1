//! The running agent as the admin interface and the control loop see it.

use std::{
    fs::File,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    time::{Duration, SystemTime},
};

use arc_swap::ArcSwap;
use mesh_common::reason::{Event, Reason};
use tokio::sync::watch;

use super::{
    enrolment::Enrolments,
    kernel_path::KernelPath,
    shield::Shielding,
    takeover::{self, KeptSocket, Offer},
};
use crate::{
    admin::{
        Agent, Condition, ConfigStatus, Drain, KernelSample, LastError, ShieldAsk, Status,
        events::{EventRow, Events, seconds_ago},
    },
    clock::{self, MonoNanos},
    config::{self, AgentConfig, Config},
    kernel::{
        Instance, Kernel, KernelError,
        audit::{Finding, Outcome},
        foreign::ForeignHook,
        view::{REMOVED_CGROUP, View},
    },
    platform::file::keep_until_restart,
    policy::{
        Snapshot,
        ejection::{Change, What},
    },
    proxy::{Command, HealthChecks, Workers},
    telemetry::{LiveConnection, Refused, ShieldSample, Telemetry},
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
    shield: Shielding,
    health: HealthChecks,
    /// Apart from `control`, so that `mesh status` answers while a reload runs.
    report: Mutex<Reported>,
    phase: watch::Sender<Phase>,
    /// The admin interface's lock, for a successor.
    admin_lock: OnceLock<File>,
}

/// Whose the instance is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// This agent's.
    Ours,
    /// A successor starts: this agent serves, and changes nothing.
    HandingOver,
    /// The successor's.
    HandedOver,
}

#[derive(Debug)]
struct Control {
    /// The configuration in force.
    in_force: Option<Config>,
    kernel: Kernel,
    enrolments: Enrolments,
    kernel_path: KernelPath,
    swept: MonoNanos,
    /// While a successor starts, and ever after when it has taken over: it writes what the kernel
    /// holds.
    frozen: bool,
    /// While a successor starts.
    kept: Option<KeptSocket>,
    /// A successor that was given up lives still.
    outlived: bool,
    /// A configuration came meanwhile.
    missed: bool,
}

#[derive(Debug, Default)]
struct Reported {
    last_success: Option<SystemTime>,
    last_error: Option<LastError>,
    restart_needed: Vec<String>,
    workloads: Vec<crate::admin::WorkloadStatus>,
    paused: bool,
    draining: bool,
    /// Ways out of guarded workloads that are not guarded.
    gaps: Vec<String>,
    /// The kubelet's cgroup.
    kubelet: Option<String>,
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

/// Puts back what is missing of what we put up, and says so.
fn audit(kernel: &mut Kernel) -> Vec<EventRow> {
    let findings = kernel.audit();
    for finding in &findings {
        let (workload, what) = (&finding.workload, &finding.what);
        match &finding.outcome {
            Outcome::Repaired => tracing::warn!(%workload, what, "repaired"),
            Outcome::Failed(why) => {
                tracing::error!(%workload, what, why, "not repaired: the failure mode holds");
            }
            Outcome::Foreign => tracing::warn!(%workload, what, "somebody else's runs before ours"),
        }
    }
    findings.iter().map(audit_row).collect()
}

/// What the audit found, for those who watch.
fn audit_row(finding: &Finding) -> EventRow {
    let (reason, detail) = match &finding.outcome {
        Outcome::Repaired => ("repaired", finding.what.clone()),
        Outcome::Failed(why) => ("repair_failed", format!("{}: {why}", finding.what)),
        Outcome::Foreign => ("interference", finding.what.clone()),
    };
    EventRow {
        time: seconds_ago(Duration::ZERO),
        kind: "audit".to_owned(),
        reason: reason.to_owned(),
        workload: (!finding.workload.is_empty()).then(|| finding.workload.to_string()),
        detail: Some(detail),
        ..EventRow::default()
    }
}

/// Lets go of namespaces that went away, where a successor writes the maps.
fn let_go(kernel: &mut Kernel, workers: &Workers) {
    for pod_id in kernel.let_go_of_gone() {
        for index in 0..workers.count() {
            workers.send(index, Command::Release { pod_id });
        }
    }
}

/// Guarded workloads with a way out that is not guarded, by name.
fn gaps(kernel: &Kernel, enrolments: &Enrolments) -> Vec<String> {
    let status = enrolments.status();
    let name = |pod_id| {
        let found = status
            .iter()
            .find(|workload| workload.pod_id == Some(pod_id));
        found.map_or("?", |workload| workload.key.as_str())
    };
    let gaps = kernel.guard_gaps();
    gaps.map(|(pod_id, why)| format!("{}: {why}", name(pod_id)))
        .collect()
}

/// For those who watch.
fn event_row(
    event: &Event,
    workloads: &[crate::admin::WorkloadStatus],
    now: MonoNanos,
) -> EventRow {
    let reason = Reason::decode(event.reason);
    let known = workloads.iter().find(|w| w.pod_id == Some(event.pod_id));
    let label = reason.map_or("unknown", Reason::label);
    let kind = match reason {
        Some(Reason::SteerMissOpen | Reason::SteerMissClosed) => "miss",
        Some(reason) if reason.is_refusal() => "refused",
        _ => "bypass",
    };
    let place =
        |addr: std::net::SocketAddr| (!addr.ip().is_unspecified()).then(|| addr.to_string());
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

/// What the proxy refused, or could not carry to its end; the last row says how many more.
fn refusal_rows(refused: &[Refused], more: u64) -> Vec<EventRow> {
    let row = |refused: &Refused| EventRow {
        time: seconds_ago(Duration::ZERO),
        kind: "refused".to_owned(),
        reason: refused.reject.label().to_owned(),
        workload: Some(refused.workload.to_string()),
        source: Some(refused.peer.to_string()),
        destination: Some(refused.destination.to_string()),
        ..EventRow::default()
    };
    let mut rows: Vec<EventRow> = refused.iter().map(row).collect();
    if let Some(last) = rows.last_mut().filter(|_| more > 0) {
        last.detail = Some(format!("and {more} more like these in the access log"));
    }
    rows
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
        shield: Shielding,
    ) -> Self {
        let paused = kernel.paused();
        let health = HealthChecks::new(kernel.node_sockets(), Arc::clone(&telemetry));
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
                kernel_path: KernelPath::default(),
                swept: MonoNanos(0),
                frozen: false,
                kept: None,
                outlived: false,
                missed: false,
            }),
            shield,
            health,
            report: Mutex::new(Reported {
                paused,
                ..Reported::default()
            }),
            phase: watch::Sender::new(Phase::Ours),
            admin_lock: OnceLock::new(),
        }
    }

    /// What happens, for those who watch.
    pub(super) fn events(&self) -> Arc<Events> {
        Arc::clone(&self.events)
    }

    /// The lock that a successor gets with the instance.
    pub(super) fn set_admin_lock(&self, lock: File) {
        // Set once, after the start.
        let _first = self.admin_lock.set(lock);
    }

    /// Whose the instance is, and when that changes.
    pub(super) fn phase(&self) -> watch::Receiver<Phase> {
        self.phase.subscribe()
    }

    /// A successor starts: from here on it writes what the kernel holds.
    pub(super) fn freeze(&self) -> Result<(Offer, (File, File)), String> {
        let mut control = lock(&self.control);
        if lock(&self.report).draining {
            return Err("it is stopping: start again when it has ended".into());
        }
        if control.frozen || control.outlived {
            return Err("another successor is there: kill it if it hangs".into());
        }
        if control.in_force.is_none() {
            return Err("it has only just started: try again".into());
        }
        let admin_lock = self.admin_lock.get().ok_or("it has only just started")?;
        let locks = control
            .kernel
            .share_lock()
            .and_then(|lock| Ok((lock, admin_lock.try_clone()?)))
            .map_err(|error| format!("the locks can't be shared: {error}"))?;
        let kept = KeptSocket::keep(&self.instance)
            .map_err(|error| format!("the admin socket can't be kept: {error}"))?;
        control.kept = Some(kept);
        control.frozen = true;
        control.kernel.freeze();
        self.phase.send_replace(Phase::HandingOver);
        let offer = Offer {
            shards: control.kernel.shard_count(),
            metrics: self.settings.metrics,
            live: control.enrolments.live(),
        };
        drop(control);
        // Before the offer is sent: it may wait for a list that is written just now.
        self.shield.freeze();
        Ok((offer, locks))
    }

    /// The successor failed: everything is put back as it was. `lives`: it was given up and may write
    /// still; this comes again when it is gone, and until then no other is let in.
    pub(super) fn take_back(&self, lives: bool) {
        let mut control = lock(&self.control);
        control.outlived = lives;
        control.frozen = false;
        let table = control.kernel_path.tables().clone();
        if let Err(error) = control.kernel.take_back(&table) {
            tracing::error!(%error, "not everything is as it was before the takeover");
        }
        if let Some(kept) = control.kept.take()
            && let Err(error) = kept.put_back()
        {
            tracing::error!(%error, "the admin socket is lost");
        }
        let missed = std::mem::take(&mut control.missed);
        // With the lock in hand: the next successor's freeze comes after it.
        self.shield.thaw();
        drop(control);
        self.phase.send_replace(Phase::Ours);
        if missed {
            // A refusal is logged and kept for `mesh status`.
            let _refused = Agent::reload(self);
        }
    }

    /// The successor serves: the control loop ends.
    pub(super) fn handed_over(&self) {
        drop(lock(&self.control).kept.take());
        self.phase.send_replace(Phase::HandedOver);
    }

    /// Puts the first configuration in force beside an agent that serves: its connections go on, new
    /// ones come here workload by workload.
    ///
    /// # Errors
    /// A map is full, or a workload that the other serves can't be enrolled: the other goes on.
    pub(super) fn put_in_force_beside(
        &self,
        config: &Config,
        live: &[String],
        now: MonoNanos,
    ) -> anyhow::Result<()> {
        let mut control = lock(&self.control);
        let new = Arc::new(Snapshot::compile(
            Arc::new(config.model.clone()),
            Some(&self.snapshot.load_full()),
            now,
        ));
        let table = new.kernel_tables().clone();
        // The other's workers know what the kernel knows; what only we know waits until no
        // connection goes to them any more.
        control.kernel.apply_known(&table)?;
        self.workers.swap(Arc::clone(&new));
        let Control {
            kernel,
            enrolments,
            kernel_path,
            in_force,
            ..
        } = &mut *control;
        enrolments.follow(&new.model, kernel, &self.workers, now);
        if let Some(why) = enrolments.lost(live) {
            anyhow::bail!(why);
        }
        kernel.apply(&table)?;
        kernel.complete_takeover()?;
        kernel_path.stands(table);
        self.snapshot.store(Arc::clone(&new));
        self.health.follow(&new);
        *in_force = Some(config.clone());
        let mut report = lock(&self.report);
        report.last_success = Some(SystemTime::now());
        report.workloads = enrolments.status();
        Ok(())
    }

    /// The agent before us drains: from here on nothing is taken back.
    pub(super) fn settle_takeover(&self) {
        lock(&self.control).kernel.settle_takeover();
    }

    /// Puts a configuration in force as a whole.
    ///
    /// Three steps, so that at no moment the kernel captures for a service that a worker doesn't
    /// know: the kernel forgets what goes, the workers swap, the kernel learns what comes.
    pub(super) fn put_in_force(&self, config: &Config, now: MonoNanos) -> Result<u64, KernelError> {
        let mut control = lock(&self.control);
        if control.frozen {
            // Looked at again if the successor fails.
            control.missed = true;
            return Err(KernelError::HandingOver);
        }
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
        let Control {
            kernel,
            enrolments,
            kernel_path,
            in_force,
            ..
        } = &mut *control;
        let (old_table, table) = (kernel_path.tables().clone(), new.kernel_tables().clone());
        if let Some(staying) = old_table.staying(&table) {
            kernel.apply(&staying)?;
        }
        enrolments.narrow(&new.model, kernel);
        self.workers.swap(Arc::clone(&new));
        if let Err(error) = kernel.apply(&table) {
            self.workers.swap(Arc::clone(&old));
            enrolments.widen(kernel);
            // At a start nothing of ours was in force: what a predecessor left stays, for it is
            // what `failure: closed` and the last split stand on.
            if in_force.is_some() {
                // The maps were not full with the old table, so they take it again.
                kernel.apply(&old_table)?;
            }
            return Err(error);
        }
        self.workers.set_limits(&config.agent.limits);
        self.snapshot.store(Arc::clone(&new));
        self.health.follow(&new);
        kernel_path.stands(table);
        *in_force = Some(config.clone());
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
                self.follow_shield(config);
                lock(&self.report).restart_needed = waiting;
                Ok(generation)
            }
            Err(error) => Err(self.refused(error.to_string())),
        }
    }

    /// Brings the shield to what a configuration in force says of it.
    pub(super) fn follow_shield(&self, config: &Config) {
        self.shield.follow(config.agent.shield.as_ref());
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
            kernel_path,
            swept,
            frozen,
            ..
        } = &mut *control;
        if *frozen {
            return let_go(kernel, &self.workers);
        }
        self.look_at_links(kernel, now);
        self.workers.take_apart();
        let events = kernel.events(EVENTS_PER_TICK);
        if !events.is_empty() {
            log_events(&events);
            let workloads = &lock(&self.report).workloads;
            let rows = events.iter().map(|event| event_row(event, workloads, now));
            self.events.publish(rows);
        }
        enrolments.tick(kernel, &self.workers, now);
        let kubelet = kernel.kubelet_cgroup();
        let kubelet = kubelet.map(|path| path.display().to_string());
        let mut report = lock(&self.report);
        report.workloads = enrolments.status();
        report.kubelet = kubelet;
        drop(report);
        let snapshot = self.snapshot.load();
        let mut changes = kernel_path.feed_back(kernel, &snapshot, &self.telemetry, now);
        if now.since(*swept).as_millis() >= 1000 {
            *swept = now;
            let found = audit(kernel);
            if !found.is_empty() {
                self.events.publish(found);
            }
            lock(&self.report).gaps = gaps(kernel, enrolments);
            changes.extend(snapshot.sweep(now));
        }
        for change in &changes {
            self.telemetry.ejection(change);
        }
        if let Err(error) = kernel_path.rotate(kernel, &snapshot) {
            tracing::warn!(%error, "the kernel's split could not be written anew");
        }
        let (refused, more) = self.telemetry.take_refusals();
        if !refused.is_empty() {
            self.events.publish(refusal_rows(&refused, more));
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
        // Somebody may have removed an attach point under its links, too.
        let stands = |hook: &str| {
            let mut links = rows.iter().filter(|row| row.program == hook).peekable();
            links.peek().is_some() && links.all(|row| row.attached != REMOVED_CGROUP)
        };
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
            kernel,
            enrolments,
            frozen,
            ..
        } = &mut *control;
        if *frozen {
            return let_go(kernel, &self.workers);
        }
        enrolments.let_go_of_gone(kernel, &self.workers, clock::now());
    }

    pub(super) fn set_draining(&self) {
        lock(&self.report).draining = true;
    }
}

impl Agent for NodeAgent {
    fn status(&self) -> Status {
        let generation = self.snapshot.load().generation;
        let shield = self.shield.condition().map(|(ok, detail)| Condition {
            name: "shield".into(),
            ok,
            detail,
        });
        let tls = self.workers.tls_problems().map(|problems| Condition {
            name: "tls-files".into(),
            // What was good stays in force: no reason to send clients elsewhere.
            ok: true,
            detail: match problems.as_slice() {
                [] => "certificates, keys and CAs are as their files".into(),
                problems => format!("not in force: {}", problems.join("; ")),
            },
        });
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
            conditions: [
                Condition {
                    name: "programs".into(),
                    ok: report.links.missing.is_empty(),
                    detail: match report.links.missing.as_slice() {
                        [] => format!("{} links attached and pinned", report.links.count),
                        missing => format!("not attached: {}", missing.join(", ")),
                    },
                },
                Condition {
                    name: "bypass-guard".into(),
                    ok: report.gaps.is_empty(),
                    detail: match report.gaps.as_slice() {
                        [] => "every way out of the guarded workloads is guarded".into(),
                        gaps => gaps.join("; "),
                    },
                },
                Condition {
                    name: "probes".into(),
                    ok: true,
                    detail: match &report.kubelet {
                        Some(cgroup) => format!("of the kubelet in {cgroup} pass"),
                        None => "no kubelet cgroup: probes meet the inbound rules".into(),
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
            ]
            .into_iter()
            .chain(shield)
            .chain(tls)
            .collect(),
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

    fn shield(&self, ask: &ShieldAsk) -> Result<serde_json::Value, String> {
        self.shield.ask(ask)
    }

    fn connections(&self, peer: Option<std::net::SocketAddr>) -> Vec<LiveConnection> {
        self.workers.connections(peer)
    }

    fn shield_sample(&self) -> Option<ShieldSample> {
        self.shield.sample()
    }

    fn redirect(&self, on: bool) -> Result<(), String> {
        let mut control = lock(&self.control);
        if control.frozen {
            return Err(KernelError::HandingOver.to_string());
        }
        control
            .kernel
            .set_paused(!on)
            .map_err(|error| error.to_string())?;
        lock(&self.report).paused = !on;
        tracing::info!(on, "redirect");
        Ok(())
    }

    fn hand_over(&self, successor: std::os::unix::net::UnixStream) {
        takeover::serve(self, successor);
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
