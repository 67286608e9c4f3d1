//! The shield on interfaces: where it stands, beside whom, and what survives what.

use std::{
    os::unix::fs::MetadataExt as _,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use aya::maps::{HashMap, Map, MapData, MapInfo};
use mesh_common::shield::{MAPS, Manual, Prefix};
use mesh_user::{
    clock,
    kernel::{
        inventory,
        shield::{FileList, InterfaceStatus, Shield},
    },
    model::shield::{Mode, Net, Shield as Wanted},
};

use crate::{
    bed::*,
    foreign::{self, Foreign},
    frames::*,
};

fn stand(shield: &Shield) -> InterfaceStatus {
    let mut interfaces = shield.overview().interfaces;
    assert_eq!(interfaces.len(), 1, "{interfaces:?}");
    interfaces.remove(0)
}

/// Pitfall 26: native XDP on a veth costs its peer TSO. So `auto` stands at tcx there and says why,
/// `native` stands nowhere and says why, and offloads stay as they were.
#[test]
fn shield_on_a_veth_is_never_native_and_leaves_offloads_alone() {
    let bed = Bed::new();
    let offloads = |bed: &Bed| [bed.tso("node", "up0"), bed.tso("out", "out0")];
    assert_eq!(offloads(&bed), [true; 2]);
    let mut shield = bed.start();
    bed.apply(&mut shield, &wanted(Mode::Auto));
    let now = stand(&shield);
    assert_eq!(now.attached, Some("tcx"));
    assert!(now.why.expect("said").contains("veth"));
    assert_eq!(offloads(&bed), [true; 2]);
    bed.apply(&mut shield, &wanted(Mode::Native));
    let now = stand(&shield);
    assert_eq!(now.attached, None);
    assert!(now.why.expect("said").contains("force-native"));
    assert_eq!(offloads(&bed), [true; 2]);
    bed.apply(&mut shield, &wanted(Mode::ForceNative));
    assert_eq!(stand(&shield).attached, Some("xdp"));
    assert!(
        !bed.tso("out", "out0"),
        "what the refusal is about does not happen any more: look at it again"
    );
    bed.apply(&mut shield, &wanted(Mode::Off));
    assert_eq!(shield.overview().interfaces, []);
    // The kernel does not turn it on again by itself: one more reason never to try.
    assert!(bed.tso("node", "up0"));
}

fn drops_and_passes(mode: Mode, attached: &str, tcx: bool) {
    let bed = Bed::new();
    let mut shield = bed.start_with(tcx);
    let mut wanted = wanted(mode);
    bed.apply(&mut shield, &wanted);
    assert_eq!(stand(&shield).attached, Some(attached));
    for from in [OUTSIDE, PARTNER, OUTSIDE6] {
        assert!(bed.arrives(&shield, from), "{from}");
    }
    wanted.deny = vec![deny("192.0.2.0/24"), deny(OUTSIDE6)];
    wanted.allow = vec!["192.0.2.3/32".parse().unwrap()];
    bed.apply(&mut shield, &wanted);
    for (from, passes) in [(OUTSIDE, false), (PARTNER, true), (OUTSIDE6, false)] {
        assert_eq!(bed.arrives(&shield, from), passes, "{from}");
    }
    let rules = shield.rules(clock::now());
    let packets = |name: &str| {
        let rule = rules.iter().find(|row| row.rule == name);
        rule.unwrap_or_else(|| panic!("no rule {name} in {rules:?}"))
            .packets
    };
    for rule in ["192.0.2.0/24", "2001:db8::2/128", "allow 192.0.2.3/32"] {
        assert!(packets(rule) > 0, "{rule}");
    }
    // Everything goes when it is not wanted any more.
    wanted.mode = Mode::Off;
    bed.apply(&mut shield, &wanted);
    assert!(bed.arrives(&shield, OUTSIDE));
}

#[test]
fn shield_drops_in_the_driver_with_a_veth_as_uplink() {
    drops_and_passes(Mode::ForceNative, "xdp", true);
}

#[test]
fn shield_drops_at_tcx() {
    drops_and_passes(Mode::Tc, "tcx", true);
}

/// Linux before 6.6.
#[test]
fn shield_without_tcx_drops_at_clsact() {
    drops_and_passes(Mode::Auto, "clsact", false);
}

/// An MTU beyond a page needs the program for frames in several buffers.
#[test]
fn shield_with_large_frames_takes_the_program_for_them() {
    let bed = Bed::new();
    bed.ip("node", "link set up0 mtu 9000");
    bed.ip("out", "link set out0 mtu 9000");
    let mut shield = bed.start();
    let mut wanted = wanted(Mode::ForceNative);
    bed.apply(&mut shield, &wanted);
    assert_eq!(stand(&shield).attached, Some("xdp-frags"));
    let (to, from) = (bed.listener(NODE), bed.sender(OUTSIDE));
    let large = [7_u8; 8_000];
    let before = shield.counts();
    from.send_to(&large, to.local_addr().unwrap()).unwrap();
    let mut buffer = [0; 9_000];
    assert_eq!(to.recv(&mut buffer).expect("it arrives"), large.len());
    let bytes = |counts: &[mesh_user::kernel::shield::Count]| counts[0].bytes;
    assert!(
        bytes(&shield.counts()) - bytes(&before) >= 8_000,
        "all buffers are counted"
    );
    wanted.deny = vec![deny(OUTSIDE)];
    bed.apply(&mut shield, &wanted);
    assert!(!bed.arrives(&shield, OUTSIDE));
}

/// Pitfall 27: an XDP program of somebody else is named and left alone; `auto` stands beside it.
#[test]
fn shield_beside_a_foreign_xdp_program_declines_by_its_name() {
    let bed = Bed::new();
    let index = bed.index("node", "up0");
    let foreign = bed.inside("node", || Foreign::xdp(index));
    let mut shield = bed.start();
    for (mode, attached) in [(Mode::ForceNative, None), (Mode::Tc, Some("tcx"))] {
        bed.apply(&mut shield, &wanted(mode));
        let now = stand(&shield);
        assert_eq!(now.attached, attached);
        if attached.is_none() {
            let why = now.why.expect("said");
            let id = foreign.program_id().to_string();
            assert!(why.contains("somebody_elses") && why.contains(&id), "{why}");
        }
        assert!(foreign.stands());
        assert!(bed.arrives(&shield, OUTSIDE));
    }
    drop(foreign);
    bed.apply(&mut shield, &wanted(Mode::ForceNative));
    assert_eq!(stand(&shield).attached, Some("xdp"));
    // And the other way round: nobody gets past us by accident.
    let (_, ours) = foreign::pinned_link(&bed.link("xdp"));
    bed.apply(&mut shield, &wanted(Mode::ForceNative));
    assert_eq!(foreign::pinned_link(&bed.link("xdp")).1, ours);
}

/// Pitfall 27: foreign tc programs stay, before and behind ours, and what passes us reaches them.
#[test]
fn shield_beside_foreign_tc_programs_lets_them_run() {
    const NEXT: i32 = -1;
    const SHOT: i32 = 2;
    let bed = Bed::new();
    let index = bed.index("node", "up0");
    let before = bed.inside("node", || Foreign::tcx(index, NEXT));
    for tcx in [true, false] {
        let mut shield = bed.start_with(tcx);
        bed.apply(&mut shield, &wanted(Mode::Tc));
        assert_eq!(
            stand(&shield).attached,
            Some(if tcx { "tcx" } else { "clsact" })
        );
        assert!(bed.arrives(&shield, OUTSIDE));
        let mut denied = wanted(Mode::Tc);
        denied.deny = vec![deny(OUTSIDE)];
        bed.apply(&mut shield, &denied);
        assert!(!bed.arrives(&shield, OUTSIDE));
        assert!(before.stands());
        if tcx {
            // Behind ours: it meets what ours lets pass, for «not mine» is not «accept».
            let behind = bed.inside("node", || Foreign::tcx(index, SHOT));
            bed.apply(&mut shield, &wanted(Mode::Tc));
            let (to, from) = (bed.listener(NODE), bed.sender(OUTSIDE));
            let passed = count(&shield, "pass");
            let start = Instant::now();
            while count(&shield, "pass") < passed + 3 {
                assert!(
                    start.elapsed() < Duration::from_secs(10),
                    "it never met ours"
                );
                from.send_to(b"x", to.local_addr().unwrap()).unwrap();
                assert!(
                    to.recv(&mut [0; 8]).is_err(),
                    "the program behind us did not run"
                );
            }
            assert!(behind.stands());
        }
        drop(shield);
        assert_eq!(bed.cleanup().failed, Vec::<String>::new());
        assert!(before.stands());
    }
}

/// A list that is replaced denies, at every moment, what both the old and the new one deny; and
/// what both allow is never dropped.
#[test]
fn shield_lists_change_under_traffic_without_a_gap() {
    let bed = Bed::new();
    let mut shield = bed.start();
    let list = |seed: u32| -> Vec<Net> {
        let others =
            (0..20_000).map(|i| Net::new(0xffff_0a00_0000 | u128::from(i * 8 + seed), 128));
        others.chain([net(OUTSIDE)]).collect()
    };
    let files = |seed| {
        vec![FileList {
            path: "/list".to_owned(),
            nets: list(seed).into(),
        }]
    };
    let mut wanted = wanted(Mode::Tc);
    wanted.allow = vec!["192.0.2.3/32".parse().unwrap()];
    bed.apply_files(&mut shield, &wanted, files(0));
    let (denied_to, allowed_to) = (bed.listener(NODE), bed.listener(NODE));
    let (denied_from, allowed_from) = (bed.sender(OUTSIDE), bed.sender(PARTNER));
    let stop = AtomicBool::new(false);
    let sent = AtomicU64::new(0);
    let arrived = std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                denied_from
                    .send_to(b"x", denied_to.local_addr().unwrap())
                    .unwrap();
                allowed_from
                    .send_to(b"x", allowed_to.local_addr().unwrap())
                    .unwrap();
                // What is sent is read at once, so that no buffer overflows.
                if allowed_to.recv(&mut [0; 8]).is_ok() {
                    sent.fetch_add(1, Ordering::Relaxed);
                }
            }
        });
        for round in 1..=10 {
            let before = sent.load(Ordering::Relaxed);
            // The rule moves too: from the file to the configuration and back.
            wanted.deny = if round % 2 == 1 {
                vec![deny("192.0.2.0/24")]
            } else {
                Vec::new()
            };
            bed.apply_files(&mut shield, &wanted, files(round));
            let start = Instant::now();
            while sent.load(Ordering::Relaxed) < before + 10 {
                assert!(
                    start.elapsed() < Duration::from_secs(10),
                    "the allowed are cut off"
                );
                std::thread::yield_now();
            }
        }
        stop.store(true, Ordering::Relaxed);
        denied_to.recv(&mut [0; 8]).is_ok()
    });
    assert!(!arrived, "a denied datagram came through");
    assert_eq!(shield.overview().prefixes, 20_002);
    println!("{} datagrams of the allowed", sent.load(Ordering::Relaxed));
}

