//! One boot: qemu without KVM, two serial lines into files, a hard time limit.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use super::packages::Kernel;
use crate::run;

/// A boot that has not ended by then is killed.
const LIMIT: Duration = Duration::from_secs(240);
/// Last lines of the console that an error shows.
const TAIL: usize = 40;

/// What came of a boot.
#[derive(Debug)]
pub(super) struct Outcome {
    /// The guest's report.
    pub(super) report: Value,
    /// From qemu's start to its end.
    pub(super) took: Duration,
}

/// Kills what it holds, by its own number.
struct Machine(Child);

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Boots a kernel with the archive, waits for its end, reads the guest's report.
pub(super) fn boot(kernel: &Kernel, archive: &Path, dir: &Path) -> Result<Outcome> {
    let (console, report) = (dir.join("console.log"), dir.join("report.json"));
    for file in [&console, &report] {
        fs::write(file, "")?;
    }
    let start = Instant::now();
    let mut machine = Machine(start_qemu(kernel, archive, &console, &report)?);
    loop {
        if machine.0.try_wait()?.is_some() {
            break;
        }
        if start.elapsed() > LIMIT {
            drop(machine);
            bail!(
                "not ready after {LIMIT:?}; its console:\n{}",
                tail(&console)
            );
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    let took = start.elapsed();
    let text = fs::read_to_string(&report)?;
    let line = text.trim();
    let report = serde_json::from_str(line)
        .with_context(|| format!("no report ({line:?}); its console:\n{}", tail(&console)))?;
    Ok(Outcome { report, took })
}

fn start_qemu(kernel: &Kernel, archive: &Path, console: &Path, report: &Path) -> Result<Child> {
    let serial = |file: &Path| format!("file:{}", file.display());
    let mut qemu = run::command("qemu-system-x86_64");
    qemu.args(["-accel", "tcg,thread=single", "-cpu", "max", "-smp", "1"])
        .args([
            "-m",
            "1024",
            "-display",
            "none",
            "-no-reboot",
            "-nodefaults",
        ])
        .args(["-serial", &serial(console), "-serial", &serial(report)])
        .arg("-kernel")
        .arg(&kernel.image)
        .arg("-initrd")
        .arg(archive)
        // A panic ends the machine at once; mitigations only cost time here.
        .args([
            "-append",
            "console=ttyS0 loglevel=4 panic=-1 mitigations=off",
        ])
        .stdin(Stdio::null());
    eprintln!("$ {}", run::shown(&qemu));
    qemu.spawn()
        .context("no qemu-system-x86_64: apt-get install qemu-system-x86")
}

fn tail(console: &PathBuf) -> String {
    let text = fs::read(console).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(TAIL)..].join("\n")
}
