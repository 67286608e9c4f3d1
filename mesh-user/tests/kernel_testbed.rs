//! The test bed itself: needs root.

use std::{process::Command, time::Duration};

use mesh_user::testbed::{Pod, Testbed};

fn stdout(bed: &Testbed, pod: &Pod, script: &str) -> String {
    let mut command = Command::new("sh");
    command
        .args(["-c", script])
        .stdout(std::process::Stdio::piped());
    let output = bed
        .spawn_in(pod, command)
        .unwrap()
        .wait_with_output()
        .unwrap();
    assert!(output.status.success(), "{script}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn pods_stand_in_their_namespace_and_cgroup_and_reach_each_other() {
    let name = format!("self-{}", std::process::id());
    let mut bed = Testbed::new(&name).unwrap();
    let (a, b) = (bed.pod("a").unwrap(), bed.pod("b").unwrap());
    let cgroup = stdout(&bed, &a, "grep ^0:: /proc/self/cgroup");
    assert!(
        cgroup.trim().ends_with(&format!("mb-{name}/pods/a")),
        "{cgroup}"
    );
    let listener = bed
        .in_netns(&b, || std::net::TcpListener::bind("[::]:0").unwrap())
        .unwrap();
    let port = listener.local_addr().unwrap().port();
    for ip in [std::net::IpAddr::from(b.v4), b.v6.into()] {
        let peer = (a.v4, a.v6);
        bed.in_netns(&a, move || {
            std::net::TcpStream::connect_timeout(&(ip, port).into(), Duration::from_secs(2))
                .unwrap()
        })
        .unwrap();
        let from = listener.accept().unwrap().1.ip().to_canonical();
        assert!(from == peer.0 || from == peer.1, "{from}");
    }
    drop(listener);
    let (netns, cgroup) = (a.netns.clone(), bed.pods_cgroup());
    // A process that is still running at the end must not keep anything alive.
    let mut sleeper = Command::new("sleep");
    sleeper.arg("600");
    let mut sleeper = bed.spawn_in(&a, sleeper).unwrap();
    drop(bed);
    assert!(!netns.exists() && !cgroup.exists());
    assert!(!sleeper.wait().unwrap().success());
}

#[test]
fn bed_left_by_a_killed_run_is_removed_first() {
    let name = format!("stale-{}", std::process::id());
    // A killed process runs no destructors either.
    let mut first = std::mem::ManuallyDrop::new(Testbed::new(&name).unwrap());
    first.pod("old").unwrap();
    let mut second = Testbed::new(&name).unwrap();
    assert!(second.pods().is_empty());
    second.pod("old").unwrap();
}

#[test]
fn bad_names_are_refused() {
    for name in ["", "UP", "a/b", "a_b", "0123456789012345678901234"] {
        assert!(Testbed::new(name).is_err(), "{name}");
    }
}