/// An agent that dies leaves the shield working; the next one takes links, lists, counters and an
/// operator's entries over, and exactly one program stands there.
#[test]
fn shield_outlives_its_agent_and_is_adopted_by_the_next() {
    for (mode, how) in [(Mode::ForceNative, "xdp"), (Mode::Tc, "tcx")] {
        let bed = Bed::new();
        let mut shield = bed.start();
        let mut wanted = wanted(mode);
        wanted.deny = vec![deny(OUTSIDE)];
        let files = vec![FileList {
            path: "/lists/a".to_owned(),
            nets: [net("198.51.100.0/24"), net("2001:db8:1::/48")].into(),
        }];
        bed.apply_files(&mut shield, &wanted, files.clone());
        shield.add(net(PARTNER), false, None).expect("added");
        assert!(!bed.arrives(&shield, OUTSIDE) && !bed.arrives(&shield, PARTNER));
        let link = foreign::pinned_link(&bed.link(how));
        let before = count(&shield, "drop_deny");
        drop(shield);
        // Nobody lives; the frames are dropped all the same.
        let (to, from) = (bed.listener(NODE), bed.sender(OUTSIDE));
        for _ in 0..10 {
            from.send_to(b"x", to.local_addr().unwrap()).unwrap();
        }
        assert!(to.recv(&mut [0; 8]).is_err());
        let mut shield = bed.start();
        assert!(count(&shield, "drop_deny") >= before + 10);
        assert_eq!(&*shield.last_of_file("/lists/a"), &*files[0].nets);
        bed.apply_files(&mut shield, &wanted, files);
        let after = foreign::pinned_link(&bed.link(how));
        assert_eq!(after.0, link.0, "the same link");
        assert_ne!(after.1, link.1, "with the new agent's program");
        assert!(!bed.arrives(&shield, PARTNER), "an operator's entry");
        let rows = shield.rules(clock::now());
        let manual = rows.iter().find(|row| row.origin == "cli").expect("there");
        assert_eq!(
            (manual.rule.as_str(), manual.action),
            ("cli 192.0.2.3/32", "deny")
        );
        assert!(manual.packets >= 2, "counters go on: {manual:?}");
    }
}

