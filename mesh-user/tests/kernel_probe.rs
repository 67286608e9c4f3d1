//! `mesh check`'s facts on this machine.

use mesh_user::kernel::probe::check;

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
    ] {
        assert!(checks.iter().any(|check| check.name == name), "{name}");
    }
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
            "program sk_lookup",
            "helper bpf_set_retval",
            "map ring buffer",
            "eBPF object",
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
