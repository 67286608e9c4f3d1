//! The agent's life: introduces kernel, proxy, platform and admin to each other.
//!
//! Three kinds of threads: the workers (the data path), the admin thread, and this one (control).
//! A fourth, tiny one writes the heartbeat, so that a slow reload never looks like a dead agent.
//!
//! Invariants kept here:
//! - state first, capture second: a service is known to every worker before the kernel captures
//!   for it, and the kernel stops capturing before a worker forgets it;
//! - a reload swaps a whole snapshot or changes nothing;
//! - a failed start leaves the kernel as it was found.

mod agent;
mod enrolment;
mod heartbeat;
mod kernel_path;
mod shield;
mod takeover;

use std::{path::PathBuf, sync::Arc, time::Duration};

use anyhow::Context as _;
use tokio::signal::unix::{SignalKind, signal};

use self::{
    agent::{NodeAgent, Phase},
    heartbeat::HeartbeatThread,
    shield::Shielding,
    takeover::Predecessor,
};
use crate::{
    admin::{Admin, AdminOptions},
    clock,
    config::{AgentConfig, Config, UnknownNetns},
    kernel::{Inherited, Instance, Kernel, KernelOptions, Marks, cleanup},
    platform::file::{FileEvent, FileSource},
    policy::Snapshot,
    proxy::{Workers, WorkersOptions},
    telemetry::Telemetry,
};

/// How often the control loop looks around: lost workloads, retries of enrolment.
const TICK: Duration = Duration::from_millis(250);

/// The same while draining; shorter, since the end of the drain is noticed by it too.
const DRAIN_TICK: Duration = Duration::from_millis(50);

/// What `mesh run` was asked to do.
#[derive(Clone, Debug)]
pub struct RunOptions {
    /// The configuration file.
    pub config: PathBuf,
    /// The instance.
    pub instance: Instance,
    /// Take over from the running agent of this instance, if there is one.
    pub takeover: bool,
}

/// How long an agent that has handed over still accepts. A client whose SYN came before, and whose
/// next packet got lost, sends it again after a second (RFC 6298 §2.1): its handshake ends at the
/// listener where it began.
const LINGER: Duration = Duration::from_millis(1_500);