#[test]
fn shield_entry_of_an_operator_ends_when_its_time_is_over() {
    let bed = Bed::new();
    let mut shield = bed.start();
    let mut wanted = wanted(Mode::Tc);
    wanted.deny = vec![deny("198.51.100.0/24")];
    bed.apply(&mut shield, &wanted);
    let now = clock::now();
    shield
        .add(
            net(OUTSIDE),
            false,
            Some(now.after(Duration::from_secs(600))),
        )
        .expect("added");
    let check = shield.check(OUTSIDE.parse().unwrap());
    assert_eq!((check.decision, check.kernel_agrees), ("deny", true));
    assert!(!bed.arrives(&shield, OUTSIDE));
    let left = |shield: &Shield| {
        let rows = shield.rules(clock::now());
        rows.iter()
            .find(|row| row.origin == "cli")
            .and_then(|row| row.expires_s)
    };
    assert!(
        matches!(left(&shield), Some(590..=600)),
        "{:?}",
        left(&shield)
    );
    bed.inside("node", || {
        shield.tick(now.after(Duration::from_secs(599))).unwrap()
    });
    assert!(left(&shield).is_some());
    bed.inside("node", || {
        shield.tick(now.after(Duration::from_secs(601))).unwrap()
    });
    assert_eq!(left(&shield), None);
    assert!(bed.arrives(&shield, OUTSIDE));
    assert_eq!(shield.check(OUTSIDE.parse().unwrap()).decision, "pass");
    let error = shield
        .remove(net(OUTSIDE), false)
        .expect_err("it is gone")
        .to_string();
    assert!(error.contains("192.0.2.2/32"), "{error}");
}

