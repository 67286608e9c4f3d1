//! A stage: pods, echo servers, the agent, and its configuration file. The demo plays on it, and so
//! do the traffic tests.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    time::Duration,
};

use anyhow::{Context as _, bail, ensure};

use super::ask::Answers;
use crate::{
    kernel::{Instance, cleanup, mounts},
    testbed::{Pod, Testbed, wait_until},
};

/// Virtual address of `web`, IPv4. Nobody routes it: without the mesh it leads nowhere.
pub const VIP4: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 10);
/// Virtual address of `web`, IPv6.
pub const VIP6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x96, 0, 0, 0, 0, 0, 0x10);
/// Port of `web` that clients dial.
pub const PORT: u16 = 80;
/// Port of `web` for opaque TCP that echoes.
pub const TCP_PORT: u16 = 7;
/// Port of `web` on which the server speaks first.
pub const BANNER_PORT: u16 = 25;
/// Ports on which the servers really listen.
const TARGET: u16 = 8080;
const TCP_TARGET: u16 = 9000;
const BANNER_TARGET: u16 = 9001;

/// How long anything may take to come up: long enough for an emulated processor.
const READY: Duration = Duration::from_secs(40);

/// What the configuration of a moment says.
#[derive(Clone, Debug)]
pub struct Stage {
    /// Weights of v1 and v2.
    pub weights: (u32, u32),
    /// Whether `x-user: beta` and the workload `tester` get v2.
    pub beta: bool,
    /// Requests a second for each workload, and the burst.
    pub limit: Option<(u32, u32)>,
}

impl Default for Stage {
    fn default() -> Self {
        Self {
            weights: (90, 10),
            beta: true,
            limit: None,
        }
    }
}

/// Everything that runs.
#[derive(Debug)]
pub struct Scene {
    /// Namespaces and cgroups.
    pub bed: Testbed,
    /// The agent's instance: named as the bed.
    pub instance: Instance,
    /// A workload that asks.
    pub client: Pod,
    /// Another one, told apart by its tags only.
    pub tester: Pod,
    servers: Vec<Server>,
    dir: PathBuf,
    agent: Option<Child>,
    binary: PathBuf,
    /// Programs and maps that its agents loaded, as `name#id`.
    own: BTreeSet<String>,
}

#[derive(Debug)]
struct Server {
    pod: Pod,
    version: &'static str,
    process: Child,
}

impl Scene {
    /// Makes pods and servers; the agent doesn't run yet. `binary` is `mesh` itself, run for all
    /// parts; `name` prefixes everything.
    ///
    /// # Errors
    /// Not root, no `ip` command, or a server did not come up.
    pub fn build(name: &str, binary: &Path) -> anyhow::Result<Self> {
        let instance = Instance::new(name).map_err(anyhow::Error::msg)?;
        // What a killed demo left: the kernel side first, then its namespaces.
        cleanup::cleanup(&instance, false, true);
        let mut bed = Testbed::new(name)?;
        let client = bed.pod("client")?;
        let tester = bed.pod("tester")?;
        let dir = PathBuf::from("/run").join(format!("mesh-demo-{name}"));
        // Logs too: who counts their lines counts those of this run.
        std::fs::remove_dir_all(&dir).ok();
        std::fs::create_dir_all(&dir).with_context(|| format!("can't make {}", dir.display()))?;
        let mut scene = Self {
            bed,
            instance,
            client,
            tester,
            servers: Vec::new(),
            dir,
            agent: None,
            binary: binary.to_owned(),
            own: BTreeSet::new(),
        };
        for (pod, version) in [("web-v1-a", "v1"), ("web-v1-b", "v1"), ("web-v2", "v2")] {
            scene.server(pod, version)?;
        }
        scene.write(&Stage::default())?;
        Ok(scene)
    }

    fn server(&mut self, name: &str, version: &'static str) -> anyhow::Result<()> {
        let pod = self.bed.pod(name)?;
        let mut command = Command::new(&self.binary);
        command.args(["demo", "echo", "--name", name, "--version", version]);
        command.arg("--http").arg(format!("[::]:{TARGET}"));
        command.arg("--tcp").arg(format!("[::]:{TCP_TARGET}"));
        command
            .arg("--server-first")
            .arg(format!("[::]:{BANNER_TARGET}"));
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(self.log("echo")?);
        let process = self.bed.spawn_in(&pod, command)?;
        let address = SocketAddr::from((pod.v4, TARGET));
        self.servers.push(Server {
            pod,
            version,
            process,
        });
        let up = wait_until(READY, || {
            self.ask_from_node(address, &["--path", "/"])
                .is_ok_and(|a| a.status(200) == 1)
        });
        ensure!(
            up,
            "the echo server {name} did not come up, see {}/echo.log",
            self.dir.display()
        );
        Ok(())
    }

