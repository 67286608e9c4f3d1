//! The shield in the configuration file: what is read, and how slips are told.

use std::time::Duration;

use mesh_user::{
    config,
    model::shield::{Deny, Mode, Rate, Shield},
};

fn parse(shield: &str) -> Result<Option<Shield>, String> {
    let text = format!("apiVersion: mesh/v1alpha1\nkind: MeshConfig\n{shield}");
    config::parse("mesh.yaml", &text)
        .map(|config| config.agent.shield)
        .map_err(|error| error.render(false))
}

/// Without it: a node that never asked for the shield pays for its maps.
#[test]
fn shield_is_absent_unless_the_file_names_it() {
    assert_eq!(parse(""), Ok(None));
    assert_eq!(parse("shield: {}\n"), Ok(Some(Shield::default())));
}

#[test]
fn shield_settings_are_read_as_they_stand() {
    let shield = parse(
        "shield:
  interfaces: [eth0, eth1.100]
  mode: force-native
  allow: [10.0.0.0/8]
  deny: [203.0.113.7, {cidr: \"2001:db8::/32\", rule-name: bad}]
  deny-files: [/etc/list]
  syn-rate: {rate: 100/s}
  connection-rate: {rate: 60/m, burst: 5}
  bogus-flags: pass
",
    );
    let deny = |cidr: &str, rule: Option<&str>| Deny {
        cidr: cidr.parse().unwrap(),
        rule: rule.map(str::to_owned),
    };
    let rate = |count, seconds, burst| {
        Some(Rate {
            count,
            per: Duration::from_secs(seconds),
            burst,
        })
    };
    let expected = Shield {
        interfaces: vec!["eth0".into(), "eth1.100".into()],
        mode: Mode::ForceNative,
        allow: vec!["10.0.0.0/8".parse().unwrap()],
        deny: vec![
            deny("203.0.113.7/32", None),
            deny("2001:db8::/32", Some("bad")),
        ],
        deny_files: vec!["/etc/list".into()],
        syn_rate: rate(100, 1, 100),
        connection_rate: rate(60, 60, 5),
        drop_bogus: false,
    };
    assert_eq!(shield, Ok(Some(expected)));
}

/// Each with its line and its field, all at once.
#[test]
fn shield_slips_are_told_with_line_and_field() {
    let error = parse(
        "shield:
  interfaces: [a-name-that-is-too-long]
  mode: fast
  allow: [10.0.0.1/8]
  deny: [{cidr: 10.0.0.0/8, rule: x}]
  deny-files: [list.txt]
  syn-rate: {burst: 0}
",
    )
    .expect_err("six slips");
    for expected in [
        "mesh.yaml:5",
        "shield.mode",
        "mesh.yaml:6",
        "shield.allow[0]",
        "10.0.0.0/8",
        "shield.deny[0].rule",
        "rule-name",
        "shield.deny-files[0]",
        "an absolute path",
        "shield.syn-rate.burst",
        "shield.syn-rate",
    ] {
        assert!(error.contains(expected), "{expected} in\n{error}");
    }
    let error = parse("shield: {interfaces: [a-name-that-is-too-long]}\n").expect_err("too long");
    assert!(error.contains("shield.interfaces[0]"), "{error}");
    assert!(error.contains("at most 15 characters"), "{error}");
}
