//! Who may come in.

use std::net::IpAddr;

use crate::{
    scene::{Talker, eventually},
    stage::{ECHO, HTTP, OPAQUE, PLAIN, Seen, Stage, VIP},
};

fn denied(seen: &Seen) -> bool {
    (seen.status, &*seen.reject) == (403, "inbound_denied")
}

/// By the workload that the kernel knows, and by address; HTTP gets 403, opaque bytes a reset.
/// Denials win.
#[test]
fn clients_are_let_in_by_workload_and_by_range_and_denials_win() {
    let stage = Stage::build("in-who");
    let mut stage = stage;
    let outside = stage.outside.v4;
    let rules = format!(
        "inbound:\n  - workload: app\n    ports: [8080, 9000]\n    \
         allow: [{{source: {{workload: client}}}}, {{cidr: {outside}/32}}]\n    \
         deny: [{{cidr: {}}}]\n",
        stage.outside.v6
    );
    let text = stage.config(&crate::stage::Setup {
        app: "second-pass: full",
        more: &rules,
        agent: "",
    });
    stage.scene.start_with(&text).unwrap();
    crate::scene::live(&stage.scene, 3);
    let (app4, app6): (IpAddr, IpAddr) = (stage.app.v4.into(), stage.app.v6.into());
    let scene = &stage.scene;
    let cases = [
        (&scene.client, app4, true),
        (&scene.client, app6, true),
        (&scene.tester, app4, false),
        (&scene.tester, app6, false),
        (&stage.outside, app4, true),
        (&stage.outside, app6, false),
    ];
    for (from, to, may) in cases {
        let http = stage.ask(from, to, HTTP, PLAIN);
        assert_eq!((http.status == 200, denied(&http)), (may, !may), "{http:?}");
        let tcp = stage.ask(from, to, ECHO, OPAQUE);
        assert_eq!(tcp.cut(), !may, "{} {to}: {tcp:?}", from.name);
    }
    // Past the proxy twice: the second pass knows the client by its address too.
    let vip: IpAddr = VIP.parse().unwrap();
    let seen = stage.ask(&scene.client, vip, 80, PLAIN);
    assert_eq!(seen.status, 200, "{seen:?}");
    let seen = stage.ask(&scene.tester, vip, 80, PLAIN);
    assert!(denied(&seen), "{seen:?}");
    let peers: Vec<String> = stage.others().into_iter().map(|a| a.peer).collect();
    let known = [
        scene.client.v4.to_string(),
        scene.client.v6.to_string(),
        outside.to_string(),
    ];
    assert!(peers.iter().all(|peer| known.contains(peer)), "{peers:?}");
    eventually("refusals are logged", || {
        let lines = stage.logged("request", "inbound");
        lines
            .iter()
            .filter(|line| line["mesh.reject"] == "inbound_denied")
            .count()
            == 4
    });
}

/// The pass is collapsed: the rules hold all the same, before the dial.
#[test]
fn collapsed_pass_applies_the_destinations_rules() {
    let rules = "inbound:\n  - {workload: app, ports: [8080, 9000], deny: {source: {tags: {app: tester}}}}\n  \
                 - {workload: app, ports: [9001], action: deny}\n";
    let stage = Stage::start("in-judge", "", rules);
    let vip: IpAddr = VIP.parse().unwrap();
    let scene = &stage.scene;
    for (from, may) in [(&scene.client, true), (&scene.tester, false)] {
        let http = stage.ask(from, vip, 80, PLAIN);
        assert_eq!((http.status == 200, denied(&http)), (may, !may), "{http:?}");
        let tcp = stage.ask(from, vip, 7, OPAQUE);
        assert_eq!(tcp.cut(), !may, "{tcp:?}");
    }
    assert_eq!(stage.count("steer_in"), 0, "nothing passed the proxy twice");
    assert_eq!(stage.others().len(), 2);
}

/// A rule that changes holds for the next request on every connection.
#[test]
fn live_connection_is_judged_anew_after_a_reload() {
    let rule = |more: &str| format!("inbound:\n  - {{workload: app, ports: [8080]{more}}}\n");
    let stage = Stage::start("in-live", "", &rule(""));
    let program = "
s = dial(sys.argv[1], 8080)
while True:
    s.sendall(b'GET / HTTP/1.1\\r\\nhost: a\\r\\n\\r\\n')
    data = b''
    while b'\\r\\n\\r\\n' not in data:
        part = s.recv(65536)
        if not part:
            break
        data += part
    tell(int(data.split()[1]))
    if not sys.stdin.readline():
        break
    # What is left of the body.
    s.setblocking(False)
    try:
        s.recv(65536)
    except BlockingIOError:
        pass
    s.setblocking(True)
";
    let to = stage.app.v4.to_string();
    let mut client = Talker::start(&stage.scene, &stage.outside, program, &[&to]);
    assert_eq!(client.next(), 200);
    let outside = stage.outside.v4;
    stage.reload("", &rule(&format!(", deny: {{cidr: {outside}}}")));
    client.say("again");
    assert_eq!(client.next(), 403);
    stage.reload("", "");
    client.say("again");
    assert_eq!(
        client.next(),
        200,
        "no rule any more: the connection goes on"
    );
}
