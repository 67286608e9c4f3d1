//! Namespaces as pods: the machine's own kernel as a test bed, for tests, the demo and the bench.
//!
//! Everything has the bed's name as a prefix and is removed in `Drop`, also after a failed test;
//! [`Testbed::new`] first removes what a killed run of the same name left.
//!
//! ```text
//!  bed netns «node» (mb-NAME-node): bridge br0 10.77.0.1/16, fd77::1/64
//!   ├── veth ── netns mb-NAME-POD: eth0 10.77.x.y/16, fd77::.../64, default route via br0
//!   └── ...
//! ```
//! The agent runs in the «node» namespace, like an agent with `hostNetwork`; the host's own
//! namespace is never touched. Two beds may hold the same addresses: each has its own node.

mod place;

use std::{
    fs, io,
    net::{Ipv4Addr, Ipv6Addr},
    path::{Path, PathBuf},
    process::{Child, Command},
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};

use crate::kernel::mounts;

/// Where `ip netns` keeps namespaces.
pub const NETNS_DIR: &str = "/run/netns";
/// Killed processes leave their namespace and cgroup within this time, else removal goes on and
/// reports what is left.
const DEATH_LIMIT: Duration = Duration::from_secs(5);
/// Pods in one bed: their numbers fill the last two bytes of 10.77.1.0 and up.
const PODS_MAX: usize = 10_000;

/// One set of namespaces, links and cgroups.
#[derive(Debug)]
pub struct Testbed {
    name: String,
    cgroup: PathBuf,
    pods: Vec<Pod>,
    made: usize,
}

/// One namespace that stands for a pod.
#[derive(Clone, Debug)]
pub struct Pod {
    /// Its short name.
    pub name: String,
    /// `/run/netns/...`.
    pub netns: PathBuf,
    /// Its cgroup, absolute, below the bed's cgroup.
    pub cgroup: PathBuf,
    /// Its IPv4 address.
    pub v4: Ipv4Addr,
    /// Its IPv6 address.
    pub v6: Ipv6Addr,
}

impl Testbed {
    /// Makes the node namespace, the bridge and the cgroup `mb-NAME` (under the cgroup2 mount).
    ///
    /// The name is 1 to 24 characters of `a-z`, `0-9` and `-`.
    ///
    /// # Errors
    /// Not root, no cgroup2, no `ip` command: each by name.
    pub fn new(name: &str) -> anyhow::Result<Self> {
        check_name(name)?;
        ensure!(
            nix::unistd::geteuid().is_root(),
            "the test bed needs root: it makes namespaces"
        );
        let mount = mounts::cgroup2()?.context("no cgroup2 mount in /proc/self/mountinfo")?;
        let bed = Self {
            name: name.to_owned(),
            cgroup: mount.join(format!("mb-{name}")),
            pods: Vec::new(),
            made: 0,
        };
        bed.clear().context("what an earlier run left")?;
        bed.build()?;
        Ok(bed)
    }

    /// An error after this point drops `self`, which removes what was made so far.
    fn build(&self) -> anyhow::Result<()> {
        // The cgroup first: its pods directory is the list of what `clear` must remove.
        for dir in [self.pods_cgroup(), self.node_cgroup()] {
            fs::create_dir_all(&dir).with_context(|| format!("cgroup {}", dir.display()))?;
        }
        let node = self.netns_name("node");
        ip(None, &[&format!("netns add {node}")])?;
        self.settle("node")?;
        place::in_netns(&self.node_netns(), || {
            fs::write("/proc/sys/net/ipv4/ip_forward", "1")?;
            fs::write("/proc/sys/net/ipv6/conf/all/forwarding", "1")
        })?
        .context("forwarding in the node namespace")?;
        ip(
            Some(&node),
            &[
                "link set lo up",
                // Snooping off: without a querier it can swallow neighbour discovery.
                "link add br0 type bridge mcast_snooping 0",
                "link set br0 up",
                "addr add 10.77.0.1/16 dev br0",
                "addr add fd77::1/64 dev br0 nodad",
            ],
        )
    }