/// Runs the agent until SIGTERM or SIGINT, or until a successor has taken over; then drains.
///
/// Programs, links and maps stay pinned at the end: the kernel goes on by each workload's failure
/// mode until the next start adopts them, or `mesh cleanup` removes them.
///
/// # Errors
/// A configuration that can't be used, a kernel that lacks something, a port that is taken: each
/// by name, and nothing half-attached is left.
pub fn run(options: RunOptions) -> anyhow::Result<()> {
    let config_path = std::path::absolute(&options.config)
        .with_context(|| format!("can't make {} absolute", options.config.display()))?;
    let (source, config) = FileSource::open(&config_path)
        .map_err(|error| anyhow::anyhow!("{}", error.render(false)))?;
    let telemetry = Telemetry::new(&config.agent.access_log)
        .context("the access log can't be written (agent.access-log.path)")?;
    // After everything that can be found out alone: from here on the running agent waits for us.
    let predecessor = match options.takeover {
        true => Predecessor::ask(&options.instance)?,
        false => None,
    };
    if options.takeover && predecessor.is_none() {
        tracing::info!("no agent to take over from: an ordinary start");
    }
    // Whether anything of this instance was there before: a failed start must not remove it.
    let adopting = !crate::kernel::inventory::pins(&options.instance).is_empty();
    let started = start(
        &options.instance,
        config_path,
        &config,
        Arc::clone(&telemetry),
        predecessor,
    );
    let running = match started {
        Ok(running) => running,
        Err(error) => {
            if !adopting {
                // Without force: when another agent of this instance won the race to its lock, what
                // is pinned by now is that agent's.
                cleanup::cleanup(&options.instance, false, false);
            }
            return Err(error);
        }
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("can't make the control runtime")?;
    match runtime.block_on(control(&running.agent, source, &telemetry))? {
        Ended::Asked => running.stop(),
        Ended::HandedOver => running.leave(),
    }
    Ok(())
}

/// Why the control loop ended.
enum Ended {
    /// By a signal.
    Asked,
    /// A successor serves.
    HandedOver,
}

/// A started agent.
struct Running {
    agent: Arc<NodeAgent>,
    admin: Admin,
    heartbeat: HeartbeatThread,
}

fn start(
    instance: &Instance,
    config_path: PathBuf,
    config: &Config,
    telemetry: Arc<Telemetry>,
    predecessor: Option<Predecessor>,
) -> anyhow::Result<Running> {
    let settings = &config.agent;
    let options = kernel_options(instance, settings);
    let kernel = match &predecessor {
        None => Kernel::start(&options)?,
        Some(other) => {
            other.waits()?;
            let lock = other.lock.try_clone().context("the instance's lock")?;
            let shards = other.offer.shards;
            Kernel::take_over(&options, Inherited { lock, shards })?
        }
    };
    let now = clock::now();
    let workers = Workers::start(
        WorkersOptions {
            workers: settings.workers,
            // Pinning helps only when every CPU has its worker; else the scheduler knows better.
            pin: std::thread::available_parallelism().is_ok_and(|n| n.get() == settings.workers),
            limits: settings.limits.clone(),
            origins: kernel.origins(),
            node_sockets: kernel.node_sockets(),
            telemetry: Arc::clone(&telemetry),
        },
        Arc::new(Snapshot::empty()),
    )
    .context("can't start the workers")?;
    let workers = Arc::new(workers);
    let heartbeat =
        HeartbeatThread::start(kernel.heartbeat()?, kernel.shards(), Arc::clone(&workers))?;
    let agent = Arc::new(NodeAgent::new(
        instance.clone(),
        config_path,
        settings.clone(),
        kernel,
        workers,
        Arc::clone(&telemetry),
        Shielding::start(instance.clone()).context("can't start the shield's thread")?,
    ));
    let options = AdminOptions {
        instance: instance.clone(),
        metrics: settings.metrics,
        agent: Arc::clone(&agent) as Arc<dyn crate::admin::Agent>,
        telemetry,
        events: agent.events(),
    };
    const IN_FORCE: &str = "can't put the configuration in force";
    let admin = match predecessor {
        None => {
            let admin = Admin::start(options)?;
            agent.tick(now);
            agent.put_in_force(config, now).context(IN_FORCE)?;
            admin
        }
        Some(other) => {
            other.waits()?;
            agent
                .put_in_force_beside(config, &other.offer.live, now)
                .context(IN_FORCE)?;
            agent.tick(now);
            let lock = other.admin_lock.try_clone().context("the admin lock")?;
            let admin = Admin::take_over(options, lock, other.offer.metrics)?;
            other.finish()?;
            agent.settle_takeover();
            admin
        }
    };
    agent.set_admin_lock(admin.share_lock().context("the admin lock")?);
    agent.follow_shield(config);
    Ok(Running {
        agent,
        admin,
        heartbeat,
    })
}

fn kernel_options(instance: &Instance, settings: &AgentConfig) -> KernelOptions {
    KernelOptions {
        instance: instance.clone(),
        attach: settings.attach.clone(),
        // 1 to 8 by validation.
        shards: settings.workers as u16,
        refuse_unknown: settings.unknown_netns == UnknownNetns::Refuse,
        kubelet_cgroup: settings.kubelet_cgroup.clone(),
        capacities: Vec::new(),
        marks: Marks::of_bits(settings.marks.capture_bit, settings.marks.agent_bit),
    }
}

/// The control loop: file events, signals, ticks. Returns when asked to stop, or when a successor
/// serves. While one starts a signal waits: it ends this agent when the successor has failed.
async fn control(
    agent: &NodeAgent,
    source: FileSource,
    telemetry: &Telemetry,
) -> anyhow::Result<Ended> {
    let mut terminate = signal(SignalKind::terminate()).context("can't watch SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("can't watch SIGINT")?;
    let mut hangup = signal(SignalKind::hangup()).context("can't watch SIGHUP")?;
    let file = source.status();
    let mut events = source.watch();
    let mut ticks = tokio::time::interval(TICK);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut watching = true;
    let mut phase = agent.phase();
    let mut asked = false;
    loop {
        match *phase.borrow_and_update() {
            Phase::HandedOver => return Ok(Ended::HandedOver),
            Phase::Ours if asked => return Ok(Ended::Asked),
            Phase::Ours | Phase::HandingOver => {}
        }
        tokio::select! {
            _ = terminate.recv() => asked = true,
            _ = interrupt.recv() => asked = true,
            // Its sender lives as long as the agent.
            _ = phase.changed() => {}
            _ = hangup.recv() => {
                telemetry.reopen_access_log();
                // A refusal is logged and kept for `mesh status` by the reload itself.
                let _refused = crate::admin::Agent::reload(agent);
            }
            event = events.recv(), if watching => match event {
                Some(FileEvent::Loaded(config)) => {
                    let waiting = file.borrow().needs_restart.clone();
                    let _refused = agent.loaded(&config, waiting, clock::now());
                }
                Some(FileEvent::Rejected(error)) => agent.rejected(error.render(false)),
                None => {
                    watching = false;
                    tracing::error!("the configuration is no longer watched: restart the agent");
                }
            },
            _ = ticks.tick() => agent.tick(clock::now()),
        }
    }
}

impl Running {
    /// Sends new connections to the failure mode at once, lets those in flight end, then goes.
    fn stop(self) {
        self.agent.set_draining();
        let limit = self.agent.drain_limit();
        tracing::info!(limit_s = limit.as_secs_f64(), "draining");
        // A heartbeat of 0 is stale: the connect hook stops capturing before a listener closes,
        // so that no connection is left in a listener's queue.
        let workers = self.heartbeat.stop();
        let cut = drain(&self.agent, &workers, limit);
        tracing::info!(cut, "stopped");
        drop(self.admin);
    }

    /// A successor serves: takes what is half open at its listeners, lets the rest end, then goes.
    /// Nothing is written to the kernel any more.
    fn leave(mut self) {
        let limit = self.agent.drain_limit();
        tracing::info!(
            limit_s = limit.as_secs_f64(),
            "draining, a successor serves"
        );
        // The last probes that reach this side of the health port get the node's answer.
        self.admin.retire();
        let (workers, _heartbeat) = self.heartbeat.retire();
        let begun = std::time::Instant::now();
        while begun.elapsed() < LINGER {
            self.agent.tick_draining();
            std::thread::sleep(DRAIN_TICK);
        }
        self.agent.set_draining();
        let cut = drain(&self.agent, &workers, limit);
        tracing::info!(cut, "left");
        drop(self.admin);
    }
}

/// Ends what the workers serve; pods that go away meanwhile are let go. How many connections were
/// cut.
fn drain(agent: &NodeAgent, workers: &Workers, limit: Duration) -> usize {
    std::thread::scope(|scope| {
        let drain = scope.spawn(|| workers.drain(limit));
        while !drain.is_finished() {
            agent.tick_draining();
            std::thread::sleep(DRAIN_TICK);
        }
        drain.join().unwrap_or(0)
    })
}
