//! The first process of a kernel under test: `cargo xtask kernels` boots it as `/init`.
//!
//! Mounts what the agent needs, loads modules, tries every program of the object, then sends real
//! requests through the proxy. The report, one JSON object, goes to the second serial line; the
//! first one has the kernel's words and ours. The machine is off afterwards.
//!
//! Not for a machine that is used for anything else: it is started as process 1 or refuses.

use std::{
    fs::{self, File},
    io::Write as _,
    os::fd::AsRawFd as _,
    path::Path,
    process::ExitCode,
    time::Instant,
};

use anyhow::{Context as _, ensure};
use mesh_user::{
    demo::scene::{Scene, VIP6},
    kernel::{
        probe,
        survey::{Scratch, survey},
    },
};
use nix::mount::{MsFlags, mount};
use serde_json::{Value, json};

/// The second serial line.
const REPORT: &str = "/dev/ttyS1";
/// Requests by each address family.
const REQUESTS: u32 = 3;

fn main() -> ExitCode {
    if std::process::id() != 1 {
        eprintln!("this is the first process of a virtual machine: run cargo xtask kernels");
        return ExitCode::FAILURE;
    }
    let start = Instant::now();
    let mut report = json!({});
    if let Err(error) = run(&mut report) {
        report["error"] = json!(format!("{error:#}"));
    }
    report["seconds"] = json!(start.elapsed().as_secs_f64());
    if let Err(error) = send(&report) {
        eprintln!("guest: the report can't be sent: {error:#}");
    }
    power_off();
    ExitCode::FAILURE
}

/// Returns only when it failed: then the host's time limit ends the machine.
fn power_off() {
    #[expect(unsafe_code, reason = "a C library call")]
    // SAFETY: takes a number. We are process 1 of a machine of our own.
    let _ = unsafe { libc::reboot(libc::RB_POWER_OFF) };
    eprintln!(
        "guest: the machine can't be switched off: {}",
        std::io::Error::last_os_error()
    );
}

fn run(report: &mut Value) -> anyhow::Result<()> {
    mounts()?;
    report["kernel"] = json!(fs::read_to_string("/proc/sys/kernel/osrelease")?.trim());
    say("modules");
    report["modules"] = json!(modules()?);
    say("checks");
    report["checks"] = serde_json::to_value(probe::check())?;
    say("programs");
    report["programs"] = programs()?;
    say("requests");
    report["redirect"] = match redirect() {
        Ok(redirect) => redirect,
        Err(error) => json!({"error": format!("{error:#}")}),
    };
    Ok(())
}

fn say(step: &str) {
    eprintln!("guest: {step}");
}

fn mounts() -> anyhow::Result<()> {
    let places = [
        ("proc", "/proc"),
        ("sysfs", "/sys"),
        ("devtmpfs", "/dev"),
        ("tmpfs", "/run"),
        ("tmpfs", "/tmp"),
        ("cgroup2", "/sys/fs/cgroup"),
        ("bpf", "/sys/fs/bpf"),
    ];
    for (kind, place) in places {
        // Those below /sys are there once it is.
        let _ = fs::create_dir_all(place);
        let none: Option<&str> = None;
        match mount(Some(kind), place, Some(kind), MsFlags::empty(), none) {
            // The kernel mounted it before us (devtmpfs).
            Ok(()) | Err(nix::errno::Errno::EBUSY) => {}
            Err(errno) => return Err(errno).with_context(|| format!("{kind} at {place}")),
        }
    }
    Ok(())
}

/// Loads the modules that the host laid down, in its order: name and outcome of each.
fn modules() -> anyhow::Result<Vec<(String, String)>> {
    let order = fs::read_to_string("/modules/order").context("/modules/order")?;
    let outcome = |name: &str| match load_module(&Path::new("/modules").join(name)) {
        Ok(()) => "loaded".to_owned(),
        Err(error) => error.to_string(),
    };
    Ok(order
        .lines()
        .map(|name| (name.to_owned(), outcome(name)))
        .collect())
}

fn load_module(path: &Path) -> std::io::Result<()> {
    let file = File::open(path)?;
    #[expect(unsafe_code, reason = "a raw system call")]
    // SAFETY: the descriptor is open for the whole call, the parameters are a NUL-terminated
    // string, the flags are 0.
    let result =
        unsafe { libc::syscall(libc::SYS_finit_module, file.as_raw_fd(), c"".as_ptr(), 0) };
    if result == 0 {
        Ok(())
    } else {
        Err(std::io::Error::last_os_error())
    }
}

fn programs() -> anyhow::Result<Value> {
    let scratch = Scratch {
        cgroup: "/sys/fs/cgroup/scratch".into(),
        interface: "lo".to_owned(),
    };
    fs::create_dir_all(&scratch.cgroup)?;
    Ok(serde_json::to_value(survey(Some(&scratch))?)?)
}

/// On the demo's own scene.
fn redirect() -> anyhow::Result<Value> {
    let mut scene = Scene::build("guest", Path::new("/bin/mesh"))?;
    let outcome = talk(&mut scene);
    if outcome.is_err() {
        for log in ["agent.log", "echo.log"] {
            let text = fs::read_to_string(scene.dir().join(log)).unwrap_or_default();
            eprintln!("guest: {log}:\n{text}");
        }
    }
    outcome
}

fn talk(scene: &mut Scene) -> anyhow::Result<Value> {
    let text = format!(
        "{}\n{}\n{}",
        scene.head_text(),
        scene.services_text(),
        scene.workloads_text(", failure: closed")
    );
    scene.start_with(&text)?;
    let count = REQUESTS.to_string();
    let arguments = ["--count", &count, "--close", "--timeout-ms", "20000"];
    let client = scene.client.clone();
    let v4 = scene.ask(&client, &arguments)?;
    let v6 = scene.ask_at(&client, VIP6.into(), &arguments)?;
    for (family, answers) in [("IPv4", &v4), ("IPv6", &v6)] {
        ensure!(
            answers.status(200) == REQUESTS,
            "{family}: {} of {REQUESTS} answered: {:?} {:?}",
            answers.status(200),
            answers.errors,
            answers.rejects
        );
    }
    // Answered, but by whom: only the proxy writes this log.
    let log = fs::read_to_string(scene.access_log())?;
    let proxied = log.matches("\"GET / HTTP/1.1\" 200 ").count();
    ensure!(
        proxied == 2 * REQUESTS as usize,
        "{proxied} requests in the proxy's log, expected {}:\n{log}",
        2 * REQUESTS
    );
    // `failure: closed` without an agent: what the application sees.
    scene.kill_agent()?;
    let refused = scene.ask(&client, &["--timeout-ms", "20000"])?;
    ensure!(
        refused.failed() == 1,
        "answered without an agent, though closed: {:?}",
        refused.statuses
    );
    Ok(json!({
        "proxied": proxied,
        "peer": v4.peer,
        "refused": refused.errors.keys().next(),
    }))
}

fn send(report: &Value) -> anyhow::Result<()> {
    let mut line = fs::OpenOptions::new()
        .write(true)
        .open(REPORT)
        .context(REPORT)?;
    line.write_all(format!("{report}\n").as_bytes())?;
    // The machine is switched off next: the line must be out by then.
    #[expect(unsafe_code, reason = "a C library call")]
    // SAFETY: the descriptor is open for the whole call.
    let drained = unsafe { libc::tcdrain(line.as_raw_fd()) };
    ensure!(drained == 0, std::io::Error::last_os_error());
    Ok(())
}