    fn log(&self, name: &str) -> anyhow::Result<Stdio> {
        let path = self.dir.join(format!("{name}.log"));
        let file = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(&path)
            .with_context(|| format!("can't write {}", path.display()))?;
        Ok(Stdio::from(file))
    }

    /// The watched configuration file.
    pub fn config_path(&self) -> PathBuf {
        self.dir.join("mesh.yaml")
    }

    /// Where logs and files of the demo are.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The configuration for a stage, as text.
    pub fn config_text(&self, stage: &Stage) -> String {
        let Stage {
            weights: (v1, v2),
            beta,
            limit,
        } = stage;
        let mut text = String::from("rules:\n");
        if *beta {
            text.push_str(
                "  - name: beta-and-testers\n    service: web\n    precedence: 10\n    \
                 match: [{headers: {x-user: beta}}, {source: {tags: {app: tester}}}]\n    \
                 route: [{version: v2}]\n",
            );
        }
        text.push_str(&format!(
            "  - name: split\n    service: web\n    \
             route: [{{version: v1, weight: {v1}}}, {{version: v2, weight: {v2}}}]\n\n\
             policies:\n  - service: web\n    breaker:\n      max-connections: 100\n      \
             max-requests: 1000\n      \
             ejection: {{consecutive-5xx: 5, interval: 1s, base: 3s, max-percent: 50}}\n"
        ));
        if let Some((rate, burst)) = limit {
            text.push_str(&format!(
                "    rate-limit: [{{name: per-workload, key: [source.workload], rate: {rate}/s, \
                 burst: {burst}}}]\n"
            ));
        }
        self.config_with(&text)
    }

    /// A whole configuration with the given `rules:` and `policies:` around this scene's
    /// services and workloads.
    pub fn config_with(&self, rules_and_policies: &str) -> String {
        format!(
            "{}\n{}\n{rules_and_policies}\n{}",
            self.head_text(),
            self.services_text(),
            self.workloads_text("")
        )
    }

    /// The head of a configuration: where to attach, no metrics port, all log lines.
    pub fn head_text(&self) -> String {
        format!(
            "apiVersion: mesh/v1alpha1\nkind: MeshConfig\nattach: [{}]\nagent:\n  metrics: off\n  \
             access-log: {{format: envoy, filter: all, path: {}}}\n",
            self.attach(),
            self.access_log().display(),
        )
    }

    /// Where the hooks attach, as the configuration names it: below the cgroup2 mount.
    fn attach(&self) -> String {
        let pods = self.bed.pods_cgroup();
        let mount = mounts::cgroup2().ok().flatten().unwrap_or_default();
        pods.strip_prefix(&mount)
            .unwrap_or(&pods)
            .display()
            .to_string()
    }

    /// The `services:` of a configuration: `web` with its virtual addresses and endpoints.
    pub fn services_text(&self) -> String {
        let mut text = format!(
            "services:\n  - name: web\n    hostnames: [web, web.demo.svc]\n    \
             addresses: [{VIP4}, \"{VIP6}\"]\n    \
             ports:\n      - {{name: http, number: {PORT}, target: {TARGET}, protocol: http}}\n      \
             - {{name: tcp, number: {TCP_PORT}, target: {TCP_TARGET}, protocol: tcp, path: proxy}}\n      \
             - {{name: banner, number: {BANNER_PORT}, target: {BANNER_TARGET}, protocol: auto}}\n    \
             versions: {{v1: {{version: v1}}, v2: {{version: v2}}}}\n    endpoints:\n",
        );
        for server in &self.servers {
            text.push_str(&format!(
                "      - {{address: {}, tags: {{version: {}, pod: {}}}}}\n",
                server.pod.v4, server.version, server.pod.name
            ));
        }
        text
    }

    /// The `workloads:` of a configuration, `client` and `tester`, with more fields for both.
    pub fn workloads_text(&self, more: &str) -> String {
        let mut text = String::from("workloads:\n");
        for pod in [&self.client, &self.tester] {
            text.push_str(&format!(
                "  - {{name: {0}, netns: {1}, tags: {{app: {0}}}{more}}}\n",
                pod.name,
                pod.netns.display()
            ));
        }
        text
    }

    /// The access log that the agent writes.
    pub fn access_log(&self) -> PathBuf {
        self.dir.join("access.log")
    }

    /// Writes the configuration for a stage to a file beside the watched one, for `mesh apply`.
    pub fn draft(&self, name: &str, stage: &Stage) -> anyhow::Result<PathBuf> {
        let path = self.dir.join(name);
        std::fs::write(&path, self.config_text(stage))
            .with_context(|| format!("can't write {}", path.display()))?;
        Ok(path)
    }

