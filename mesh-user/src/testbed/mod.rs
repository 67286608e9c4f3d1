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
//! namespace is never touched.

use std::{net::{Ipv4Addr, Ipv6Addr}, path::PathBuf, process::{Child, Command}};

/// One set of namespaces, links and cgroups.
#[derive(Debug)]
pub struct Testbed {}

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
    /// # Errors
    /// Not root, no cgroup2, no `ip` command: each by name.
    pub fn new(_name: &str) -> anyhow::Result<Self> {
        unimplemented!("testbed")
    }

    /// Adds a pod with its own namespace, address pair and cgroup.
    ///
    /// # Errors
    /// The kernel refused.
    pub fn pod(&mut self, _name: &str) -> anyhow::Result<Pod> {
        unimplemented!("testbed")
    }

    /// Removes a pod as a runtime would: kills its processes, deletes its namespace.
    ///
    /// # Errors
    /// The kernel refused.
    pub fn remove(&mut self, _pod: &Pod) -> anyhow::Result<()> {
        unimplemented!("testbed")
    }

    /// The node namespace's path.
    pub fn node_netns(&self) -> PathBuf {
        unimplemented!("testbed")
    }

    /// The cgroup that holds all pods: the attach point for the agent.
    pub fn pods_cgroup(&self) -> PathBuf {
        unimplemented!("testbed")
    }

    /// Spawns a command inside a pod: its namespace and its cgroup, before exec.
    ///
    /// # Errors
    /// The command could not be started.
    pub fn spawn_in(&self, _pod: &Pod, _command: Command) -> anyhow::Result<Child> {
        unimplemented!("testbed")
    }

    /// Spawns a command in the node namespace (outside the pods' cgroup): the agent.
    ///
    /// # Errors
    /// The command could not be started.
    pub fn spawn_node(&self, _command: Command) -> anyhow::Result<Child> {
        unimplemented!("testbed")
    }

    /// Runs a closure on a fresh thread inside a pod: its namespace and its cgroup (cgroup v2
    /// moves threads only in threaded mode, so sockets made here belong to the caller's cgroup:
    /// use [`Testbed::spawn_in`] where the hook must see the pod's cgroup).
    ///
    /// # Errors
    /// The namespace can't be entered.
    pub fn in_netns<T: Send + 'static>(
        &self,
        _pod: &Pod,
        _f: impl FnOnce() -> T + Send + 'static,
    ) -> anyhow::Result<T> {
        unimplemented!("testbed")
    }
}
