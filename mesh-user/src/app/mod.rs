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

use std::{path::PathBuf, sync::Arc, time::Duration};

use anyhow::Context as _;
use tokio::signal::unix::{SignalKind, signal};

use self::{agent::NodeAgent, heartbeat::HeartbeatThread};
use crate::{
    admin::{Admin, AdminOptions},
    clock,
    config::{AgentConfig, Config, UnknownNetns},
    kernel::{Instance, Kernel, KernelOptions, Marks, cleanup},
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
}

/// Runs the agent until SIGTERM or SIGINT, then drains.
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
    // Whether anything of this instance was there before: a failed start must not remove it.
    let adopting = !crate::kernel::inventory::pins(&options.instance).is_empty();
    let started = start(
        &options.instance,
        config_path,
        &config,
        Arc::clone(&telemetry),
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
    runtime.block_on(control(&running.agent, source, &telemetry))?;
    running.stop();
    Ok(())
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
) -> anyhow::Result<Running> {
    let settings = &config.agent;
    let kernel = Kernel::start(&kernel_options(instance, settings))?;
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
    let heartbeat = HeartbeatThread::start(kernel.heartbeat()?, Arc::clone(&workers))?;
    let agent = Arc::new(NodeAgent::new(
        instance.clone(),
        config_path,
        settings.clone(),
        kernel,
        workers,
        Arc::clone(&telemetry),
    ));
    let admin = Admin::start(AdminOptions {
        instance: instance.clone(),
        metrics: settings.metrics,
        agent: Arc::clone(&agent) as Arc<dyn crate::admin::Agent>,
        telemetry,
        events: agent.events(),
    })?;
    agent.tick(now);
    agent
        .put_in_force(config, now)
        .context("can't put the configuration in force")?;
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
        marks: Marks::of_bits(settings.marks.capture_bit, settings.marks.agent_bit),
    }
}

/// The control loop: file events, signals, ticks. Returns when asked to stop.
async fn control(
    agent: &NodeAgent,
    source: FileSource,
    telemetry: &Telemetry,
) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("can't watch SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("can't watch SIGINT")?;
    let mut hangup = signal(SignalKind::hangup()).context("can't watch SIGHUP")?;
    let file = source.status();
    let mut events = source.watch();
    let mut ticks = tokio::time::interval(TICK);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut watching = true;
    loop {
        tokio::select! {
            _ = terminate.recv() => return Ok(()),
            _ = interrupt.recv() => return Ok(()),
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
        let cut = std::thread::scope(|scope| {
            let drain = scope.spawn(|| workers.drain(limit));
            while !drain.is_finished() {
                self.agent.tick_draining();
                std::thread::sleep(DRAIN_TICK);
            }
            drain.join().unwrap_or(0)
        });
        tracing::info!(cut, "stopped");
        drop(self.admin);
    }
}
