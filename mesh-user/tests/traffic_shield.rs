//! The shield in the whole agent: configuration, list files, command line, death and restart.

#[path = "shield/bed.rs"]
#[expect(dead_code, reason = "each test file uses its own part")]
mod bed;

use std::{
    io::{Read as _, Write as _},
    net::UdpSocket,
    os::unix::{fs::MetadataExt as _, net::UnixStream},
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use mesh_user::kernel::{inventory, mounts};
use serde_json::Value;

use bed::{Bed, NODE, OUTSIDE, PARTNER};

const LIMIT: Duration = Duration::from_secs(20);

/// An agent on the node of a bed, with its files and its cgroup.
struct Node {
    bed: Bed,
    dir: PathBuf,
    cgroup: PathBuf,
    agent: Option<Child>,
}

impl Node {
    fn new() -> Self {
        let bed = Bed::new();
        let name = format!("mb-{}", bed.instance.name());
        let mount = mounts::cgroup2().expect("mountinfo").expect("cgroup2");
        let cgroup = mount.join(&name);
        std::fs::create_dir_all(&cgroup).expect("a cgroup");
        let dir = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&dir).expect("a folder");
        Self {
            bed,
            dir,
            cgroup,
            agent: None,
        }
    }

    fn list(&self) -> PathBuf {
        self.dir.join("list.txt")
    }

    fn config(&self, shield: &str) {
        self.config_in("mesh.yaml", shield);
    }

    fn config_in(&self, file: &str, shield: &str) {
        let text = format!(
            "apiVersion: mesh/v1alpha1\nkind: MeshConfig\nattach: [{}]\n\
             agent: {{workers: 1, metrics: \"off\", drain: 0s}}\n{shield}\n",
            self.cgroup.file_name().unwrap().to_string_lossy()
        );
        std::fs::write(self.dir.join(file), text).expect("written");
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--net={}", self.bed.path("node").display()))
            .arg(env!("CARGO_BIN_EXE_mesh"))
            .args(["--instance", self.bed.instance.name()])
            .args(words)
            .stdin(Stdio::null());
        command
    }

    fn spawn(&self, file: &str, more: &[&str]) -> Child {
        let config = self.dir.join(file);
        let mut command = self.command(&["run", "--config", config.to_str().unwrap()]);
        let mut log = std::fs::File::options();
        log.create(true).append(true);
        let log = log.open(self.dir.join("agent.log")).expect("a file");
        let agent = command.args(more).stdout(Stdio::null()).stderr(log).spawn();
        agent.expect("nsenter and mesh")
    }

    fn start(&mut self) {
        self.agent = Some(self.spawn("mesh.yaml", &[]));
        self.eventually("the agent answers", || {
            self.mesh(&["shield", "status"]).is_ok()
        });
    }

    fn kill(&mut self) {
        if let Some(mut agent) = self.agent.take() {
            let _ = agent.kill();
            let _ = agent.wait();
        }
    }

    /// Standard output, or standard error of one that failed.
    fn mesh(&self, words: &[&str]) -> Result<String, String> {
        let output = self.command(words).output().expect("it runs");
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        if output.status.success() {
            Ok(text(output.stdout))
        } else {
            Err(text(output.stderr))
        }
    }

    fn json(&self, words: &[&str]) -> Value {
        let words = [words, &["-o", "json"]].concat();
        let text = self
            .mesh(&words)
            .unwrap_or_else(|error| panic!("{words:?}: {error}"));
        serde_json::from_str(&text).expect("JSON")
    }

    fn eventually(&self, what: &str, mut ready: impl FnMut() -> bool) {
        let start = Instant::now();
        while !ready() {
            if start.elapsed() > LIMIT {
                let log = std::fs::read_to_string(self.dir.join("agent.log"));
                panic!("not within {LIMIT:?}: {what}\n{}", log.unwrap_or_default());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Whether a datagram from an address arrives within 300 ms, of three.
    fn arrives(&self, from: &str) -> bool {
        let (to, from): (UdpSocket, UdpSocket) = (self.bed.listener(NODE), self.bed.sender(from));
        to.set_read_timeout(Some(Duration::from_millis(100)))
            .unwrap();
        (0..3).any(|_| {
            from.send_to(b"x", to.local_addr().unwrap()).unwrap();
            to.recv(&mut [0; 8]).is_ok()
        })
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.kill();
        self.bed.cleanup();
        let _ = std::fs::remove_dir(&self.cgroup);
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

const SHIELD: &str = "shield:
  interfaces: [up0]
  deny: [{cidr: 198.51.100.0/24, rule-name: test-net-2}]
  syn-rate: {rate: 1/h, burst: 3}
";

/// An operator's day: deny during an attack, look, agent killed, agent back, take it back.
#[test]
fn shield_entry_of_the_command_line_works_at_once_and_outlives_a_killed_agent() {
    let mut node = Node::new();
    node.config(SHIELD);
    node.start();
    let status = node.json(&["shield", "status"]);
    let interface = &status["overview"]["interfaces"][0];
    assert_eq!(interface["attached"], "tcx", "{status:#}");
    assert!(interface["why"].as_str().unwrap().contains("veth"));
    assert!(node.arrives(OUTSIDE) && node.arrives(PARTNER));
    node.mesh(&["shield", "deny", OUTSIDE, "--for", "1h"])
        .expect("denied");
    assert!(!node.arrives(OUTSIDE) && node.arrives(PARTNER));
    let table = node.mesh(&["shield", "check", OUTSIDE]).expect("checked");
    assert!(
        table.contains("dropped, by rule cli 192.0.2.2/32"),
        "{table}"
    );
    node.kill();
    assert!(!node.arrives(OUTSIDE), "the kernel goes on alone");
    assert!(node.arrives(PARTNER));
    node.start();
    assert!(!node.arrives(OUTSIDE));
    let rules = node.json(&["shield", "list"]);
    let rows = rules["items"].as_array().expect("rows");
    let row = |rule: &str| rows.iter().find(|row| row["rule"] == rule).expect(rule);
    let ours = row("cli 192.0.2.2/32");
    assert_eq!(
        (&ours["origin"], &ours["action"]),
        (&"cli".into(), &"deny".into())
    );
    assert!(ours["packets"].as_u64() >= Some(6), "{ours}");
    assert!((3_400..=3_600).contains(&ours["expires_s"].as_u64().expect("an end")));
    assert_eq!(row("test-net-2")["origin"], "config");
    node.mesh(&["shield", "undeny", OUTSIDE])
        .expect("taken back");
    assert!(node.arrives(OUTSIDE));
    let error = node
        .mesh(&["shield", "undeny", OUTSIDE])
        .expect_err("twice");
    assert!(error.contains("no entry 192.0.2.2/32"), "{error}");
    let error = node
        .mesh(&["shield", "deny", "192.0.2.2/24"])
        .expect_err("a slip");
    assert!(error.contains("did you mean 192.0.2.0/24"), "{error}");
}

/// Sources whose SYNs were dropped stand in `top`.
#[test]
fn shield_top_names_the_source_of_a_syn_flood() {
    let mut node = Node::new();
    node.config(SHIELD);
    node.start();
    let listener = node
        .bed
        .inside("node", || std::net::TcpListener::bind((NODE, 0)).unwrap());
    let address = listener.local_addr().unwrap();
    let open = node.bed.inside("out", || {
        (0..8)
            .filter(|_| {
                std::net::TcpStream::connect_timeout(&address, Duration::from_millis(200)).is_ok()
            })
            .count()
    });
    assert_eq!(open, 3, "the burst");
    let top = node.json(&["shield", "top"]);
    assert_eq!(top["items"][0]["source"], "192.0.2.2/32", "{top:#}");
    assert!(top["items"][0]["dropped"].as_u64() >= Some(5));
    assert_eq!(top["items"][0]["passed"], 3);
}

/// A list file is followed; one with a bad line is refused with its place, and the last good list
/// stays in force, also over a restart. Without `shield:` nothing is left.
#[test]
fn shield_list_file_is_followed_and_its_last_good_content_stays() {
    let mut node = Node::new();
    let list = node.list();
    std::fs::write(&list, "# none yet\n").unwrap();
    let with_list = format!("{SHIELD}  deny-files: [{}]\n", list.display());
    node.config(&with_list);
    node.start();
    assert!(node.arrives(PARTNER));
    std::fs::write(&list, format!("# one\n{PARTNER} # partner no more\n")).unwrap();
    node.eventually("the list is followed", || !node.arrives(PARTNER));
    std::fs::write(&list, "198.51.100.0/24\nnonsense\n").unwrap();
    let fault = |node: &Node| {
        let status = node.json(&["shield", "status"]);
        status["files"][0]["error"]
            .as_str()
            .unwrap_or_default()
            .to_owned()
    };
    node.eventually("the fault is told", || {
        fault(&node).contains("list.txt:2: `nonsense`")
    });
    assert!(!node.arrives(PARTNER), "the last good list stays");
    node.kill();
    node.start();
    assert!(fault(&node).contains(":2:"));
    assert!(!node.arrives(PARTNER), "over a restart too");
    node.config("");
    node.mesh(&["reload"]).expect("reloaded");
    let error = node.mesh(&["shield", "status"]).expect_err("gone");
    assert!(error.contains("not configured"), "{error}");
    assert!(node.arrives(PARTNER));
    let pins = inventory::pins(&node.bed.instance);
    assert!(
        pins.iter()
            .all(|pin| !pin.to_string_lossy().contains("shield/")),
        "{pins:?}"
    );
}

/// Speaks as a successor does that then says nothing more; the agent is frozen until it is dropped.
fn silent_successor(node: &Node) -> UnixStream {
    let mut stream = UnixStream::connect(node.bed.instance.admin_socket()).expect("connected");
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    let head = "POST /takeover HTTP/1.1\r\nhost: mesh\r\nconnection: upgrade\r\n\
                upgrade: mesh-takeover\r\n\r\n";
    let head = head.replace("mesh-takeover", mesh_user::admin::TAKEOVER_PROTOCOL);
    stream.write_all(head.as_bytes()).unwrap();
    // What follows the head of the answer is not HTTP any more, so nothing may come before it.
    let mut said = Vec::new();
    while !said.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).expect("an answer");
        said.extend(byte);
    }
    let hello = serde_json::json!({
        "abi": mesh_common::abi::ABI_VERSION, "version": "test", "pid": std::process::id(),
    });
    let hello = hello.to_string();
    stream
        .write_all(&u32::try_from(hello.len()).unwrap().to_be_bytes())
        .unwrap();
    stream.write_all(hello.as_bytes()).unwrap();
    said.clear();
    while !String::from_utf8_lossy(&said).contains("Offered") {
        let mut part = [0; 256];
        let read = stream.read(&mut part).expect("an answer");
        assert!(read > 0, "{}", String::from_utf8_lossy(&said));
        said.extend(&part[..read]);
    }
    stream
}

/// Decision 0050: from the offer on the agent changes nothing, neither by itself nor when asked;
/// when the successor is gone it follows what was missed, and puts right what it left.
#[test]
fn shield_is_left_alone_while_a_successor_starts_and_followed_again_when_it_failed() {
    let mut node = Node::new();
    let list = node.list();
    std::fs::write(&list, "# none yet\n").unwrap();
    node.config(&format!("{SHIELD}  deny-files: [{}]\n", list.display()));
    node.start();
    let link = node.bed.link("tcx");
    assert!(link.exists() && node.arrives(PARTNER));
    let successor = silent_successor(&node);
    std::fs::write(&list, format!("{PARTNER}\n")).unwrap();
    std::fs::remove_file(&link).unwrap();
    let error = node.mesh(&["shield", "deny", OUTSIDE]).expect_err("frozen");
    assert!(error.contains("taking over"), "{error}");
    // Longer than two of its ticks.
    let start = Instant::now();
    while start.elapsed() < Duration::from_millis(2_500) {
        assert!(!link.exists(), "it attached");
        assert!(node.arrives(PARTNER));
    }
    drop(successor);
    node.eventually("the link stands again", || link.exists());
    node.eventually("the list is followed", || !node.arrives(PARTNER));
    node.mesh(&["shield", "deny", OUTSIDE]).expect("denied");
    assert!(!node.arrives(OUTSIDE));
}

/// Without it: the agent that drains takes the successor's programs off, or puts its own up again.
#[test]
fn shield_of_a_successor_is_not_touched_by_the_agent_that_drains() {
    let mut node = Node::new();
    node.bed
        .ip("node", "link add more0 type veth peer name more1");
    node.config(SHIELD);
    node.start();
    node.mesh(&["shield", "deny", OUTSIDE]).expect("denied");
    // A file of its own: the old agent follows the one before.
    node.config_in("next.yaml", &SHIELD.replace("[up0]", "[up0, more0]"));
    let pin = |node: &Node, link: &str| {
        let index = node.bed.index("node", link);
        let pin = node.bed.pin(&format!("links/tcx-{index}"));
        let native = node.bed.pin(&format!("links/xdp-{index}"));
        let meta = std::fs::metadata(pin).or_else(|_| std::fs::metadata(native));
        meta.ok().map(|meta| meta.ino())
    };
    let before = pin(&node, "up0").expect("it stands");
    let next = node.spawn("next.yaml", &["--takeover"]);
    let mut old = node.agent.replace(next).expect("it runs");
    node.eventually("the successor's stands", || pin(&node, "more0").is_some());
    let more = pin(&node, "more0");
    // It accepts for another 1.5 s, more than one of its ticks.
    node.eventually("the old one leaves", || {
        assert_eq!(pin(&node, "more0"), more, "it was taken off");
        assert_eq!(pin(&node, "up0"), Some(before), "it was made anew");
        old.try_wait().expect("a child").is_some()
    });
    assert!(!node.arrives(OUTSIDE), "an operator's entry stays");
    let status = node.json(&["status"]);
    let conditions = status["conditions"].as_array().expect("a list").iter();
    let mut shield = conditions.filter(|condition| condition["name"] == "shield");
    assert_eq!(
        shield.next().expect("it is shown")["ok"],
        true,
        "{status:#}"
    );
    // The next has none.
    node.config_in("last.yaml", "");
    let next = node.spawn("last.yaml", &["--takeover"]);
    let mut old = node.agent.replace(next).expect("it runs");
    node.eventually("the old one leaves", || {
        old.try_wait().expect("a child").is_some()
    });
    assert!(node.arrives(OUTSIDE));
    let pins = inventory::pins(&node.bed.instance);
    let left = |pin: &PathBuf| pin.to_string_lossy().contains("shield/");
    assert!(!pins.iter().any(left), "{pins:?}");
}