/// An operator's allow wins over every list, at once.
#[test]
fn shield_allow_of_an_operator_wins_over_the_lists() {
    let bed = Bed::new();
    let mut shield = bed.start();
    let mut wanted = wanted(Mode::Tc);
    wanted.deny = vec![deny("0.0.0.0/0"), deny("192.0.2.2")];
    bed.apply(&mut shield, &wanted);
    assert!(!bed.arrives(&shield, OUTSIDE));
    shield.add(net("192.0.2.0/24"), true, None).expect("added");
    assert!(bed.arrives(&shield, OUTSIDE));
    let check = shield.check(OUTSIDE.parse().unwrap());
    assert_eq!(check.decision, "allow");
    assert_eq!(check.rule.as_deref(), Some("cli allow 192.0.2.0/24"));
    assert!(check.kernel_agrees);
    let holders: Vec<_> = check
        .holders
        .iter()
        .map(|h| (h.rule.as_str(), h.decides))
        .collect();
    assert_eq!(
        holders,
        [
            ("cli allow 192.0.2.0/24", true),
            ("0.0.0.0/0", false),
            ("192.0.2.2/32", false)
        ]
    );
    shield.remove(net("192.0.2.0/24"), true).expect("removed");
    assert!(!bed.arrives(&shield, OUTSIDE));
}

/// An interface that was made anew gets its program again.
#[test]
fn shield_follows_an_interface_that_is_made_anew() {
    let bed = Bed::new();
    let mut shield = bed.start();
    let mut wanted = wanted(Mode::Tc);
    wanted.interfaces = vec!["auto".to_owned()];
    wanted.deny = vec![deny(OUTSIDE)];
    bed.apply(&mut shield, &wanted);
    assert_eq!(stand(&shield).interface, "up0", "the default route's");
    assert!(!bed.arrives(&shield, OUTSIDE));
    bed.ip("node", "link del up0");
    bed.tick(&mut shield);
    assert_eq!(shield.overview().interfaces, []);
    bed.pair();
    bed.tick(&mut shield);
    assert_eq!(stand(&shield).attached, Some("tcx"));
    assert!(!bed.arrives(&shield, OUTSIDE));
    // Somebody removes our link.
    std::fs::remove_file(bed.link("tcx")).unwrap();
    assert!(bed.arrives(&shield, OUTSIDE));
    bed.tick(&mut shield);
    assert!(!bed.arrives(&shield, OUTSIDE));
}

