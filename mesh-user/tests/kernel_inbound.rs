//! Inbound rules in the kernel's maps: written as a difference, adopted by the next agent, gone
//! with their workload.
//!
//! Needs root and BPF; fails, never skips, without.

mod support;

use std::net::{IpAddr, SocketAddr};

use aya::maps::{HashMap, Map, MapData};
use mesh_common::{addr::Addr, pod::PodAddr};
use mesh_user::{
    kernel::{cleanup::cleanup, inventory},
    testbed::{Pod, wait_until},
};

use support::{Mesh, agent::Inbound, client::connect, serve_in};

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

/// Whether a pod's port can be reached from another one, over IPv4.
fn reached(mesh: &Mesh, from: &Pod, to: &Pod, port: u16) -> bool {
    let seen = connect(&mesh.bed, from, SocketAddr::new(to.v4.into(), port));
    seen.data.starts_with("app ")
}

/// An address of the pod is somebody else's: it can't be enrolled.
fn taken(mesh: &Mesh, pod: &Pod) -> (HashMap<MapData, Addr, PodAddr>, Addr) {
    let map = Map::HashMap(MapData::from_pin(mesh.pin("POD_BY_ADDR")).unwrap());
    let mut map: HashMap<_, Addr, PodAddr> = map.try_into().unwrap();
    let key = Addr::from_ip(IpAddr::from(pod.v6));
    let nobody = PodAddr {
        pod_id: 1 << 20,
        generation: 0,
        fail: 0,
        inbound: 0,
        flags: 0,
        _pad: 0,
    };
    map.insert(key, nobody, 0).unwrap();
    (map, key)
}

/// Without it: a workload of the agent before is open at every denied port, and one that must not
/// bypass the mesh at every captured one, for as long as it can't be enrolled again.
#[test]
fn inbound_rules_of_a_workload_that_can_not_be_enrolled_hold() {
    let mut mesh = Mesh::new("inh");
    let (app, client) = (mesh.bed.pod("a").unwrap(), mesh.bed.pod("b").unwrap());
    let ports = [(); 3].map(|()| serve_in(&mesh.bed, &app, "app"));
    let rules = |rest| Inbound(rest, vec![(ports[1], 'c'), (ports[2], 'd')]);
    let open = |mesh: &Mesh| ports.map(|port| reached(mesh, &client, &app, port));
    let id = mesh
        .agent()
        .enrol_as("a", &app.netns, true, rules('p'))
        .unwrap();
    mesh.agent().live(id).unwrap();
    mesh.agent = None;
    assert_eq!(open(&mesh), [true, false, false], "nobody is there");
    mesh.start_agent(2, false).unwrap();
    mesh.agent().want(&["a"]);
    let origin = mesh.agent().workload_at(app.v4.into());
    assert_eq!(origin.as_deref(), Some("a"), "adopted");
    let (mut map, key) = taken(&mesh, &app);
    let enrol = |mesh: &Mesh, closed, rest| {
        let result = mesh.agent().enrol_as("a", &app.netns, closed, rules(rest));
        result.expect_err("refused");
    };
    enrol(&mesh, true, 'p');
    assert_eq!(open(&mesh), [true, false, false], "held");
    let origin = mesh.agent().workload_at(app.v4.into());
    assert_eq!(origin.as_deref(), Some("a"), "held");
    // They may change meanwhile, as its failure mode may.
    enrol(&mesh, true, 'd');
    assert_eq!(open(&mesh), [false; 3], "all denied");
    enrol(&mesh, false, 'p');
    assert_eq!(open(&mesh), [true, true, false], "open");
    mesh.agent().want(&[]);
    let over = wait_until(std::time::Duration::from_secs(15), || {
        mesh.agent().poll();
        mesh.agent().workload_at(app.v4.into()).is_none()
    });
    assert!(over, "nobody wants it after the grace of a start");
    assert_eq!(open(&mesh), [true; 3]);
    // The same of one that never was enrolled.
    mesh.agent().want(&["a"]);
    enrol(&mesh, true, 'p');
    assert_eq!(open(&mesh), [true, false, false], "held at once");
    map.remove(&key).unwrap();
    let again = mesh
        .agent()
        .enrol_as("a", &app.netns, true, rules('p'))
        .unwrap();
    assert_eq!(mesh.entries("IN_RULES"), 2);
    mesh.agent().release(again);
    assert_eq!(mesh.entries("IN_RULES"), 0);
    assert_eq!(mesh.entries("POD_BY_ADDR"), 0);
    assert_eq!(open(&mesh), [true; 3]);
}
