//! An agent as a process of its own: the hooks tell it from applications by its cgroup.
//!
//! The test binary starts itself again with one test selected; requests and answers go over a
//! Unix socket, one JSON line each.

use std::{
    collections::BTreeMap,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
    os::{
        fd::AsFd as _,
        unix::net::{UnixListener, UnixStream},
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use mesh_common::{
    addr::Addr,
    service::{Backend, DECIDE_KERNEL, DECIDE_PROXY, FLAG_ROUTABLE, ServiceEntry},
};
use mesh_user::{
    clock,
    kernel::{Enrol, Heartbeat, Instance, Kernel, KernelOptions, Marks},
    model::{
        self, Failure, Interception, Netns,
        inbound::{InboundAction, InboundPorts},
        kernel_table::{KernelTable, KernelVersion},
    },
    proxy::wire::SocketSource,
    testbed::Testbed,
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::options;

const SOCKET: &str = "MESH_TEST_AGENT_SOCKET";

/// A service as a test states it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Service {
    pub(crate) address: SocketAddr,
    pub(crate) decision: u32,
    pub(crate) routable: bool,
    pub(crate) endpoints: Vec<SocketAddr>,
    /// Connection cap of the kernel path.
    pub(crate) cap: Option<u32>,
}

impl Service {
    pub(crate) fn proxy(address: SocketAddr) -> Self {
        Self {
            address,
            decision: DECIDE_PROXY,
            routable: false,
            endpoints: Vec::new(),
            cap: None,
        }
    }

    pub(crate) fn kernel(address: SocketAddr) -> Self {
        Self {
            decision: DECIDE_KERNEL,
            ..Self::proxy(address)
        }
    }

    pub(crate) fn routable(self) -> Self {
        Self {
            routable: true,
            ..self
        }
    }

    pub(crate) fn to(self, endpoints: &[SocketAddr]) -> Self {
        Self {
            endpoints: endpoints.to_vec(),
            ..self
        }
    }
}

/// An outbound rule: address, prefix length of its own family, port, action.
pub(crate) type Rule = (IpAddr, u8, u16, u32);

/// How a test's workloads are captured.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Mode {
    #[default]
    Mark,
    Loopback,
}

impl Mode {
    fn interception(self, closed: bool) -> Interception {
        Interception {
            failure: failure(closed),
            mode: match self {
                Self::Mark => model::Mode::Mark,
                Self::Loopback => model::Mode::Loopback,
            },
            ..Interception::default()
        }
    }
}

#[derive(Debug, Serialize, Deserialize)]
enum Request {
    Start {
        instance: String,
        attach: Vec<PathBuf>,
        shards: u16,
        refuse_unknown: bool,
    },
    Enrol {
        key: String,
        netns: PathBuf,
        closed: bool,
        inbound: Inbound,
    },
    Inbound(u32, Inbound),
    Live(u32),
    Failure(u32, bool),
    Mode(Mode),
    SwitchMode(u32, Mode),
    Datagrams(Vec<Rule>),
    Echo(bool),
    Held,
    Want(Vec<String>),
    Release(u32),
    DropListeners(u32),
    Beat(bool),
    Table(Vec<Service>, Vec<Rule>),
    Scale(u32),
    Paused(bool),
    Poll,
    Accepts,
    DialBack(Option<SocketAddr>),
    Hold(bool),
    Events,
    Ports,
    Guard {
        pod_id: u32,
        closed: bool,
        on: bool,
    },
    Audit,
    WorkloadAt(IpAddr),
    WithoutTcx,
    EnrolGuarded {
        key: String,
        netns: PathBuf,
        closed: bool,
    },
}

/// What happens to connections that come in: by default, and by port; `p`ass, `c`apture, `d`eny.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Inbound(pub(crate) char, pub(crate) Vec<(u16, char)>);

impl Inbound {
    /// Everything passes.
    pub(crate) const fn pass() -> Self {
        Self('p', Vec::new())
    }

    fn ports(&self) -> InboundPorts {
        let action = |word| match word {
            'c' => InboundAction::Capture,
            'd' => InboundAction::Deny,
            _ => InboundAction::Pass,
        };
        InboundPorts {
            default: action(self.0),
            ports: self
                .1
                .iter()
                .map(|(port, word)| (*port, action(*word)))
                .collect(),
        }
    }
}

/// One accepted connection.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Accept {
    pub(crate) pod_id: u32,
    pub(crate) shard: usize,
    pub(crate) peer: SocketAddr,
    pub(crate) local: SocketAddr,
    pub(crate) asked: Option<SocketAddr>,
    /// What `SO_ORIGINAL_DST` says.
    #[serde(default)]
    pub(crate) original: Option<SocketAddr>,
    /// Cookie of the accepted socket's network namespace.
    #[serde(default)]
    pub(crate) netns: u64,
    /// Whether an option can be asked for with 64 KiB of room.
    #[serde(default)]
    pub(crate) roomy: bool,
}

