//! Processes that connect before their pod is enrolled.

use super::{
    matrix::{job, vip},
    process::{Client, FAMILIES},
    styles::Style,
};
use crate::support::{Mesh, agent::Mode, serve_vips_on_node};

/// Pitfall 18: a process whose first system call is connect, started 100 times while its pod is
/// enrolled, with `unknown-netns: refuse`. Without it: one connection in a while goes past the mesh.
#[test]
fn process_that_connects_first_of_all_never_gets_past_the_mesh() {
    const ROUNDS: usize = 100;
    let mut mesh = Mesh::with("first", 2, true);
    mesh.proxied();
    mesh.agent().echo(true);
    serve_vips_on_node(&mesh.bed);
    let pod = mesh.bed.pod("a").expect("a pod");
    let mut refused = 0;
    for round in 0..ROUNDS {
        let mode = [Mode::Mark, Mode::Loopback][round % 2];
        mesh.agent().mode(mode);
        let family = FAMILIES[round % FAMILIES.len()];
        let mut client = Client::start_with(&mesh.bed, &pod, &job(&pod, family, Style::First));
        // As the agent does: an enrolment that failed is tried again, and nothing leaves until then.
        let mut enrolled = Err(String::new());
        mesh.eventually("enrolled", || {
            enrolled = mesh.agent().enrol("a", &pod.netns, false);
            enrolled.is_ok()
        });
        let id = enrolled.expect("enrolled");
        mesh.agent().live(id).expect("live");
        let seen = client.answer();
        let what = format!("round {round}, {mode:?} {family:?}: {seen:?}");
        assert_eq!(seen.data, format!("proxy {} ping", vip(family)), "{what}");
        refused += seen.note.parse::<u64>().expect("a number");
        mesh.agent().release(id);
    }
    println!("{refused} refusals before {ROUNDS} connections");
    // The node serves the virtual addresses: a SYN that left the pod would have been answered. So
    // each attempt was either captured or refused by the hook.
    assert_eq!(mesh.agent().accepts().len(), ROUNDS);
    assert_eq!(mesh.count("refuse_unknown_netns"), refused);
    assert_eq!(mesh.count("pass_unknown_netns"), 0);
    assert!(refused > 0, "no client was there before its pod");
}
