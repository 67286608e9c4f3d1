//! `mesh check`'s facts on this machine.

use mesh_user::kernel::probe::{Check, check};

/// Without it: the check says no where the agent runs, or yes by looking at a version.
#[test]
fn machine_that_runs_the_kernel_tests_passes_every_required_check() {
    let checks = check();
    let bad: Vec<_> = checks
        .iter()
        .filter(|check| check.required && !check.ok)
        .collect();
    assert!(bad.is_empty(), "{bad:#?}");
    for name in [
        "kernel",
        "btf",
        "cgroup2",
        "bpffs",
        "capability NET_ADMIN",
        "eBPF object",
        "program sock_release",
    ] {
        assert!(checks.iter().any(|check| check.name == name), "{name}");
    }
    let hooks = checks
        .iter()
        .find(|check| check.name.contains("root cgroup"));
    assert!(hooks.is_some_and(|hooks| hooks.ok), "{hooks:?}");
    for check in &checks {
        assert!(!check.found.is_empty(), "{check:?}");
        assert_eq!(check.remedy.is_some(), !check.ok, "{check:?}");
    }
}

/// Without it: a check that can't fail. Run again in a process without capabilities, where trying
/// must fail and say what is missing.
#[test]
fn without_capabilities_the_check_names_what_is_missing() {
    const INSIDE: &str = "MESH_TEST_WITHOUT_CAPABILITIES";
    if std::env::var_os(INSIDE).is_some() {
        let bad: Vec<String> = check()
            .into_iter()
            .filter(|check| check.required && !check.ok)
            .map(|check| check.name)
            .collect();
        for name in [
            "capability BPF",
            "capability NET_ADMIN",
            "capability SYS_ADMIN",
            "kernel features",
        ] {
            assert!(bad.iter().any(|bad| bad == name), "{name} in {bad:?}");
        }
        return;
    }
    let status = std::process::Command::new("setpriv")
        .args(["--bounding-set", "-sys_admin,-bpf,-net_admin"])
        .arg(std::env::current_exe().expect("own path"))
        .args([
            "--exact",
            "without_capabilities_the_check_names_what_is_missing",
        ])
        .env(INSIDE, "1")
        .status()
        .expect("setpriv (util-linux)");
    assert!(status.success());
}

/// Runs this test again behind a shell script that takes something away, in namespaces of its own;
/// what the check then says of a line, as «found; remedy». With its name the test asks, within it
/// answers.
fn asked_behind(test: &str, unshare: &[&str], script: &str) -> Option<Vec<Check>> {
    const INSIDE: &str = "MESH_TEST_BEHIND";
    if std::env::var_os(INSIDE).is_some() {
        return Some(check());
    }
    let output = std::process::Command::new("unshare")
        .args(unshare)
        .args(["sh", "-c", &format!("set -e; {script}; exec \"$0\" \"$@\"")])
        .arg(std::env::current_exe().expect("own path"))
        .args(["--exact", test, "--nocapture"])
        .env(INSIDE, "1")
        .output()
        .expect("unshare (util-linux)");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{said}");
    None
}

/// The line, which must be bad.
fn bad<'a>(checks: &'a [Check], name: &str) -> (&'a str, &'a str) {
    let line = checks.iter().find(|check| check.name == name);
    let line = line.unwrap_or_else(|| panic!("no line {name}"));
    assert!(!line.ok && line.required, "{line:?}");
    (&line.found, line.remedy.as_deref().expect("a remedy"))
}

#[test]
fn read_only_bpffs_is_named_with_its_remedy() {
    let test = "read_only_bpffs_is_named_with_its_remedy";
    let script = "mount -o remount,bind,ro /sys/fs/bpf 2>/dev/null || \
                  { mount -t bpf none /sys/fs/bpf; mount -o remount,ro /sys/fs/bpf; }";
    if let Some(checks) = asked_behind(test, &["--mount"], script) {
        let (found, remedy) = bad(&checks, "bpffs");
        assert!(found.contains("read-only"), "{found}");
        assert!(remedy.contains("remount,rw"), "{remedy}");
    }
}

#[test]
fn missing_or_hidden_cgroup2_is_named_with_its_remedy() {
    let test = "missing_or_hidden_cgroup2_is_named_with_its_remedy";
    let script = "mount -t tmpfs none /sys/fs/cgroup";
    if let Some(checks) = asked_behind(test, &["--mount"], script) {
        let (found, remedy) = bad(&checks, "cgroup2");
        assert!(
            found.contains("hidden") || found.contains("no cgroup2"),
            "{found}"
        );
        assert!(remedy.contains("mount -t cgroup2"), "{remedy}");
    }
}

#[test]
fn own_user_namespace_is_named_and_nothing_blames_the_kernel_for_it() {
    let test = "own_user_namespace_is_named_and_nothing_blames_the_kernel_for_it";
    let Some(checks) = asked_behind(test, &["--user", "--map-root-user"], ":") else {
        return;
    };
    let (found, remedy) = bad(&checks, "user namespace");
    assert!(found.contains("of its own"), "{found}");
    assert!(remedy.contains("hostUsers: true"), "{remedy}");
    let (found, remedy) = bad(&checks, "kernel features");
    assert!(found.contains("not tried"), "{found}");
    assert!(remedy.contains("user namespace lines"), "{remedy}");
    assert!(
        checks.iter().all(|check| check.name != "eBPF object"),
        "nothing is blamed that was not tried"
    );
}