/// The driver's side.
pub(crate) struct Agent {
    child: Child,
    wire: Mutex<BufReader<UnixStream>>,
}

impl Agent {
    pub(crate) fn spawn(bed: &Testbed) -> Self {
        Self::spawn_by(bed, &[])
    }

    /// Started by another command, which takes something away first.
    pub(crate) fn spawn_by(bed: &Testbed, wrapper: &[&str]) -> Self {
        let dir = std::env::temp_dir().join(format!(
            "mesh-agent-{}-{}",
            std::process::id(),
            bed.node_netns()
                .file_name()
                .and_then(|n| n.to_str())
                .unwrap_or("node")
        ));
        let _ = std::fs::remove_file(&dir);
        let listener = UnixListener::bind(&dir).expect("a socket");
        let own = std::env::current_exe().expect("own path");
        let mut words = wrapper
            .iter()
            .map(std::ffi::OsStr::new)
            .chain([own.as_os_str()]);
        let mut command = Command::new(words.next().expect("at least our own"));
        command
            .args(words)
            .args(["--exact", "support::agent::agent_process", "--nocapture"])
            .env(SOCKET, &dir)
            .stdout(Stdio::null());
        let child = bed.spawn_node(command).expect("the agent process");
        let (stream, _) = listener.accept().expect("the agent connects");
        let _ = std::fs::remove_file(&dir);
        stream
            .set_read_timeout(Some(Duration::from_secs(30)))
            .expect("a timeout");
        Self {
            child,
            wire: Mutex::new(BufReader::new(stream)),
        }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    fn ask(&self, request: &Request) -> Result<Value, String> {
        let mut wire = self.wire.lock().expect("one caller at a time");
        let line = serde_json::to_string(request).expect("plain data");
        writeln!(wire.get_mut(), "{line}").expect("the agent lives");
        let mut answer = String::new();
        wire.read_line(&mut answer).expect("the agent answers");
        let answer: Value = serde_json::from_str(&answer).expect("JSON");
        match answer.get("error") {
            Some(error) => Err(error.as_str().unwrap_or("?").to_owned()),
            None => Ok(answer["ok"].clone()),
        }
    }

    fn done(&self, request: &Request) -> Result<(), String> {
        self.ask(request).map(drop)
    }

    pub(crate) fn start(
        &self,
        instance: &Instance,
        attach: &[PathBuf],
        shards: u16,
        refuse_unknown: bool,
    ) -> Result<(), String> {
        self.done(&Request::Start {
            instance: instance.name().to_owned(),
            attach: attach.to_vec(),
            shards,
            refuse_unknown,
        })
    }

    /// By the path of a namespace, or `pid:NUMBER`.
    pub(crate) fn enrol(&self, key: &str, netns: &Path, closed: bool) -> Result<u32, String> {
        let request = Request::Enrol {
            key: key.to_owned(),
            netns: netns.to_owned(),
            closed,
            inbound: Inbound('p', Vec::new()),
        };
        let id = self.ask(&request)?.as_u64().expect("a number");
        Ok(u32::try_from(id).expect("a pod id"))
    }

    /// With `failure: open` and these inbound ports.
    pub(crate) fn enrol_with(
        &self,
        key: &str,
        netns: &Path,
        inbound: Inbound,
    ) -> Result<u32, String> {
        self.enrol_as(key, netns, false, inbound)
    }

    /// With inbound ports.
    pub(crate) fn enrol_as(
        &self,
        key: &str,
        netns: &Path,
        closed: bool,
        inbound: Inbound,
    ) -> Result<u32, String> {
        let request = Request::Enrol {
            key: key.to_owned(),
            netns: netns.to_owned(),
            closed,
            inbound,
        };
        let id = self.ask(&request)?.as_u64().expect("a number");
        Ok(u32::try_from(id).expect("a pod id"))
    }

    /// Changes a workload's inbound ports.
    pub(crate) fn inbound(&self, pod_id: u32, default: char, ports: &[(u16, char)]) {
        let inbound = Inbound(default, ports.to_vec());
        self.done(&Request::Inbound(pod_id, inbound)).expect("set");
    }

    /// Whose an address is.
    pub(crate) fn workload_at(&self, address: IpAddr) -> Option<String> {
        let key = self.ask(&Request::WorkloadAt(address)).expect("asked");
        key.as_str().map(str::to_owned)
    }

    pub(crate) fn live(&self, pod_id: u32) -> Result<(), String> {
        self.done(&Request::Live(pod_id))
    }

    /// Like [`Agent::enrol`], with `bypass-guard: on`.
    pub(crate) fn enrol_guarded(
        &self,
        key: &str,
        netns: &Path,
        closed: bool,
    ) -> Result<u32, String> {
        let id = self.ask(&Request::EnrolGuarded {
            key: key.to_owned(),
            netns: netns.to_owned(),
            closed,
        })?;
        Ok(u32::try_from(id.as_u64().expect("a number")).expect("a pod id"))
    }

    /// Switches `bypass-guard` of a workload.
    pub(crate) fn guard(&self, pod_id: u32, closed: bool, on: bool) -> Result<(), String> {
        self.done(&Request::Guard { pod_id, closed, on })
    }

    /// From now on guards attach as on a kernel without tcx.
    pub(crate) fn without_tcx(&self) {
        self.done(&Request::WithoutTcx).expect("set");
    }

    /// One round of the audit: what it found, as `what: outcome`.
    pub(crate) fn audit(&self) -> Vec<String> {
        serde_json::from_value(self.ask(&Request::Audit).expect("audited")).expect("texts")
    }

    /// Changes a workload's failure mode.
    pub(crate) fn failure(&self, pod_id: u32, closed: bool) {
        self.done(&Request::Failure(pod_id, closed)).expect("set");
    }

    /// How workloads are captured that are enrolled from now on.
    pub(crate) fn mode(&self, mode: Mode) {
        self.done(&Request::Mode(mode)).expect("set");
    }

    /// Changes how a workload is captured.
    pub(crate) fn switch_mode(&self, pod_id: u32, mode: Mode) -> Result<(), String> {
        self.done(&Request::SwitchMode(pod_id, mode))
    }

    /// Outbound rules for datagrams, in force with the next table.
    pub(crate) fn datagrams(&self, rules: &[Rule]) {
        self.done(&Request::Datagrams(rules.to_vec())).expect("set");
    }

    /// Where the connections that are held were going: as the kernel side tells, and as
    /// `SO_ORIGINAL_DST` does.
    pub(crate) fn held(&self) -> Vec<(Option<SocketAddr>, Option<SocketAddr>)> {
        serde_json::from_value(self.ask(&Request::Held).expect("held")).expect("addresses")
    }

    /// From now on an answer repeats what the peer sent first.
    pub(crate) fn echo(&self, echo: bool) {
        self.done(&Request::Echo(echo)).expect("set");
    }

    /// Names what the model wants.
    pub(crate) fn want(&self, keys: &[&str]) {
        let keys = keys.iter().map(ToString::to_string).collect();
        self.done(&Request::Want(keys)).expect("told");
    }

    pub(crate) fn release(&self, pod_id: u32) {
        self.done(&Request::Release(pod_id))
            .expect("release can't fail");
    }

    /// Closes the workload's listeners, as a crashed worker would.
    pub(crate) fn drop_listeners(&self, pod_id: u32) {
        self.done(&Request::DropListeners(pod_id)).expect("dropped");
    }

    pub(crate) fn beat(&self, on: bool) {
        self.done(&Request::Beat(on)).expect("a heartbeat");
    }

    /// Puts so many services in force, and then one changed endpoint: milliseconds of each, from the
    /// model to the kernel.
    pub(crate) fn scale(&self, count: u32) -> (f64, f64) {
        let told = self.ask(&Request::Scale(count)).expect("in force");
        serde_json::from_value(told).expect("two figures")
    }

    pub(crate) fn table(&self, services: &[Service], rules: &[Rule]) -> Result<(), String> {
        self.done(&Request::Table(services.to_vec(), rules.to_vec()))
    }

    pub(crate) fn paused(&self, paused: bool) {
        self.done(&Request::Paused(paused)).expect("written");
    }

    /// Numbers of the workloads that went away.
    pub(crate) fn poll(&self) -> Vec<u32> {
        let gone = self.ask(&Request::Poll).expect("polled");
        serde_json::from_value(gone).expect("numbers")
    }

    pub(crate) fn accepts(&self) -> Vec<Accept> {
        serde_json::from_value(self.ask(&Request::Accepts).expect("accepts")).expect("accepts")
    }

    /// From now on each accepted connection makes the agent dial there from the workload's
    /// namespace and pass the answer on.
    pub(crate) fn dial_back(&self, to: Option<SocketAddr>) {
        self.done(&Request::DialBack(to)).expect("set");
    }

    /// From now on accepted connections stay open until the peer closes.
    pub(crate) fn hold(&self, hold: bool) {
        self.done(&Request::Hold(hold)).expect("set");
    }

    /// Ports of all listeners.
    pub(crate) fn ports(&self) -> Vec<u16> {
        serde_json::from_value(self.ask(&Request::Ports).expect("ports")).expect("ports")
    }

    /// Reasons of the events since the last call.
    pub(crate) fn events(&self) -> Vec<String> {
        serde_json::from_value(self.ask(&Request::Events).expect("events")).expect("names")
    }
}

impl Drop for Agent {
    /// As `kill -9` does.
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Not a test: the agent process's entry. Does nothing in an ordinary run.
#[test]
fn agent_process() {
    let Some(path) = std::env::var_os(SOCKET) else {
        return;
    };
    let stream = UnixStream::connect(path).expect("the driver listens");
    let mut lines = BufReader::new(stream.try_clone().expect("a descriptor")).lines();
    let mut state = State::default();
    while let Some(Ok(line)) = lines.next() {
        let request: Request = serde_json::from_str(&line).expect("a request");
        let answer = match state.answer(request) {
            Ok(value) => json!({ "ok": value }),
            Err(error) => json!({ "error": error }),
        };
        writeln!(&stream, "{answer}").expect("the driver lives");
    }
}

#[derive(Default)]
struct Shared {
    accepts: Mutex<Vec<Accept>>,
    dial_back: Mutex<Option<SocketAddr>>,
    beating: AtomicBool,
    hold: AtomicBool,
    echo: AtomicBool,
    /// Copies of the connections that are held.
    held: Mutex<Vec<TcpStream>>,
}

#[derive(Default)]
struct State {
    kernel: Option<Kernel>,
    shared: Arc<Shared>,
    /// Stops the accept loops of a workload, which then close their listeners.
    loops: BTreeMap<u32, (Arc<AtomicBool>, Vec<std::thread::JoinHandle<()>>)>,
    ports: Vec<u16>,
    mode: Mode,
    datagrams: Vec<Rule>,
}

/// Other capacities of maps, as `NAME=ENTRIES,...`: see [`Agent::spawn_by`] with `env`.
pub(crate) const CAPACITIES: &str = "MESH_TEST_CAPACITIES";

fn capacities() -> Vec<(String, u32)> {
    let text = std::env::var(CAPACITIES).unwrap_or_default();
    let pairs = text.split(',').filter_map(|pair| pair.split_once('='));
    pairs
        .map(|(map, entries)| (map.to_owned(), entries.parse().expect("a number")))
        .collect()
}

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}

fn failure(closed: bool) -> Failure {
    if closed {
        Failure::Closed
    } else {
        Failure::Open
    }
}

impl State {
    fn answer(&mut self, request: Request) -> Result<Value, String> {
        if let Request::Start {
            instance,
            attach,
            shards,
            refuse_unknown,
        } = request
        {
            let options = KernelOptions {
                instance: Instance::new(&instance)?,
                attach,
                shards,
                refuse_unknown,
                kubelet_cgroup: None,
                capacities: capacities(),
                marks: Marks::default(),
            };
            let kernel = Kernel::start(&options).map_err(text)?;
            let heartbeat = kernel.heartbeat().map_err(text)?;
            self.kernel = Some(kernel);
            self.shared.beating.store(true, Ordering::Relaxed);
            heartbeat.beat(clock::now());
            beat(heartbeat, Arc::clone(&self.shared));
            return Ok(Value::Null);
        }
        let shared = Arc::clone(&self.shared);
        let kernel = self.kernel.as_mut().ok_or("not started")?;
        match request {
            Request::Start { .. } => Err("answered above".to_owned()),
            Request::WorkloadAt(address) => Ok(json!(
                kernel
                    .origins()
                    .workload_at(address)
                    .map(|key| key.to_string())
            )),
            Request::Inbound(pod_id, inbound) => kernel
                .set_inbound(pod_id, &inbound.ports())
                .map(|()| Value::Null)
                .map_err(text),
            Request::Enrol {
                key,
                netns,
                closed,
                inbound,
            } => self.enrol(key, netns, closed, false, &inbound),
            Request::EnrolGuarded { key, netns, closed } => {
                self.enrol(key, netns, closed, true, &Inbound::pass())
            }
            Request::Guard { pod_id, closed, on } => kernel
                .set_interception(
                    pod_id,
                    Interception {
                        failure: failure(closed),
                        bypass_guard: on,
                        ..Interception::default()
                    },
                )
                .map(|()| Value::Null)
                .map_err(text),
            Request::Audit => {
                let found: Vec<String> = kernel
                    .audit()
                    .iter()
                    .map(|finding| format!("{}: {:?}", finding.what, finding.outcome))
                    .collect();
                Ok(json!(found))
            }
            Request::WithoutTcx => {
                kernel.guard_without_tcx();
                Ok(Value::Null)
            }
            Request::Live(pod_id) => kernel.go_live(pod_id).map(|()| Value::Null).map_err(text),
            Request::Failure(pod_id, closed) => kernel
                .set_interception(pod_id, self.mode.interception(closed))
                .map(|()| Value::Null)
                .map_err(text),
            Request::Mode(mode) => {
                self.mode = mode;
                Ok(Value::Null)
            }
            Request::SwitchMode(pod_id, mode) => kernel
                .set_interception(pod_id, mode.interception(false))
                .map(|()| Value::Null)
                .map_err(text),
            Request::Datagrams(rules) => {
                self.datagrams = rules;
                Ok(Value::Null)
            }
            Request::Held => {
                let origins = kernel.origins();
                let held = shared.held.lock().map_err(text)?;
                let found: Vec<_> = held
                    .iter()
                    .map(|stream| {
                        let local = stream.local_addr().ok().map(plain);
                        let origin = origins.sent_to_loopback(stream.as_fd());
                        (origin.or(local), options::original_dst(stream))
                    })
                    .collect();
                Ok(json!(found))
            }
            Request::Echo(echo) => {
                shared.echo.store(echo, Ordering::Relaxed);
                Ok(Value::Null)
            }
            Request::Want(keys) => {
                kernel.want(keys.into_iter().map(Arc::from));
                Ok(Value::Null)
            }
            Request::Release(pod_id) => {
                kernel.stop_capture(pod_id);
                self.stop_loops(pod_id);
                if let Some(kernel) = &mut self.kernel {
                    kernel.release(pod_id);
                }
                Ok(Value::Null)
            }
            Request::DropListeners(pod_id) => {
                self.stop_loops(pod_id);
                Ok(Value::Null)
            }
            Request::Beat(on) => {
                shared.beating.store(on, Ordering::Relaxed);
                Ok(Value::Null)
            }
            Request::Table(services, rules) => kernel
                .apply(&table(&services, &rules, &self.datagrams).into())
                .map(|()| Value::Null)
                .map_err(text),
            Request::Scale(count) => scale(kernel, count),
            Request::Paused(paused) => kernel
                .set_paused(paused)
                .map(|()| Value::Null)
                .map_err(text),
            Request::Poll => {
                let gone: Vec<u32> = kernel.poll_gone().iter().map(|gone| gone.pod_id).collect();
                for pod_id in &gone {
                    self.stop_loops(*pod_id);
                }
                Ok(json!(gone))
            }
            Request::Ports => Ok(json!(self.ports)),
            Request::Accepts => Ok(json!(*shared.accepts.lock().map_err(text)?)),
            Request::DialBack(to) => {
                *shared.dial_back.lock().map_err(text)? = to;
                Ok(Value::Null)
            }
            Request::Hold(hold) => {
                shared.hold.store(hold, Ordering::Relaxed);
                Ok(Value::Null)
            }
            Request::Events => {
                let names: Vec<&str> = kernel
                    .events(1_000)
                    .iter()
                    .filter_map(|event| mesh_common::reason::Reason::decode(event.reason))
                    .map(mesh_common::reason::Reason::label)
                    .collect();
                Ok(json!(names))
            }
        }
    }