    /// Puts the configuration for a stage where the agent finds it at its start.
    pub fn write(&self, stage: &Stage) -> anyhow::Result<()> {
        self.draft("mesh.yaml", stage).map(drop)
    }

    /// Writes a configuration, starts the agent with it and waits until it is ready.
    ///
    /// # Errors
    /// As [`Scene::start_agent`].
    pub fn start_with(&mut self, text: &str) -> anyhow::Result<()> {
        std::fs::write(self.config_path(), text).context("can't write the configuration")?;
        self.start_agent()
    }

    /// Writes a configuration under the running agent and waits until it is in force.
    ///
    /// # Errors
    /// The agent refused it, or did not take it within 10 s.
    pub fn put_in_force(&self, text: &str) -> anyhow::Result<()> {
        let before = self.status()?;
        // As a whole: the agent may read in the middle of a write, and refuses an empty file.
        let draft = self.dir.join("next.draft");
        std::fs::write(&draft, text)
            .and_then(|()| std::fs::rename(&draft, self.config_path()))
            .context("can't write the configuration")?;
        let mut refused = None;
        let done = wait_until(READY, || match self.status() {
            Ok(now) => {
                refused = now.config.last_error.clone();
                let refused_again = refused.is_some() && refused != before.config.last_error;
                let taken = refused.is_none()
                    && (now.generation > before.generation || before.config.last_error.is_some());
                refused_again || taken
            }
            Err(_) => false,
        });
        if let Some(error) = refused {
            bail!("the agent refused the configuration: {}", error.message);
        }
        ensure!(done, "the configuration was not in force within {READY:?}");
        Ok(())
    }

    /// What `mesh status -o json` says.
    ///
    /// # Errors
    /// No agent runs.
    pub fn status(&self) -> anyhow::Result<crate::admin::Status> {
        let output = self.mesh(&["status", "-o", "json"])?;
        serde_json::from_slice(&output.stdout).context("no status")
    }

