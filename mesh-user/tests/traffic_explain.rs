//! `mesh explain --live`: what was decided for a connection that is open now. Whole agent, real
//! kernel, unmodified clients.

mod scene;

use scene::{PORT, SPLIT, Scene, TCP_PORT, Talker, VIP4, eventually, json};
use serde_json::Value;

/// One keep-alive connection; a request for each line that is said, the status is told.
const KEEP: &str = r#"
s = dial(sys.argv[1], int(sys.argv[2]))
f = s.makefile('rb')
tell(s.getsockname()[0] + ':' + str(s.getsockname()[1]))
for line in sys.stdin:
    user = line.strip()
    s.sendall(('GET / HTTP/1.1\r\nhost: web\r\nx-user: %s\r\n\r\n' % user).encode())
    status, length = int(f.readline().split()[1]), 0
    while (header := f.readline()) != b'\r\n':
        if header.lower().startswith(b'content-length:'):
            length = int(header.split(b':')[1])
    f.read(length)
    tell(status)
"#;

/// An opaque connection that has echoed one byte.
const HOLD: &str = r#"
s = dial(sys.argv[1], int(sys.argv[2]))
s.sendall(b'x')
s.recv(1)
tell(s.getsockname()[0] + ':' + str(s.getsockname()[1]))
sys.stdin.readline()
"#;

const RULES: &str = "
rules:
  - {name: beta, service: web, precedence: 10, match: {headers: {x-user: beta}}, route: [{version: v2}]}
  - {name: split, service: web, route: [{version: v1}]}
";

fn live(scene: &Scene, conn: &str) -> Value {
    json(scene, &["explain", "--live", conn, "-o", "json"])
}

fn talker(scene: &Scene, program: &str, port: u16) -> (Talker, String) {
    let to = [VIP4.to_string(), port.to_string()];
    let to = to.each_ref().map(String::as_str);
    let talker = Talker::start(scene, &scene.client, program, &to);
    let peer = talker.next().as_str().expect("an address").to_owned();
    (talker, peer)
}

/// Without it: an operator sees a connection misbehave and can't ask why it went where it did.
#[test]
fn live_http_connection_tells_the_decision_of_its_last_request() {
    let scene = scene::start("ex-http", RULES);
    let (mut talker, peer) = talker(&scene, KEEP, PORT);
    let mut ask = |user: &str| {
        talker.say(user);
        assert_eq!(talker.next(), 200);
        let answer = live(&scene, &peer);
        let proxy = answer["proxy"][0].clone();
        assert_eq!(proxy["workload"], "default/client", "{answer}");
        assert_eq!(proxy["destination"], format!("{VIP4}:{PORT}"), "{answer}");
        assert_eq!(answer["connection"]["verdict"], "proxy", "{answer}");
        assert!(answer["now"].is_null(), "requests differ: {answer}");
        proxy
    };
    let beta = ask("beta");
    assert_eq!(
        (&beta["protocol"], &beta["requests"]),
        (&"http/1".into(), &1.into())
    );
    let last = &beta["last"];
    assert_eq!(
        (&last["rule"], &last["version"]),
        (&"beta".into(), &"v2".into()),
        "{beta}"
    );
    assert_eq!(
        (&last["status"], &last["current"]),
        (&200.into(), &true.into()),
        "{beta}"
    );
    assert!(
        last["endpoint"].is_string() && last["service"] == "default/web",
        "{beta}"
    );
    let other = ask("somebody");
    assert_eq!(other["requests"], 2);
    assert_eq!(other["last"]["rule"], "split", "{other}");

    // The old decision stays told after a change, as an old one.
    let generation = other["last"]["generation"].as_u64().expect("a number");
    let changed = scene.config_with(&RULES.replace("split", "renamed"));
    scene.put_in_force(&changed).expect("it is taken");
    eventually("the change is in force", || {
        live(&scene, &peer)["proxy"][0]["last"]["current"] == false
    });
    let renamed = ask("somebody");
    assert_eq!(renamed["last"]["rule"], "renamed", "{renamed}");
    assert!(
        renamed["last"]["generation"].as_u64() > Some(generation),
        "{renamed}"
    );

    let text = scene.mesh(&["explain", "--live", &peer]).expect("it runs");
    let text = String::from_utf8_lossy(&text.stdout).into_owned();
    assert!(
        text.contains("rule      renamed") && text.contains("in force"),
        "{text}"
    );
}

#[test]
fn live_opaque_connection_tells_its_version_and_what_a_new_one_would_get() {
    let scene = scene::start("ex-tcp", SPLIT);
    let (_talker, peer) = talker(&scene, HOLD, TCP_PORT);
    let answer = live(&scene, &peer);
    let proxy = &answer["proxy"][0];
    assert_eq!(proxy["protocol"], "tcp", "{answer}");
    assert_eq!(proxy["last"]["rule"], "split", "{answer}");
    assert!(proxy["last"]["endpoint"].is_string(), "{answer}");
    assert_eq!(answer["now"]["rule"], "split", "{answer}");
    assert_eq!(answer["now"]["tried"][0]["rule"], "split", "{answer}");
    // The same by its cookie.
    let cookie = answer["connection"]["cookie"].to_string();
    assert_eq!(
        live(&scene, &cookie)["connection"]["source"],
        peer,
        "{answer}"
    );
}

#[test]
fn live_connection_that_is_not_there_is_refused_by_name() {
    let scene = scene::start("ex-none", SPLIT);
    for (conn, wanted) in [
        ("10.9.9.9:1", "no open connection comes from 10.9.9.9:1"),
        ("123456789", "no connection has the cookie"),
        (
            "somebody",
            "expected the client's ADDRESS:PORT, or a cookie",
        ),
    ] {
        let output = scene.mesh(&["explain", "--live", conn]).expect("it runs");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{conn}: {said}");
        assert!(said.contains(wanted), "{conn}: {said}");
    }
}