    /// Switches duplicate address detection off before there is an interface: link-local addresses
    /// are there at once too, and nothing changes by itself later.
    fn settle(&self, name: &str) -> anyhow::Result<()> {
        place::in_netns(&Path::new(NETNS_DIR).join(self.netns_name(name)), || {
            fs::write("/proc/sys/net/ipv6/conf/default/accept_dad", "0")
        })?
        .context("net.ipv6.conf.default.accept_dad")
    }

    /// Adds a pod with its own namespace, address pair and cgroup.
    ///
    /// # Errors
    /// The name is taken or not 1 to 24 of `a-z`, `0-9`, `-`; the kernel refused.
    pub fn pod(&mut self, name: &str) -> anyhow::Result<Pod> {
        check_name(name)?;
        ensure!(name != "node", "the name «node» is the node's own");
        ensure!(
            self.pods.iter().all(|pod| pod.name != name),
            "there is a pod {name} already"
        );
        ensure!(self.made < PODS_MAX, "a bed holds at most {PODS_MAX} pods");
        self.made += 1;
        let number = u16::try_from(256 + self.made)?;
        let [high, low] = number.to_be_bytes();
        let pod = Pod {
            name: name.to_owned(),
            netns: Path::new(NETNS_DIR).join(self.netns_name(name)),
            cgroup: self.pods_cgroup().join(name),
            v4: Ipv4Addr::new(10, 77, high, low),
            v6: Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, number),
        };
        fs::create_dir(&pod.cgroup).with_context(|| format!("cgroup {}", pod.cgroup.display()))?;
        self.pods.push(pod.clone());
        self.wire(&pod, self.made)?;
        Ok(pod)
    }

    fn wire(&self, pod: &Pod, number: usize) -> anyhow::Result<()> {
        let (node, netns) = (self.netns_name("node"), self.netns_name(&pod.name));
        ip(None, &[&format!("netns add {netns}")])?;
        self.settle(&pod.name)?;
        ip(
            Some(&node),
            &[
                &format!("link add v{number} type veth peer name eth0 netns {netns}"),
                &format!("link set v{number} master br0 up"),
            ],
        )?;
        ip(
            Some(&netns),
            &[
                "link set lo up",
                "link set eth0 up",
                &format!("addr add {}/16 dev eth0", pod.v4),
                &format!("addr add {}/64 dev eth0 nodad", pod.v6),
                "route add default via 10.77.0.1",
                "route add ::/0 via fd77::1",
            ],
        )
    }

    /// Removes a pod as a runtime would: kills its processes, deletes its namespace.
    ///
    /// # Errors
    /// The kernel refused.
    pub fn remove(&mut self, pod: &Pod) -> anyhow::Result<()> {
        self.pods.retain(|other| other.name != pod.name);
        self.remove_named(&pod.name)
    }

    fn remove_named(&self, name: &str) -> anyhow::Result<()> {
        let cgroup = self.pods_cgroup().join(name);
        place::kill_cgroup(&cgroup, DEATH_LIMIT);
        self.remove_netns(name)?;
        place::remove_cgroup(&cgroup, DEATH_LIMIT)
    }

    fn remove_netns(&self, name: &str) -> anyhow::Result<()> {
        let netns = self.netns_name(name);
        if !Path::new(NETNS_DIR).join(&netns).exists() {
            return Ok(());
        }
        ip(None, &[&format!("netns del {netns}")])
    }

    /// The pods that stand now.
    pub fn pods(&self) -> &[Pod] {
        &self.pods
    }

    /// The node namespace's path.
    pub fn node_netns(&self) -> PathBuf {
        Path::new(NETNS_DIR).join(self.netns_name("node"))
    }

    /// The cgroup that holds all pods: the attach point for the agent.
    pub fn pods_cgroup(&self) -> PathBuf {
        self.cgroup.join("pods")
    }

    /// The cgroup of processes started in the node namespace.
    fn node_cgroup(&self) -> PathBuf {
        self.cgroup.join("node")
    }

    /// Spawns a command inside a pod: its namespace and its cgroup, before exec.
    ///
    /// # Errors
    /// The command could not be started.
    pub fn spawn_in(&self, pod: &Pod, command: Command) -> anyhow::Result<Child> {
        place::spawn(command, &pod.netns, &pod.cgroup)
    }

    /// Spawns a command in the node namespace (outside the pods' cgroup): the agent.
    ///
    /// # Errors
    /// The command could not be started.
    pub fn spawn_node(&self, command: Command) -> anyhow::Result<Child> {
        place::spawn(command, &self.node_netns(), &self.node_cgroup())
    }

    /// Runs a closure on a fresh thread inside a pod: its namespace and its cgroup (cgroup v2
    /// moves threads only in threaded mode, so sockets made here belong to the caller's cgroup:
    /// use [`Testbed::spawn_in`] where the hook must see the pod's cgroup).
    ///
    /// # Errors
    /// The namespace can't be entered.
    pub fn in_netns<T: Send + 'static>(
        &self,
        pod: &Pod,
        f: impl FnOnce() -> T + Send + 'static,
    ) -> anyhow::Result<T> {
        place::in_netns(&pod.netns, f)
    }

    /// Like [`Testbed::in_netns`], in the node namespace.
    ///
    /// # Errors
    /// The namespace can't be entered.
    pub fn in_node<T: Send + 'static>(
        &self,
        f: impl FnOnce() -> T + Send + 'static,
    ) -> anyhow::Result<T> {
        place::in_netns(&self.node_netns(), f)
    }

    fn netns_name(&self, name: &str) -> String {
        format!("mb-{}-{name}", self.name)
    }

    /// Removes everything of this name, whoever made it. Processes in the bed's own namespaces and
    /// cgroups are the bed's.
    fn clear(&self) -> anyhow::Result<()> {
        if !self.cgroup.exists() {
            return Ok(());
        }
        let pods = child_dirs(&self.pods_cgroup())?;
        place::kill_cgroup(&self.cgroup, DEATH_LIMIT);
        // The agent moves itself to a cgroup of its own: it is found by its namespace.
        place::kill_in_netns(&self.node_netns(), DEATH_LIMIT);
        for name in &pods {
            place::kill_in_netns(
                &Path::new(NETNS_DIR).join(self.netns_name(name)),
                DEATH_LIMIT,
            );
            self.remove_named(name)?;
        }
        self.remove_netns("node")?;
        for dir in [self.pods_cgroup(), self.node_cgroup(), self.cgroup.clone()] {
            place::remove_cgroup(&dir, DEATH_LIMIT)?;
        }
        Ok(())
    }
}