    /// Runs `mesh demo load` against the service from inside a pod; its report.
    ///
    /// # Errors
    /// It could not be started, or got not one answer.
    pub fn load(&self, from: &Pod, path: &str, arguments: &[&str]) -> anyhow::Result<Child> {
        let mut command = Command::new(&self.binary);
        command.args([
            "demo",
            "load",
            "--json",
            "--connect",
            &format!("{VIP4}:{PORT}"),
        ]);
        command.arg(format!("http://web{path}")).args(arguments);
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit());
        self.bed.spawn_in(from, command)
    }

    /// Starts the agent and waits for nothing.
    ///
    /// # Errors
    /// It could not be started.
    pub fn spawn_agent(&mut self) -> anyhow::Result<()> {
        let mut command = Command::new(&self.binary);
        command.arg("run").arg("--config").arg(self.config_path());
        command.args(["--instance", self.instance.name()]);
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(self.log("agent")?);
        self.agent = Some(self.bed.spawn_node(command)?);
        Ok(())
    }

    /// Starts an agent that takes over from the running one (`mesh run --takeover`), with the
    /// configuration at `config`, and waits for nothing.
    ///
    /// # Errors
    /// It could not be started.
    pub fn spawn_successor(&self, config: &Path) -> anyhow::Result<Child> {
        let mut command = Command::new(&self.binary);
        command.args(["run", "--takeover", "--config"]).arg(config);
        command.args(["--instance", self.instance.name()]);
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(self.log("agent")?);
        self.bed.spawn_node(command)
    }

    /// The agent is this process from now on; the one before, if there is one.
    pub fn replace_agent(&mut self, agent: Child) -> Option<Child> {
        self.agent.replace(agent)
    }

    /// Starts the agent and waits until it is ready and both clients are captured.
    ///
    /// # Errors
    /// It could not be started, or was not ready within 10 s.
    pub fn start_agent(&mut self) -> anyhow::Result<()> {
        self.spawn_agent()?;
        let ready = wait_until(READY, || {
            self.mesh(&["status", "-o", "json"]).is_ok_and(|output| {
                let status: serde_json::Value =
                    serde_json::from_slice(&output.stdout).unwrap_or_default();
                output.status.success() && status.to_string().matches("\"live\"").count() >= 2
            })
        });
        ensure!(
            ready,
            "the agent did not get ready, see {}/agent.log",
            self.dir.display()
        );
        self.own.extend(super::inventory::pinned(&self.instance)?);
        Ok(())
    }

    /// Programs and maps that its agents loaded, as `name#id`.
    pub fn own_objects(&self) -> BTreeSet<String> {
        self.own.clone()
    }

    /// Kills the agent with SIGKILL, as a crash would.
    pub fn kill_agent(&mut self) -> anyhow::Result<()> {
        if let Some(mut agent) = self.agent.take() {
            agent.kill().context("can't kill the agent")?;
            agent.wait().context("can't wait for the agent")?;
        }
        Ok(())
    }

    /// Stops the agent as an operator does (SIGTERM) and waits for its end.
    pub fn stop_agent(&mut self) -> anyhow::Result<()> {
        let Some(mut agent) = self.agent.take() else {
            return Ok(());
        };
        // A pid that was never waited for is still ours.
        let pid = nix::unistd::Pid::from_raw(i32::try_from(agent.id())?);
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM)?;
        let ended = wait_until(READY, || matches!(agent.try_wait(), Ok(Some(_)) | Err(_)));
        if !ended {
            agent.kill().ok();
            agent.wait().ok();
            bail!("the agent did not stop within {READY:?}");
        }
        Ok(())
    }

    /// Runs a `mesh` verb on this instance.
    pub fn mesh(&self, arguments: &[&str]) -> anyhow::Result<Output> {
        Command::new(&self.binary)
            .args(["--instance", self.instance.name()])
            .args(arguments)
            .env("NO_COLOR", "1")
            .stdin(Stdio::null())
            .output()
            .context("can't run the own binary")
    }

    /// Asks the service by its virtual IPv4 address from inside a pod.
    pub fn ask(&self, from: &Pod, arguments: &[&str]) -> anyhow::Result<Answers> {
        self.ask_at(from, IpAddr::V4(VIP4), arguments)
    }

    /// Asks the service by one of its addresses from inside a pod.
    pub fn ask_at(
        &self,
        from: &Pod,
        address: IpAddr,
        arguments: &[&str],
    ) -> anyhow::Result<Answers> {
        let command = self.ask_command(SocketAddr::new(address, PORT), arguments);
        answers(self.bed.spawn_in(from, command)?)
    }

    /// Starts an endless client inside a pod, one report line for each `report_ms`.
    pub fn flood(&self, from: &Pod, report_ms: u64, arguments: &[&str]) -> anyhow::Result<Child> {
        let mut command = self.ask_command(SocketAddr::from((VIP4, PORT)), arguments);
        command.args(["--count", "1000000", "--report-ms", &report_ms.to_string()]);
        self.bed.spawn_in(from, command)
    }

    fn ask_command(&self, to: SocketAddr, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.binary);
        command.args(["demo", "ask", &to.to_string()]);
        if !arguments.contains(&"--host") {
            command.args(["--host", "web"]);
        }
        command.args(arguments);
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit());
        command
    }

    fn ask_from_node(&self, to: SocketAddr, arguments: &[&str]) -> anyhow::Result<Answers> {
        answers(self.bed.spawn_node(self.ask_command(to, arguments))?)
    }

    /// Makes one server answer 503 to everything, or heals it, by talking to it directly.
    pub fn set_sick(&self, pod: &str, sick: bool) -> anyhow::Result<()> {
        let server = self
            .servers
            .iter()
            .find(|server| server.pod.name == pod)
            .with_context(|| format!("no server {pod}"))?;
        let method = if sick { "PUT" } else { "DELETE" };
        let to = SocketAddr::from((server.pod.v4, TARGET));
        let answers = self.ask_from_node(to, &["--method", method, "--path", "/_sick"])?;
        ensure!(
            answers.failed() == 0,
            "{pod} can't be made sick: {:?}",
            answers.errors
        );
        Ok(())
    }

    /// Removes everything: agent, kernel state, servers, namespaces, cgroups, files.
    pub fn tear_down(mut self) -> anyhow::Result<()> {
        self.stop_agent()?;
        let report = cleanup::cleanup(&self.instance, false, false);
        ensure!(
            report.failed.is_empty(),
            "cleanup: {}",
            report.failed.join("; ")
        );
        self.end_servers();
        std::fs::remove_dir_all(&self.dir).ok();
        Ok(())
    }

    fn end_servers(&mut self) {
        for server in &mut self.servers {
            server.process.kill().ok();
            server.process.wait().ok();
        }
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        self.kill_agent().ok();
        cleanup::cleanup(&self.instance, false, true);
        self.end_servers();
    }
}

fn answers(child: Child) -> anyhow::Result<Answers> {
    let output = child
        .wait_with_output()
        .context("can't wait for the client")?;
    ensure!(
        output.status.success(),
        "the client ended with {}",
        output.status
    );
    serde_json::from_slice(&output.stdout).context("the client's report is not JSON")
}