    fn enrol(
        &mut self,
        key: String,
        netns: PathBuf,
        closed: bool,
        guarded: bool,
        inbound: &Inbound,
    ) -> Result<Value, String> {
        let shared = Arc::clone(&self.shared);
        let kernel = self.kernel.as_mut().ok_or("not started")?;
        let pid = netns
            .to_str()
            .and_then(|text| text.strip_prefix("pid:")?.parse().ok());
        let netns = pid.map_or(Netns::Path(netns), Netns::Pid);
        let wanted = Enrol {
            key: key.into(),
            netns,
            interception: Interception {
                bypass_guard: guarded,
                ..self.mode.interception(closed)
            },
            inbound: inbound.ports(),
        };
        let enrolled = kernel.enrol(&wanted).map_err(text)?;
        let origins = kernel.origins();
        let stop = Arc::new(AtomicBool::new(false));
        let mut handles = Vec::new();
        let inbound = enrolled.inbound.into_iter().enumerate();
        for (shard, listener) in enrolled.listeners.into_iter().enumerate().chain(inbound) {
            self.ports.push(listener.local_addr().map_err(text)?.port());
            let loop_ = Loop {
                pod_id: enrolled.pod_id,
                shard,
                sockets: Arc::clone(&enrolled.sockets),
                shared: Arc::clone(&shared),
                origins: Arc::clone(&origins),
            };
            let stop = Arc::clone(&stop);
            handles.push(std::thread::spawn(move || loop_.run(&listener, &stop)));
        }
        self.loops.insert(enrolled.pod_id, (stop, handles));
        Ok(json!(enrolled.pod_id))
    }

