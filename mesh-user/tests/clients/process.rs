//! A client as a process of its own: commands come as JSON lines, what it saw goes back likewise.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
};

use mesh_user::testbed::{Pod, Testbed};
use serde::{Deserialize, Serialize};

use super::styles::{self, Style};

const JOB: &str = "MESH_TEST_CLIENT";
/// Marks a line of ours: the test harness prints lines of its own.
const LINE: &str = "client> ";

/// Which of the three families a connection is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Family {
    V4,
    V6,
    /// An IPv6 socket for an IPv4 address.
    Mapped,
}

pub(crate) const FAMILIES: [Family; 3] = [Family::V4, Family::V6, Family::Mapped];

/// What a client shall do.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Job {
    pub(crate) style: Style,
    pub(crate) family: Family,
    /// Where to, in its own family.
    pub(crate) to: SocketAddr,
    /// The pod's own address of that family.
    pub(crate) own: IpAddr,
    /// For styles that need another address, a port or a path.
    pub(crate) refused: Option<SocketAddr>,
    pub(crate) port: u16,
    /// Whether SO_REUSEADDR is set before a bind.
    pub(crate) reuse: bool,
    pub(crate) path: PathBuf,
}

/// What it saw.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Seen {
    /// Error of connect, 0 for none.
    pub(crate) errno: i32,
    pub(crate) peer: Option<SocketAddr>,
    pub(crate) own: Option<SocketAddr>,
    /// What the other side said.
    pub(crate) data: String,
    /// Whatever the style has to tell.
    pub(crate) note: String,
}

/// A client process in a pod, waiting for jobs.
pub(crate) struct Client {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Client {
    pub(crate) fn start(bed: &Testbed, pod: &Pod) -> Self {
        let mut command = own_binary("process::client_process");
        command.env(JOB, "");
        Self::of(bed, pod, command)
    }

    fn of(bed: &Testbed, pod: &Pod, mut command: Command) -> Self {
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = bed.spawn_in(pod, command).expect("a client starts");
        let input = child.stdin.take().expect("piped");
        let output = BufReader::new(child.stdout.take().expect("piped"));
        Self {
            child,
            input,
            output,
        }
    }

    /// A client that does one job and asks nobody first.
    pub(crate) fn start_with(bed: &Testbed, pod: &Pod, job: &Job) -> Self {
        let mut command = own_binary("process::client_process");
        command.env(JOB, serde_json::to_string(job).expect("plain data"));
        Self::of(bed, pod, command)
    }

    pub(crate) fn run(&mut self, job: &Job) -> Seen {
        self.ask(job);
        self.answer()
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn ask(&mut self, job: &Job) {
        let text = serde_json::to_string(job).expect("plain data");
        writeln!(self.input, "{text}").expect("the client lives");
    }

    pub(crate) fn answer(&mut self) -> Seen {
        loop {
            let mut line = String::new();
            let length = self.output.read_line(&mut line).expect("text");
            assert_ne!(length, 0, "the client ended without an answer");
            if let Some((_, text)) = line.split_once(LINE) {
                return serde_json::from_str(text).expect("JSON");
            }
        }
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// This binary, with one of its tests.
pub(crate) fn own_binary(test: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().expect("own path"));
    command.args(["--exact", test, "--nocapture"]);
    command
}

/// Not a test: the client's entry. Does nothing in an ordinary run.
#[test]
fn client_process() {
    let Ok(first) = std::env::var(JOB) else {
        return;
    };
    if !first.is_empty() {
        let job: Job = serde_json::from_str(&first).expect("a job");
        return tell(&styles::run(&job));
    }
    for line in std::io::stdin().lines().map_while(Result::ok) {
        let job: Job = serde_json::from_str(&line).expect("a job");
        tell(&styles::run(&job));
    }
}

/// Hands an answer to whoever started the client.
pub(crate) fn tell(seen: &Seen) {
    let text = serde_json::to_string(seen).expect("plain data");
    println!("\n{LINE}{text}");
    let _ = std::io::stdout().flush();
}