impl Drop for Testbed {
    fn drop(&mut self) {
        if let Err(error) = self.clear() {
            eprintln!("test bed {}: not all removed: {error:#}", self.name);
        }
    }
}

/// Waits until `ready` says so, at most `limit`. For tests: a deadline instead of a sleep.
pub fn wait_until(limit: Duration, mut ready: impl FnMut() -> bool) -> bool {
    let end = Instant::now() + limit;
    loop {
        if ready() {
            return true;
        }
        if Instant::now() >= end {
            return false;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn check_name(name: &str) -> anyhow::Result<()> {
    let good = (1..=24).contains(&name.len())
        && name
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
    ensure!(
        good,
        "test bed name {name:?}: expected 1 to 24 of a-z, 0-9 and '-'"
    );
    Ok(())
}

fn child_dirs(dir: &Path) -> anyhow::Result<Vec<String>> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => bail!("{}: {error}", dir.display()),
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            names.extend(entry.file_name().into_string().ok());
        }
    }
    Ok(names)
}

/// Runs `ip` commands as one batch, in a namespace by name.
fn ip(netns: Option<&str>, lines: &[&str]) -> anyhow::Result<()> {
    use std::{io::Write as _, process::Stdio};
    let mut command = Command::new("ip");
    if let Some(netns) = netns {
        command.args(["-n", netns]);
    }
    let mut child = command
        .args(["-batch", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .context("the `ip` command (package iproute2)")?;
    let mut stdin = child.stdin.take().context("stdin of ip")?;
    stdin.write_all(lines.join("\n").as_bytes())?;
    drop(stdin);
    let output = child.wait_with_output()?;
    ensure!(
        output.status.success(),
        "ip {}: {}",
        lines.join("; "),
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(())
}