    fn stop_loops(&mut self, pod_id: u32) {
        if let Some((stop, handles)) = self.loops.remove(&pod_id) {
            stop.store(true, Ordering::Relaxed);
            for handle in handles {
                handle.join().expect("an accept loop");
            }
        }
    }
}

fn beat(heartbeat: Heartbeat, shared: Arc<Shared>) {
    std::thread::spawn(move || {
        loop {
            if shared.beating.load(Ordering::Relaxed) {
                heartbeat.beat(clock::now());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    });
}

fn scale(kernel: &mut Kernel, count: u32) -> Result<Value, String> {
    use mesh_user::{clock, model, policy::Snapshot};
    let one = |n: u32| model::Service {
        name: format!("s{n}"),
        namespace: "test".into(),
        hostnames: Vec::new(),
        addresses: vec![std::net::Ipv4Addr::from_bits(0x0a60_0000 + n).into()],
        ports: vec![model::Port {
            name: "tcp".into(),
            number: 80,
            target: 8080,
            protocol: model::Protocol::Tcp,
            path: model::PathChoice::Kernel,
            tls: None,
        }],
        versions: Default::default(),
        endpoints: vec![model::Endpoint {
            address: std::net::Ipv4Addr::from_bits(0x0b00_0000 + n).into(),
            ..Default::default()
        }],
        routable: true,
        dial_from: model::DialFrom::Workload,
    };
    let mut all = model::Model {
        services: (0..count).map(one).collect(),
        ..Default::default()
    };
    let mut put = |all: &model::Model, previous: Option<&Snapshot>| {
        let begun = std::time::Instant::now();
        let snapshot = Snapshot::compile(Arc::new(all.clone()), previous, clock::now());
        snapshot.enforce();
        kernel.apply(snapshot.kernel_tables()).map_err(text)?;
        Ok::<_, String>((snapshot, begun.elapsed().as_secs_f64() * 1e3))
    };
    let (first, load) = put(&all, None)?;
    all.services[count as usize / 2].endpoints[0].address = [172, 16, 0, 1].into();
    let (_, change) = put(&all, Some(&first))?;
    Ok(json!((load, change)))
}

fn table(services: &[Service], rules: &[Rule], datagrams: &[Rule]) -> KernelTable {
    let mut table = KernelTable::default();
    for (service, service_id) in services.iter().zip(1..) {
        let slots_off = table.slots.len() as u32;
        let version_id = table.versions.len() as u32;
        table.versions.push(KernelVersion {
            service: format!("test/s{service_id}").into(),
            port: service.address.port(),
            version: "*".into(),
            cap: service.cap,
        });
        for endpoint in &service.endpoints {
            table.slots.push(table.backends.len() as u32);
            table.backends.push(Backend {
                addr: Addr::from_ip(endpoint.ip()),
                port: endpoint.port(),
                state: 1,
                version_id,
                cap: 0,
                _pad: 0,
            });
        }
        let entry = ServiceEntry {
            service_id,
            decision: service.decision,
            slots_off,
            slots_len: service.endpoints.len() as u32,
            flags: if service.routable { FLAG_ROUTABLE } else { 0 },
            _pad: 0,
        };
        let key = (Addr::from_ip(service.address.ip()), service.address.port());
        table.services.insert(key, entry);
    }
    let entry = |(ip, prefix, port, action): &Rule| {
        let bits = if ip.is_ipv4() { 96 + prefix } else { *prefix };
        (Addr::from_ip(*ip), bits, *port, *action)
    };
    table.outbound.extend(rules.iter().map(entry));
    table.outbound_udp.extend(datagrams.iter().map(entry));
    table
}

/// One accept loop.
struct Loop {
    pod_id: u32,
    shard: usize,
    sockets: Arc<dyn SocketSource>,
    shared: Arc<Shared>,
    origins: Arc<dyn mesh_user::proxy::wire::OriginLookup>,
}

impl Loop {
    fn run(self, listener: &TcpListener, stop: &Arc<AtomicBool>) {
        use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
        let this = Arc::new(self);
        while !stop.load(Ordering::Relaxed) {
            let mut fds = [PollFd::new(listener.as_fd(), PollFlags::POLLIN)];
            let _ = poll(&mut fds, PollTimeout::from(20_u8));
            while let Ok((stream, peer)) = listener.accept() {
                let (this, stop) = (Arc::clone(&this), Arc::clone(stop));
                let local = stream.local_addr().expect("accepted");
                let asked = if local.ip().to_canonical().is_loopback() {
                    this.origins.sent_to_loopback(stream.as_fd())
                } else {
                    this.origins.asked(this.pod_id, peer, local)
                };
                let looped = asked.filter(|_| local.ip().to_canonical().is_loopback());
                this.shared.accepts.lock().expect("no panic").push(Accept {
                    pod_id: this.pod_id,
                    shard: this.shard,
                    peer: plain(peer),
                    local: plain(local),
                    asked,
                    original: options::original_dst(&stream),
                    netns: options::netns_cookie(&stream),
                    roomy: options::get::<65_536>(&stream, libc::SOL_TCP, libc::TCP_INFO).is_ok(),
                });
                let to = looped.unwrap_or(local);
                std::thread::spawn(move || this.serve(stream, to, &stop));
            }
        }
    }

    fn serve(&self, mut stream: TcpStream, local: SocketAddr, stop: &AtomicBool) {
        stream.set_nonblocking(false).expect("a mode");
        let to = *self.shared.dial_back.lock().expect("no panic");
        let answer = match to {
            Some(to) => self
                .dial(to)
                .unwrap_or_else(|error| format!("dial {error}")),
            None => format!("proxy {}", plain(local)),
        };
        let answer = if self.shared.echo.load(Ordering::Relaxed) {
            let _ = stream.set_read_timeout(Some(Duration::from_secs(5)));
            let mut bytes = [0; 64];
            let length = stream.read(&mut bytes).unwrap_or(0);
            format!("{answer} {}", String::from_utf8_lossy(&bytes[..length]))
        } else {
            answer
        };
        let _ = stream.write_all(answer.as_bytes());
        if self.shared.hold.load(Ordering::Relaxed) {
            let copy = stream.try_clone().expect("a descriptor");
            self.shared.held.lock().expect("no panic").push(copy);
            let _ = stream.set_read_timeout(Some(Duration::from_millis(20)));
            let mut byte = [0];
            while !stop.load(Ordering::Relaxed) && !matches!(stream.read(&mut byte), Ok(0)) {}
            let mut held = self.shared.held.lock().expect("no panic");
            held.retain(|copy| copy.peer_addr().ok() != stream.peer_addr().ok());
        }
    }

    fn dial(&self, to: SocketAddr) -> std::io::Result<String> {
        let socket = socket2::Socket::from(self.sockets.tcp_socket(to)?);
        socket.set_nonblocking(false)?;
        socket.connect_timeout(&to.into(), Duration::from_secs(2))?;
        let mut answer = String::new();
        TcpStream::from(socket).read_to_string(&mut answer)?;
        Ok(answer)
    }
}

fn plain(addr: SocketAddr) -> SocketAddr {
    SocketAddr::new(addr.ip().to_canonical(), addr.port())
}
