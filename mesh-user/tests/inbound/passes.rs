//! Between two workloads of a node the destination's rules hold once, whoever applies them: the
//! agent before it dials, or the second pass.

use std::net::IpAddr;

use aya::maps::{HashMap, Map, MapData};

use crate::{
    failure::pin,
    scene::{self, Talker, eventually},
    stage::{DENIED, How, OPAQUE, PLAIN, Seen, Setup, Stage, VIP},
};

fn denied(seen: &Seen) -> bool {
    (seen.status, &*seen.reject) == (403, "inbound_denied")
}

fn vip() -> IpAddr {
    VIP.parse().unwrap()
}

/// With one worker: a pooled connection is the one that the next request finds.
fn start(name: &str, app: &str, more: &str) -> Stage {
    let mut stage = Stage::build(name);
    stage.scene.start_with(&one(&stage, app, more)).unwrap();
    scene::live(&stage.scene, 3);
    stage
}

fn one(stage: &Stage, app: &str, more: &str) -> String {
    let agent = "  workers: 1\n";
    stage.config(&Setup { app, more, agent })
}

/// Without it: a client of mode `loopback` is 127.0.0.1, and one that asked for an address of the
/// other family has that one's: no range that names the client holds.
#[test]
fn client_is_judged_by_the_address_that_its_connection_would_come_from() {
    let stage = start("in-from", "", "");
    let (client, app) = (&stage.scene.client, &stage.app);
    let cases = [
        ("loopback", false),
        ("loopback", true),
        ("mark", false),
        ("mark", true),
    ];
    for (mode, v6) in cases {
        let (own, endpoint): (IpAddr, IpAddr) = if v6 {
            (client.v6.into(), app.v6.into())
        } else {
            (client.v4.into(), app.v4.into())
        };
        let ask = |list: &str| {
            let rule = format!(
                "inbound:\n  - {{workload: app, ports: [8080], {list}: {{cidr: \"{own}\"}}}}\n"
            );
            let text = one(&stage, "", &rule)
                .replace("app: client}", &format!("app: client}}, mode: {mode}"))
                .replace(
                    &format!("{{address: {}}}", app.v4),
                    &format!("{{address: \"{endpoint}\"}}"),
                );
            assert!(text.contains(&format!("mode: {mode}")), "{text}");
            assert!(
                text.contains(&format!("{{address: \"{endpoint}\"}}")),
                "{text}"
            );
            stage.scene.put_in_force(&text).expect("it is taken");
            [&stage.scene.client, &stage.scene.tester].map(|from| stage.ask(from, vip(), 80, PLAIN))
        };
        let [named, other] = ask("deny");
        assert!(denied(&named), "{mode} {own}: {named:?}");
        assert_eq!(other.status, 200, "{mode} {own}: {other:?}");
        let [named, other] = ask("allow");
        assert_eq!((named.status, named.body), (200, own.to_string()), "{mode}");
        assert!(denied(&other), "{mode} {own}: {other:?}");
    }
    assert_eq!(stage.count("steer_in"), 0, "all before the dial");
}

/// Without it: a connection from before the rule lies in the pool, and the second pass never sees
/// what goes over it.
#[test]
fn pooled_connection_from_before_a_rule_does_not_go_past_the_second_pass() {
    let full = "second-pass: full";
    let stage = start("in-stale", full, "");
    for _ in 0..2 {
        assert_eq!(stage.ask(&stage.scene.client, vip(), 80, PLAIN).status, 200);
    }
    assert_eq!(stage.others().len(), 1, "it was pooled");
    let rule =
        "inbound:\n  - {workload: app, ports: [8080], deny: {source: {tags: {app: client}}}}\n";
    stage.scene.put_in_force(&one(&stage, full, rule)).unwrap();
    let seen = stage.ask(&stage.scene.client, vip(), 80, PLAIN);
    assert!(denied(&seen), "{seen:?}");
}

