//! Runs commands in the open: prints each one as it could be typed, and how long it took.

use std::{
    ffi::OsStr,
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Instant,
};

use anyhow::{Context as _, Result, bail};

/// The workspace's root, from whatever directory the command was typed in.
pub(crate) fn root() -> PathBuf {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    manifest
        .parent()
        .expect("xtask lies in the workspace's root")
        .to_path_buf()
}

/// The cargo that runs us, in the workspace's root.
pub(crate) fn cargo() -> Command {
    let program = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    command(program)
}

/// A command in the workspace's root, without what cargo told xtask about xtask itself: build
/// scripts that watch these variables would run again for nothing.
pub(crate) fn command(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    command.current_dir(root());
    for (name, _) in std::env::vars_os() {
        let name_text = name.to_string_lossy();
        let of_xtask = [
            "CARGO_PKG_",
            "CARGO_MANIFEST_",
            "CARGO_BIN_",
            "CARGO_CRATE_",
        ];
        if of_xtask.iter().any(|prefix| name_text.starts_with(prefix)) {
            command.env_remove(&name);
        }
    }
    command
}

/// Runs to the end; an exit status other than 0 is an error.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    announce(command);
    let start = Instant::now();
    let status = command
        .status()
        .with_context(|| format!("can't start {}", shown(command)))?;
    done(start);
    if !status.success() {
        bail!("{} ended with {status}", name(command));
    }
    Ok(())
}

/// As [`run`], and hands every line of standard output to `line`, which decides what is printed.
///
/// Returns whether the command succeeded.
pub(crate) fn run_lines(command: &mut Command, mut line: impl FnMut(&str)) -> Result<bool> {
    announce(command);
    let start = Instant::now();
    let mut child = command
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("can't start {}", shown(command)))?;
    let stdout = child.stdout.take().expect("stdout was asked to be a pipe");
    // Bytes, not `lines()`: a test may print what is not UTF-8.
    for bytes in BufReader::new(stdout).split(b'\n') {
        line(&String::from_utf8_lossy(&bytes?));
    }
    let status = child.wait()?;
    done(start);
    Ok(status.success())
}

/// Standard output of a quick question, not announced; `None` when it can't be answered.
pub(crate) fn ask(program: impl AsRef<OsStr>, args: &[&str]) -> Option<String> {
    let output = Command::new(program)
        .args(args)
        .stderr(Stdio::null())
        .output()
        .ok()?;
    output
        .status
        .success()
        .then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// Where a program of `PATH` is.
pub(crate) fn which(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    // Administrators' tools (ip, haproxy) are not on every user's PATH.
    let sbin = ["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from);
    std::env::split_paths(&path)
        .chain(sbin)
        .map(|dir| dir.join(program))
        .find(|p| p.is_file())
}

/// Whether we are root: the effective uid of `/proc/self/status`.
pub(crate) fn is_root() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let uid = status.lines().find_map(|line| line.strip_prefix("Uid:"));
    uid.and_then(|line| line.split_whitespace().nth(1)) == Some("0")
}

fn announce(command: &Command) {
    eprintln!("$ {}", shown(command));
}

fn done(start: Instant) {
    eprintln!("  {:.1} s", start.elapsed().as_secs_f64());
}

fn name(command: &Command) -> String {
    let program = Path::new(command.get_program());
    program
        .file_name()
        .unwrap_or(program.as_os_str())
        .to_string_lossy()
        .into_owned()
}

/// The command as a shell would take it, with the variables that we set.
pub(crate) fn shown(command: &Command) -> String {
    let mut words = Vec::new();
    for (key, value) in command.get_envs() {
        if let Some(value) = value {
            words.push(format!("{}={}", key.to_string_lossy(), quoted(value)));
        }
    }
    words.push(quoted(command.get_program()));
    words.extend(command.get_args().map(quoted));
    words.join(" ")
}

fn quoted(word: &OsStr) -> String {
    let word = word.to_string_lossy();
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:,+@%".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.into_owned();
    }
    // The unit separator of CARGO_ENCODED_RUSTFLAGS is not printable: show it as a shell escape.
    let word = word
        .replace('\\', "\\\\")
        .replace('\'', "\\'")
        .replace('\x1f', "\\x1f");
    format!("$'{word}'")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shown_command_can_be_pasted() {
        let mut command = Command::new("cargo");
        command
            .env("FLAGS", "-Ca\x1f-Cb")
            .args(["build", "it's", ""]);
        assert_eq!(
            shown(&command),
            r"FLAGS=$'-Ca\x1f-Cb' cargo build $'it\'s' $''"
        );
    }

    #[test]
    fn failing_command_is_an_error_that_names_it() {
        let error = run(Command::new("sh").args(["-c", "exit 3"])).expect_err("exits with 3");
        assert!(
            error
                .to_string()
                .starts_with("sh ended with exit status: 3"),
            "{error}"
        );
    }

    #[test]
    fn lines_are_handed_over_in_order_with_the_outcome() {
        let mut seen = Vec::new();
        let mut command = Command::new("sh");
        command.args(["-c", "echo a; echo b; exit 1"]);
        let ok = run_lines(&mut command, |line| seen.push(line.to_owned())).expect("sh starts");
        assert_eq!((seen, ok), (vec!["a".to_owned(), "b".to_owned()], false));
    }
}
