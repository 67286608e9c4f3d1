//! The binary as a process: what only a process shows.

use std::{
    io::Read as _,
    process::{Command, Output, Stdio},
};

/// An instance that nobody has, whatever runs on this machine.
const NOBODY: &str = "ops-unit-nobody";

fn mesh(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mesh"));
    command
        .args(args)
        .env_remove("MESH_INSTANCE")
        .env_remove("NO_COLOR")
        .stdin(Stdio::null());
    command
}

fn run(mut command: Command) -> (Option<i32>, String, String) {
    let Output {
        status,
        stdout,
        stderr,
    } = command.output().expect("the binary starts");
    let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
    (status.code(), text(stdout), text(stderr))
}

#[test]
fn exit_status_tells_failure_from_wrong_usage() {
    assert_eq!(run(mesh(&["version"])).0, Some(0));
    assert_eq!(run(mesh(&["--instance", NOBODY, "status"])).0, Some(1));
    assert_eq!(run(mesh(&["frobnicate"])).0, Some(2));
}

#[test]
fn instance_comes_from_the_environment_and_the_flag_wins() {
    let mut command = mesh(&["status"]);
    command.env("MESH_INSTANCE", NOBODY);
    let (status, _, err) = run(command);
    assert_eq!(status, Some(1));
    assert!(err.contains(NOBODY), "{err}");
    let mut command = mesh(&["status", "--instance", NOBODY]);
    command.env("MESH_INSTANCE", "ops-elsewhere");
    let (_, _, err) = run(command);
    assert!(err.contains(NOBODY) && !err.contains("elsewhere"), "{err}");
}

#[test]
fn reader_that_closes_early_is_no_panic() {
    // More than a pipe holds, so that the writer meets the closed end.
    let mut child = mesh(&["completions", "zsh"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the binary starts");
    let mut first = [0; 1];
    let mut stdout = child.stdout.take().expect("it is piped");
    stdout.read_exact(&mut first).expect("it writes");
    drop(stdout);
    let output = child.wait_with_output().expect("it ends");
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
}

#[test]
fn pipes_get_no_colours() {
    let (_, out, err) = run(mesh(&["--help"]));
    assert!(!out.contains('\u{1b}') && !err.contains('\u{1b}'));
    let (_, _, err) = run(mesh(&["frobnicate"]));
    assert!(!err.contains('\u{1b}'), "{err:?}");
}

#[test]
fn run_with_a_file_that_is_not_there_names_it() {
    let args = [
        "--instance",
        NOBODY,
        "run",
        "--config",
        "/no/such/mesh.yaml",
    ];
    let (status, out, err) = run(mesh(&args));
    assert_eq!((status, &*out), (Some(1), ""));
    assert!(err.contains("/no/such/mesh.yaml"), "{err}");
    assert!(!err.contains("panicked"), "{err}");
}

#[test]
fn log_filter_that_is_none_is_refused_before_anything_starts() {
    let args = ["run", "--config", "/no/such/mesh.yaml", "--log", "loud"];
    let (status, _, err) = run(mesh(&args));
    assert_eq!(status, Some(1));
    assert!(
        err.contains("\"loud\" is not a level") && err.contains("debug"),
        "{err}"
    );
}

#[test]
fn validate_reads_standard_input() {
    let mut command = mesh(&["validate", "-f", "-"]);
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn().expect("the binary starts");
    let mut stdin = child.stdin.take().expect("it is piped");
    std::io::Write::write_all(&mut stdin, b"kind: Nonsense\n").expect("it reads");
    drop(stdin);
    let output = child.wait_with_output().expect("it ends");
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stdout).starts_with("invalid <stdin>: "));
    assert!(String::from_utf8_lossy(&output.stderr).contains("Nonsense"));
}