/// Without it: the workers leave the rules to a second pass that the kernel doesn't make yet.
#[test]
fn second_pass_that_comes_and_goes_leaves_no_gap() {
    let rule =
        "inbound:\n  - {workload: app, ports: [8080], deny: {source: {tags: {app: client}}}}\n";
    let stage = Stage::start("in-flap", "second-pass: collapse", rule);
    let program = "
seen = {}
done = threading.Event()
def ask():
    while not done.is_set():
        try:
            s = dial(sys.argv[1], 80)
            s.sendall(b'GET / HTTP/1.1\\r\\nhost: app\\r\\nconnection: close\\r\\n\\r\\n')
            status = everything(s).split(b' ', 2)[1].decode()
            s.close()
        except Exception as e:
            status = repr(e)
        seen[status] = seen.get(status, 0) + 1
threads = [threading.Thread(target=ask) for _ in range(4)]
[t.start() for t in threads]
tell('ready')
sys.stdin.readline()
done.set()
[t.join() for t in threads]
tell(seen)
";
    let mut client = Talker::start(&stage.scene, &stage.scene.client, program, &[VIP]);
    assert_eq!(client.next(), "ready");
    for _ in 0..10 {
        stage.reload("second-pass: full", rule);
        stage.reload("second-pass: collapse", rule);
    }
    client.say("stop");
    let seen = client.next();
    let seen = seen.as_object().expect("a table");
    println!("{seen:?}");
    assert!(seen.contains_key("403"), "{seen:?}");
    assert!(!seen.contains_key("200"), "{seen:?}");
}

/// Without it: what could not be written once never is, and the configuration counts as in force.
#[test]
fn rules_that_found_no_room_are_written_when_there_is() {
    let stage = Stage::start("in-room", "", "");
    let data = MapData::from_pin(pin(&stage, "IN_RULES")).expect("the pin");
    let mut rules: HashMap<_, [u8; 8], u32> = HashMap::try_from(Map::HashMap(data)).unwrap();
    let junk = |n: u32| (n + (1 << 20)).to_ne_bytes();
    let key = |n: u32| -> [u8; 8] { [junk(n), [0; 4]].concat().try_into().unwrap() };
    let mut full: u32 = 0;
    while rules.insert(key(full), 0, 0).is_ok() {
        full += 1;
    }
    assert!(full > 60_000, "{full}");
    stage.reload(
        "",
        "inbound:\n  - {workload: app, ports: [9001], action: deny}\n",
    );
    let app: IpAddr = stage.app.v4.into();
    let status = stage.scene.status().unwrap();
    let told = status.workloads.iter().find_map(|one| one.error.clone());
    assert!(told.is_some_and(|text| text.contains("IN_RULES")));
    let open = stage.ask(&stage.outside, app, DENIED, OPAQUE);
    assert_eq!(open.body, "hello", "{open:?}");
    for n in 0..full {
        rules.remove(&key(n)).unwrap();
    }
    eventually("it is denied", || {
        stage.ask(&stage.outside, app, DENIED, OPAQUE).cut()
    });
    eventually("no fault is told", || {
        let status = stage.scene.status().unwrap();
        status.workloads.iter().all(|one| one.error.is_none())
    });
}

/// Without it: a request that met a dead connection pays twice.
#[test]
fn request_that_met_a_dead_connection_pays_its_limit_once() {
    let limit = "inbound:\n  - workload: app\n    ports: [8080]\n    \
                 rate-limit: {name: l, rate: 1/h, burst: 3}\n";
    let stage = start("in-paid", "", limit);
    // The application serves one request on each connection, and closes at the next.
    let once = How {
        path: "/once",
        ..PLAIN
    };
    let seen: Vec<u64> = (0..4)
        .map(|_| stage.ask(&stage.scene.client, vip(), 80, once).status)
        .collect();
    assert_eq!(seen, [200, 200, 200, 429]);
    assert_eq!(stage.others().len(), 3, "each of them met a dead one");
}
