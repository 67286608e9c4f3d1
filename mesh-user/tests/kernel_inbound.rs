//! Inbound rules in the kernel's maps: written as a difference, adopted by the next agent, gone
//! with their workload.
//!
//! Needs root and BPF; fails, never skips, without.

mod support;

use mesh_user::kernel::{cleanup::cleanup, inventory};

use support::{Mesh, agent::Inbound};

fn rows(mesh: &Mesh, pod_id: u32) -> Vec<(String, String)> {
    let rows = mesh.view().inbound();
    rows.into_iter()
        .filter(|row| row.pod_id == pod_id)
        .map(|row| (row.port, row.action))
        .collect()
}

fn want(list: &[(&str, &str)]) -> Vec<(String, String)> {
    let owned = |(a, b): &(&str, &str)| ((*a).to_owned(), (*b).to_owned());
    list.iter().map(owned).collect()
}

#[test]
fn rules_of_a_workload_are_diffed_adopted_and_removed_with_it() {
    let mut mesh = Mesh::new("inr");
    let (a, a_id) = mesh.live_pod("a", false);
    let (_b, b_id) = mesh.live_pod("b", true);
    // One listener for each direction and shard.
    assert_eq!(mesh.entries("LISTENERS"), 8);
    let agent = mesh.agent();
    agent.inbound(a_id, 'p', &[(80, 'c'), (81, 'd')]);
    agent.inbound(b_id, 'c', &[(81, 'p')]);
    assert_eq!(
        rows(&mesh, a_id),
        want(&[("*", "pass"), ("80", "capture"), ("81", "deny")])
    );
    assert_eq!(rows(&mesh, b_id), want(&[("*", "capture"), ("81", "pass")]));
    mesh.agent().inbound(a_id, 'd', &[(81, 'c'), (82, 'p')]);
    assert_eq!(
        rows(&mesh, a_id),
        want(&[("*", "deny"), ("81", "capture"), ("82", "pass")])
    );
    assert_eq!(rows(&mesh, b_id), want(&[("*", "capture"), ("81", "pass")]));
    // The agent dies: what it said stands. The next one says something else.
    mesh.agent = None;
    assert_eq!(mesh.entries("IN_RULES"), 3);
    mesh.start_agent(2, false).unwrap();
    let again = mesh
        .agent()
        .enrol_with("a", &a.netns, Inbound('p', vec![(80, 'd')]))
        .unwrap();
    assert_eq!(again, a_id);
    assert_eq!(rows(&mesh, a_id), want(&[("*", "pass"), ("80", "deny")]));
    assert_eq!(mesh.entries("IN_RULES"), 2);
    mesh.agent().release(a_id);
    assert_eq!(mesh.entries("IN_RULES"), 1);
    // What nobody enrols again goes with the rest.
    mesh.agent = None;
    let report = cleanup(&mesh.instance, false, true);
    assert!(report.failed.is_empty(), "{report:?}");
    assert!(inventory::pins(&mesh.instance).is_empty());
}

/// Without it: a rule lives on under the number of a workload that is no more.
#[test]
fn rules_of_a_namespace_that_went_away_go_with_it() {
    let mut mesh = Mesh::new("ing");
    let (pod, id) = mesh.live_pod("a", false);
    mesh.agent().inbound(id, 'p', &[(80, 'c'), (81, 'd')]);
    assert_eq!(mesh.entries("IN_RULES"), 2);
    mesh.bed.remove(&pod).unwrap();
    mesh.eventually("it is noticed", || mesh.agent().poll() == [id]);
    assert_eq!(mesh.entries("IN_RULES"), 0);
    assert_eq!(mesh.entries("POD_BY_ADDR"), 0);
    // The same while no agent looks.
    let (pod, id) = mesh.live_pod("b", false);
    mesh.agent().inbound(id, 'c', &[(80, 'd')]);
    mesh.agent = None;
    mesh.bed.remove(&pod).unwrap();
    assert_eq!(mesh.entries("IN_RULES"), 1);
    mesh.start_agent(2, false).unwrap();
    assert_eq!(mesh.entries("IN_RULES"), 0, "the next agent purges it");
}