/// Without it: a default route that is exchanged lets a flood in, and one that went for good keeps
/// the shield on an interface that is no uplink.
#[test]
fn shield_stays_while_the_default_route_is_away_for_a_moment() {
    let bed = Bed::new();
    let mut shield = bed.start();
    let mut wanted = wanted(Mode::Tc);
    wanted.interfaces = vec!["auto".to_owned()];
    wanted.deny = vec![deny(OUTSIDE)];
    bed.apply(&mut shield, &wanted);
    let before = std::fs::metadata(bed.link("tcx")).expect("pinned").ino();
    bed.ip("node", "route del default");
    let now = clock::now();
    let tick = |shield: &mut Shield, seconds| {
        bed.inside("node", || {
            let at = now.after(Duration::from_secs(seconds));
            shield.tick(at).expect("it ticks");
        });
    };
    tick(&mut shield, 1);
    tick(&mut shield, 20);
    assert!(!bed.arrives(&shield, OUTSIDE));
    // A new agent that starts just then adopts it.
    drop(shield);
    let mut shield = bed.start();
    bed.apply(&mut shield, &wanted);
    assert_eq!(stand(&shield).attached, Some("tcx"));
    let link = std::fs::metadata(bed.link("tcx")).expect("pinned");
    assert_eq!(link.ino(), before, "made anew");
    tick(&mut shield, 20);
    assert_eq!(shield.overview().interfaces.len(), 1);
    tick(&mut shield, 60);
    assert_eq!(shield.overview().interfaces, []);
    assert!(bed.arrives(&shield, OUTSIDE));
}

/// An entry that is gone from the map already is let go all the same.
#[test]
fn shield_entry_that_somebody_removed_from_the_map_is_let_go() {
    let bed = Bed::new();
    let mut shield = bed.start();
    bed.apply(&mut shield, &wanted(Mode::Tc));
    shield.add(net(OUTSIDE), false, None).expect("added");
    let map = MapData::from_pin(bed.pin("SHIELD_MANUAL")).expect("pinned");
    let map = Map::from_map_data(map).expect("a map");
    let mut map: HashMap<_, Prefix, Manual> = map.try_into().expect("a hash map");
    let keys: Vec<Prefix> = map.keys().map(|key| key.expect("read")).collect();
    assert_eq!(keys.len(), 1);
    map.remove(&keys[0]).expect("removed");
    assert!(!bed.arrives(&shield, OUTSIDE), "the trie holds it");
    shield.remove(net(OUTSIDE), false).expect("let go");
    assert!(bed.arrives(&shield, OUTSIDE));
}

/// Cleanup leaves nothing: no link, no map, no filter, no pin.
#[test]
fn shield_cleanup_leaves_nothing() {
    for (mode, tcx) in [
        (Mode::ForceNative, true),
        (Mode::Tc, true),
        (Mode::Tc, false),
    ] {
        let bed = Bed::new();
        let mut shield = bed.start_with(tcx);
        let mut wanted = wanted(mode);
        wanted.deny = vec![deny(OUTSIDE)];
        bed.apply(&mut shield, &wanted);
        assert!(!bed.arrives(&shield, OUTSIDE));
        let maps: Vec<u32> = MAPS
            .iter()
            .map(|spec| MapInfo::from_pin(bed.pin(spec.name)).expect("pinned").id())
            .collect();
        drop(shield);
        let report = bed.cleanup();
        assert_eq!(report.failed, Vec::<String>::new());
        assert!(
            report
                .removed
                .iter()
                .any(|what| what.starts_with("shield ")),
            "{report:?}"
        );
        assert_eq!(
            inventory::pins(&bed.instance),
            Vec::<std::path::PathBuf>::new()
        );
        let (to, from) = (bed.listener(NODE), bed.sender(OUTSIDE));
        let start = Instant::now();
        loop {
            from.send_to(b"x", to.local_addr().unwrap()).unwrap();
            if to.recv(&mut [0; 8]).is_ok() {
                break;
            }
            assert!(
                start.elapsed() < Duration::from_secs(10),
                "something still drops"
            );
        }
        // The kernel frees maps some time after their last user.
        while maps.iter().any(|id| exists(*id)) {
            assert!(start.elapsed() < Duration::from_secs(10), "maps are left");
            std::thread::yield_now();
        }
    }
}

