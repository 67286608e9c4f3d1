//! Which test fills which map: a map without a row fails here.

use std::{collections::BTreeMap, path::Path};

use mesh_common::maps::{ALL, Kind};

/// Where a map's limit is tested.
#[derive(Clone, Copy, Debug)]
enum Covered {
    /// By this test, in this file below `mesh-user`.
    By(&'static str, &'static str),
    /// It has all its entries from the start, and each is written by its own number: there is no
    /// «full».
    Always,
}
use Covered::{Always, By};

const MAPS: &str = "tests/limits/maps.rs";
const REFUSALS: &str = "tests/kernel/refusals.rs";

const ROWS: &[(&str, Covered)] = &[
    (
        "BACKENDS",
        By(MAPS, "table_with_too_many_endpoints_changes_nothing"),
    ),
    // What is given in these is given by the agent, or by programs of other parts: that the kernel
    // refuses one more (or lets the oldest go) is tested here, what the part makes of it there.
    ("CAPS", Always),
    ("CAP_LIMITS", Always),
    ("CONFIG", Always),
    ("COUNTERS", Always),
    ("EP_STATS", Always),
    ("EVENTS", By(MAPS, "event_without_room_is_lost_and_counted")),
    (
        "FLOWS",
        By(
            MAPS,
            "flow_that_gives_way_is_counted_and_its_connection_served",
        ),
    ),
    (
        "GRANTS",
        By(
            MAPS,
            "maps_without_a_writer_here_refuse_one_more_at_their_limit",
        ),
    ),
    (
        "GUARDED",
        By(
            MAPS,
            "maps_without_a_writer_here_refuse_one_more_at_their_limit",
        ),
    ),
    ("HEARTBEAT", Always),
    (
        "INTENT",
        By(
            "tests/kernel/failure.rs",
            "connect_whose_intent_can_not_be_stored_follows_the_failure_mode",
        ),
    ),
    (
        "INTENTS",
        By(
            MAPS,
            "intents_of_failed_connects_give_way_to_those_of_good_ones",
        ),
    ),
    (
        "IN_RULES",
        By(
            MAPS,
            "maps_without_a_writer_here_refuse_one_more_at_their_limit",
        ),
    ),
    (
        "LISTENERS",
        By(
            REFUSALS,
            "full_listener_map_is_refused_by_name_and_at_the_limit_only",
        ),
    ),
    (
        "LOOP_FLOWS",
        By(
            MAPS,
            "maps_without_a_writer_here_refuse_one_more_at_their_limit",
        ),
    ),
    (
        "ORIGIN",
        By(
            "tests/clients/loopback.rs",
            "full_map_is_counted_and_the_destination_is_never_guessed",
        ),
    ),
    (
        "OUT_RULES",
        By(
            REFUSALS,
            "rules_that_do_not_fit_beside_the_old_ones_take_their_place",
        ),
    ),
    (
        "POD_BY_ADDR",
        By(
            REFUSALS,
            "full_address_map_is_refused_by_name_and_at_the_limit_only",
        ),
    ),
    (
        "POD_BY_NETNS",
        By(
            REFUSALS,
            "full_workload_map_is_refused_by_name_and_at_the_limit_only",
        ),
    ),
    (
        "POD_SOURCES",
        By(
            MAPS,
            "maps_without_a_writer_here_refuse_one_more_at_their_limit",
        ),
    ),
    (
        "PROBE_FLOWS",
        By(MAPS, "probes_at_the_limit_let_the_oldest_go"),
    ),
    (
        "PROXY_FLOWS",
        By(MAPS, "dial_without_an_entry_is_counted_and_goes_through"),
    ),
    (
        "SERVICES",
        By(REFUSALS, "table_that_does_not_fit_changes_nothing"),
    ),
    (
        "SLOTS",
        By(
            "src/policy/slots/tests.rs",
            "port_without_room_in_slots_is_the_proxys_and_says_so",
        ),
    ),
    ("SPLIT_SEQ", Always),
];

/// Without it: a map comes, fills up in production, and nobody knows what happens then.
#[test]
fn every_map_has_a_test_of_its_limit() {
    let rows: BTreeMap<&str, Covered> = ROWS.iter().copied().collect();
    assert_eq!(rows.len(), ROWS.len(), "one row for each map");
    for spec in ALL {
        let Some(row) = rows.get(spec.name) else {
            panic!("map {} has no row: {}", spec.name, spec.full);
        };
        match row {
            Always => assert!(
                matches!(spec.kind, Kind::Array | Kind::PerCpuArray),
                "{} can be full",
                spec.name
            ),
            By(file, test) => {
                let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(file);
                let text = std::fs::read_to_string(&path)
                    .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
                assert!(
                    text.contains(&format!("fn {test}()")),
                    "{}: no test {test} in {file}",
                    spec.name
                );
            }
        }
    }
    for name in rows.keys() {
        assert!(ALL.iter().any(|spec| spec.name == *name), "no map {name}");
    }
}
