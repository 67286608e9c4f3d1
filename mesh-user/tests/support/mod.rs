//! A test bed with an agent process on its node.

#![allow(dead_code, reason = "each test file uses its own part")]

pub(crate) mod agent;
pub(crate) mod client;
pub(crate) mod foreign;
pub(crate) mod objects;
pub(crate) mod options;

use std::{
    io::Write as _,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener},
    process::{Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use mesh_user::{
    kernel::{Instance, cleanup::cleanup, mounts, view::View},
    testbed::{Pod, Testbed, wait_until},
};

use self::agent::{Agent, Service};

/// Virtual addresses: on no interface unless a test puts them there.
pub(crate) const VIP4: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 96, 0, 10));
pub(crate) const VIP6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfd00, 0x96, 0, 0, 0, 0, 0, 0x10));
pub(crate) const PORT: u16 = 80;
pub(crate) const LIMIT: Duration = Duration::from_secs(5);

pub(crate) fn vip4() -> SocketAddr {
    SocketAddr::new(VIP4, PORT)
}

pub(crate) fn vip6() -> SocketAddr {
    SocketAddr::new(VIP6, PORT)
}

/// A bed, an agent on its node, and pods. Dropped in this order: the agent dies, then everything
/// of the instance is removed, then the namespaces.
pub(crate) struct Mesh {
    pub(crate) agent: Option<Agent>,
    pub(crate) instance: Instance,
    pub(crate) bed: Testbed,
}

/// Unique inside a run, and not the name of another run that is alive.
fn unique(name: &str) -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!(
        "k{name}-{}-{}",
        std::process::id(),
        NEXT.fetch_add(1, Ordering::Relaxed)
    )
}

impl Mesh {
    /// With an agent that ticks, and no service yet.
    pub(crate) fn new(name: &str) -> Self {
        Self::with(name, 2, false)
    }

    pub(crate) fn with(name: &str, shards: u16, refuse_unknown: bool) -> Self {
        let mut mesh = Self::without_agent(name);
        mesh.start_agent(shards, refuse_unknown)
            .expect("the agent starts");
        mesh
    }

    pub(crate) fn without_agent(name: &str) -> Self {
        let name = unique(name);
        let bed = Testbed::new(&name).expect("the test bed needs root and cgroup2");
        let instance = Instance::new(&name).expect("a good name");
        Self {
            agent: None,
            instance,
            bed,
        }
    }

    pub(crate) fn start_agent(&mut self, shards: u16, refuse_unknown: bool) -> Result<(), String> {
        let agent = Agent::spawn(&self.bed);
        let started = agent.start(
            &self.instance,
            &[self.bed.pods_cgroup()],
            shards,
            refuse_unknown,
        );
        self.agent = Some(agent);
        started
    }

    pub(crate) fn agent(&self) -> &Agent {
        self.agent.as_ref().expect("an agent runs")
    }

    /// A pod that is enrolled and live.
    pub(crate) fn live_pod(&mut self, name: &str, closed: bool) -> (Pod, u32) {
        let pod = self.bed.pod(name).expect("a pod");
        let id = self
            .agent()
            .enrol(name, &pod.netns, closed)
            .expect("enrolled");
        self.agent().live(id).expect("live");
        (pod, id)
    }

    /// Both virtual addresses, decided by the proxy, without endpoints for the kernel.
    pub(crate) fn proxied(&self) {
        self.agent()
            .table(&[Service::proxy(vip4()), Service::proxy(vip6())], &[])
            .expect("table");
    }

    /// Where a map of the instance is pinned.
    pub(crate) fn pin(&self, map: &str) -> std::path::PathBuf {
        let bpffs = mounts::bpffs().expect("mountinfo").expect("a bpffs");
        let root = bpffs.join("mesh").join(self.instance.name());
        let mut versions = std::fs::read_dir(root).expect("pins").flatten();
        versions.next().expect("one version").path().join(map)
    }

    pub(crate) fn view(&self) -> View {
        View::open(&self.instance).expect("pins")
    }

    /// A reason counter.
    pub(crate) fn count(&self, reason: &str) -> u64 {
        let stats = self.view().stats();
        stats
            .iter()
            .find(|row| row.reason == reason)
            .expect("a known reason")
            .count
    }

    /// Entries of a map.
    pub(crate) fn entries(&self, map: &str) -> u64 {
        let maps = self.view().maps();
        maps.iter()
            .find(|row| row.map == map)
            .expect("a known map")
            .entries
            .expect("countable")
    }

    pub(crate) fn eventually(&self, what: &str, ready: impl FnMut() -> bool) {
        assert!(wait_until(LIMIT, ready), "not within {LIMIT:?}: {what}");
    }
}

impl Drop for Mesh {
    fn drop(&mut self) {
        self.agent = None;
        let report = cleanup(&self.instance, false, true);
        if !report.failed.is_empty() {
            eprintln!("cleanup of {}: {:?}", self.instance.name(), report.failed);
        }
    }
}

/// A server that says its name to whoever connects.
pub(crate) fn serve(listener: TcpListener, name: &'static str) {
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            let peer = stream.peer_addr().map(|peer| peer.ip().to_canonical());
            let _ = write!(
                stream,
                "{name} {}",
                peer.map_or("?".to_owned(), |ip| ip.to_string())
            );
        }
    });
}

/// Serves in a pod on all its addresses; its port.
pub(crate) fn serve_in(bed: &Testbed, pod: &Pod, name: &'static str) -> u16 {
    let listener = bed
        .in_netns(pod, || TcpListener::bind("[::]:0").expect("bind"))
        .expect("netns");
    let port = listener.local_addr().expect("bound").port();
    serve(listener, name);
    port
}

/// Puts the virtual addresses on the node and serves there: what «the platform routes it» means.
pub(crate) fn serve_vips_on_node(bed: &Testbed) {
    for address in [format!("{VIP4}/32"), format!("{VIP6}/128")] {
        let mut command = Command::new("ip");
        command.args(["addr", "add", &address, "dev", "br0", "nodad"]);
        command.stdout(Stdio::null());
        let status = bed
            .spawn_node(command)
            .expect("ip")
            .wait()
            .expect("ip ends");
        assert!(status.success(), "ip addr add {address}");
    }
    for address in [vip4(), vip6()] {
        let listener = bed
            .in_node(move || TcpListener::bind(address).expect("bind"))
            .expect("netns");
        serve(listener, "node");
    }
}