/// Bytes that the kernel says a map takes.
fn memory(pin: &std::path::Path) -> u64 {
    use std::os::fd::{AsFd as _, AsRawFd as _};
    let map = MapData::from_pin(pin).expect("a map");
    let number = map.fd().as_fd().as_raw_fd();
    let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{number}")).expect("it is open");
    let line = info.lines().find_map(|line| line.strip_prefix("memlock:"));
    line.and_then(|bytes| bytes.trim().parse().ok())
        .expect("the kernel says it")
}

fn exists(map: u32) -> bool {
    aya::maps::loaded_maps()
        .flatten()
        .any(|info| info.id() == map)
}

/// A million ranges load and decide; one more is refused by name and changes nothing.
/// Times are printed (`--nocapture`).
#[test]
fn shield_holds_a_million_ranges() {
    const COUNT: usize = 1_000_000;
    let bed = Bed::new();
    let mut shield = bed.start();
    let wanted = Wanted {
        drop_bogus: false,
        ..wanted(Mode::ForceNative)
    };
    // Spread over both families, as blocklists are: an odd factor visits each number once.
    let nets = |count: usize| -> Arc<[Net]> {
        (0..count as u32)
            .map(|i| {
                let spread = i.wrapping_mul(2_654_435_761);
                if i % 4 == 0 {
                    Net::new(0x2001_0db8 << 96 | u128::from(spread) << 64, 64)
                } else {
                    Net::new(0xffff_0000_0000 | u128::from(spread), 128)
                }
            })
            .collect()
    };
    let file = |nets: Arc<[Net]>| {
        vec![FileList {
            path: "/million".to_owned(),
            nets,
        }]
    };
    let million = nets(COUNT);
    let start = Instant::now();
    bed.apply_files(&mut shield, &wanted, file(Arc::clone(&million)));
    println!("{COUNT} ranges loaded in {:?}", start.elapsed());
    assert_eq!(shield.overview().prefixes, COUNT);
    for spec in MAPS {
        println!("{}: {} KiB", spec.name, memory(&bed.pin(spec.name)) >> 10);
    }
    let (_, program) = foreign::pinned_link(&bed.link("xdp"));
    let frames: Vec<Vec<u8>> = million
        .iter()
        .step_by(COUNT / 1_000)
        .map(|net| {
            let address = std::net::Ipv6Addr::from(net.address());
            let source = address.to_ipv4_mapped().map_or(address.into(), Into::into);
            packet(source, UDP, &[0; 8])
        })
        .collect();
    let mut took = Duration::ZERO;
    for frame in &frames {
        let (verdict, time) = foreign::run(program, frame, 1);
        assert_eq!(verdict, 1, "XDP_DROP");
        took += time;
    }
    println!(
        "drop at that size, each of {} sources once: {:?}",
        frames.len(),
        took / frames.len() as u32
    );
    let (_, hot) = foreign::run(program, &frames[1], 1_000_000);
    println!("drop at that size, the same source again: {hot:?}");
    let start = Instant::now();
    let error = bed.inside("node", || {
        shield
            .apply(&wanted, file(nets(COUNT + 1)))
            .expect_err("too many")
            .to_string()
    });
    assert!(
        error.contains("SHIELD_PREFIXES") && error.contains("1000001"),
        "{error}"
    );
    assert_eq!(
        shield.overview().prefixes,
        COUNT,
        "the old list stays ({:?})",
        start.elapsed()
    );
    let start = Instant::now();
    shield
        .add(net(OUTSIDE), true, None)
        .expect("added beside a million");
    println!("one entry more: {:?}", start.elapsed());
    drop(shield);
    let start = Instant::now();
    let shield = bed.start();
    println!("adopted in {:?}", start.elapsed());
    assert_eq!(shield.last_of_file("/million").len(), COUNT);
}
