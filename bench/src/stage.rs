//! The namespaces, the servers, and the client's loads.

use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _},
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use mesh_user::{
    demo::load::Report,
    testbed::{Pod, Testbed},
};

use crate::cores::{self, Cores};

/// Where the node is for pods.
pub(crate) const NODE: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
/// Port of the servers.
pub(crate) const SERVER_PORT: u16 = 8080;
/// How long a server or proxy may take to come up: Envoy needs 0.3 s on an idle machine.
const READY_MAX: Duration = Duration::from_secs(15);

/// Everything but the proxies.
pub(crate) struct Stage {
    // Before the bed: the processes end before their namespaces go.
    servers: Vec<Running>,
    pub(crate) bed: Testbed,
    pub(crate) client: Pod,
    pub(crate) v1: Pod,
    pub(crate) v2: Pod,
    pub(crate) cores: Cores,
    /// For configuration files; removed at the end.
    pub(crate) dir: PathBuf,
    /// This very program.
    pub(crate) own: PathBuf,
}

/// A process that is killed when it is dropped.
pub(crate) struct Running {
    child: Child,
    /// Removes what the killed process leaves in the kernel.
    after: Option<Command>,
}

impl Running {
    pub(crate) fn new(child: Child) -> Self {
        Self { child, after: None }
    }

    /// Runs a command after the process was killed.
    pub(crate) fn then(mut self, command: Command) -> Self {
        self.after = Some(command);
        self
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// An error when the process has ended.
    pub(crate) fn check(&mut self, name: &str) -> Result<()> {
        match self.child.try_wait()? {
            Some(status) => bail!("{name} ended with {status}"),
            None => Ok(()),
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Both fail only when it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if let Some(after) = &mut self.after
            && !after.output().is_ok_and(|output| output.status.success())
        {
            eprintln!("not all removed: {after:?} failed");
        }
    }
}

impl Stage {
    pub(crate) fn build() -> Result<Self> {
        let cores = Cores::assign()?;
        let mut bed = Testbed::new("bench")?;
        let client = bed.pod("client")?;
        let (v1, v2) = (bed.pod("v1")?, bed.pod("v2")?);
        for pod in [&client, &v1, &v2] {
            bed.in_netns(pod, many_connections)?
                .context("network settings of a pod")?;
        }
        bed.in_node(many_connections)?
            .context("network settings of the node")?;
        let dir = std::env::temp_dir().join(format!("mesh-bench-{}", std::process::id()));
        fs::create_dir_all(&dir).with_context(|| format!("can't make {}", dir.display()))?;
        let own = std::env::current_exe().context("can't find the own binary")?;
        let mut stage = Self {
            servers: Vec::new(),
            bed,
            client,
            v1,
            v2,
            cores,
            dir,
            own,
        };
        for (pod, version) in [(stage.v1.clone(), "v1"), (stage.v2.clone(), "v2")] {
            let server = stage.server(&pod, version)?;
            stage.servers.push(server);
        }
        Ok(stage)
    }

    fn server(&self, pod: &Pod, version: &str) -> Result<Running> {
        let mut command = cores::pinned(self.cores.server, &self.own);
        command.args(["echo", "--fast", "--version", version]);
        command.args(["--http", &format!("0.0.0.0:{SERVER_PORT}")]);
        command.stdout(Stdio::piped()).stdin(Stdio::null());
        let mut child = self.bed.spawn_in(pod, command)?;
        let stdout = child
            .stdout
            .take()
            .context("stdout was asked to be a pipe")?;
        let running = Running::new(child);
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line)?;
        ensure!(
            line.starts_with("listening "),
            "the server of {version} did not start"
        );
        Ok(running)
    }

    /// A load in the client's pod.
    pub(crate) fn load(&self, load: &Load) -> Result<Report> {
        let mut running = self.start_load(load)?;
        let mut text = String::new();
        running
            .child
            .stdout
            .take()
            .context("stdout is a pipe")?
            .read_to_string(&mut text)?;
        running.child.wait()?;
        let line = text.lines().last().context("the load printed no report")?;
        serde_json::from_str(line).context("the load's report is no JSON")
    }

    /// Starts a load that goes on by itself.
    pub(crate) fn start_load(&self, load: &Load) -> Result<Running> {
        let mut command = cores::pinned(self.cores.client, &self.own);
        command
            .arg("load")
            .arg(format!("http://web{}", load.path))
            .arg("--json");
        command.args(["--connect", &load.to.to_string()]);
        command.args(["--connections", &load.connections.to_string()]);
        command.args(["--duration", &load.duration.as_secs_f64().to_string()]);
        command.args(&load.more).stdin(Stdio::null());
        // «Not one answer» is for the reader of the report to judge.
        command.stdout(Stdio::piped()).stderr(Stdio::null());
        Ok(Running::new(self.bed.spawn_in(&self.client, command)?))
    }

    /// Waits until something answers at an address.
    pub(crate) fn wait_ready(&self, name: &str, to: SocketAddr, proxy: &mut Running) -> Result<()> {
        let end = Instant::now() + READY_MAX;
        loop {
            proxy.check(name)?;
            let mut load = Load::new(to, 1, Duration::from_millis(20));
            load.more = vec!["--timeout=0.5".into()];
            if self.load(&load)?.statuses.contains_key(&200) {
                return Ok(());
            }
            ensure!(
                Instant::now() < end,
                "{name} did not answer at {to} within {READY_MAX:?}"
            );
        }
    }

    /// Starts a proxy in the node's namespace on its own processor; what it says goes to a file.
    pub(crate) fn proxy(&self, name: &str, program: &Path, args: &[&str]) -> Result<Running> {
        let log = self.dir.join(format!("{name}.log"));
        let log =
            fs::File::create(&log).with_context(|| format!("can't write {}", log.display()))?;
        let mut command: Command = cores::pinned(self.cores.proxy, program);
        command.args(args).stdin(Stdio::null());
        command.stdout(log.try_clone()?).stderr(log);
        Ok(Running::new(self.bed.spawn_node(command)?))
    }

    /// Writes a configuration file; returns its path as text.
    pub(crate) fn write(&self, name: &str, text: &str) -> Result<String> {
        let path = self.dir.join(name);
        fs::write(&path, text).with_context(|| format!("can't write {}", path.display()))?;
        Ok(path.display().to_string())
    }

    /// The end of a proxy's log, for errors.
    pub(crate) fn log_tail(&self, name: &str) -> String {
        let text = fs::read_to_string(self.dir.join(format!("{name}.log"))).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(30)..].join("\n  ")
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        self.servers.clear();
        let _ = fs::remove_dir_all(&self.dir);
    }
}

/// Settings of a namespace without which thousands of connections a second run out of ports. All
/// listeners are below the range, so that no outgoing connection sits on theirs.
fn many_connections() -> std::io::Result<()> {
    fs::write("/proc/sys/net/ipv4/ip_local_port_range", "16384 65535")?;
    fs::write("/proc/sys/net/ipv4/tcp_tw_reuse", "1")
}

/// What the client is to do.
#[derive(Clone, Debug)]
pub(crate) struct Load {
    to: SocketAddr,
    connections: u32,
    duration: Duration,
    /// Path and query.
    pub(crate) path: String,
    /// More arguments of `mesh demo load`.
    pub(crate) more: Vec<String>,
}

impl Load {
    pub(crate) fn new(to: SocketAddr, connections: u32, duration: Duration) -> Self {
        Self {
            to,
            connections,
            duration,
            path: "/".into(),
            more: Vec::new(),
        }
    }
}
