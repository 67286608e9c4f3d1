//! TLS towards endpoints that begins at the proxy.

use std::{
    io::{Read, Write},
    net::SocketAddr,
    sync::{Arc, Mutex},
    thread,
    time::{Duration, Instant},
};

use mesh_user::model::{
    Protocol, RetryOn, RetryPolicy,
    tls::{Originate, UpstreamTls},
};
use rustls::{HandshakeKind, ServerConfig};

use crate::{h2, pki::*, proxy_support::*};

fn over(plan: Plan, tls: Originate) -> Plan {
    plan.policy(|policy| policy.tls = Some(UpstreamTls::Simple(Arc::new(tls))))
}

/// Verifies by this CA, for `web.example`.
fn by(folder: &Folder, ca: &Ca) -> Originate {
    Originate {
        sni: Some("web.example".to_owned()),
        ca: Some(folder.write("ca.crt", &ca.pem)),
        ..Originate::default()
    }
}

/// What endpoints were asked for: server name, protocol, kind of handshake.
type Seen = Arc<Mutex<Vec<(String, String, HandshakeKind)>>>;

/// An HTTP/1.1 endpoint over TLS; `once`: one request each connection.
fn https(config: Arc<ServerConfig>, seen: &Seen, once: bool) -> SocketAddr {
    let seen = Arc::clone(seen);
    endpoint(move |tcp| {
        let Some(mut stream) = accept(tcp, &config) else {
            return;
        };
        let text =
            |bytes: Option<&[u8]>| String::from_utf8_lossy(bytes.unwrap_or_default()).into_owned();
        let name = stream
            .conn
            .server_name()
            .map(str::as_bytes)
            .map(<[u8]>::to_vec);
        seen.lock().unwrap().push((
            text(name.as_deref()),
            text(stream.conn.alpn_protocol()),
            stream.conn.handshake_kind().unwrap(),
        ));
        let mut all = Vec::new();
        let mut buf = [0; 4096];
        while let Ok(count @ 1..) = stream.read(&mut buf) {
            all.extend_from_slice(&buf[..count]);
            if all.ends_with(b"\r\n\r\n") {
                all.clear();
                let close = if once { "connection: close\r\n" } else { "" };
                let answer = format!("HTTP/1.1 200 OK\r\n{close}content-length: 3\r\n\r\nyes");
                if stream.write_all(answer.as_bytes()).is_err() || once {
                    break;
                }
            }
        }
        stream.conn.send_close_notify();
        let _gone = stream.flush();
    })
}

fn get(mesh: &Mesh) -> Message {
    Reader::new(mesh.connect()).send(GET).message().unwrap()
}

#[test]
fn requests_go_out_over_tls_and_share_its_connections() {
    let (ca, folder, seen) = (Ca::new("up"), Folder::new(), Seen::default());
    let config = server(&ca.issue(&["web.example"]), &["h2", "http/1.1"], None);
    let plan = Plan::new(Protocol::Http).endpoint(https(config, &seen, false), "v1");
    let mesh = Mesh::start(over(plan, by(&folder, &ca)));
    let mut reader = Reader::new(mesh.connect());
    for _ in 0..3 {
        assert_eq!(reader.send(GET).message().unwrap().text(), "yes");
    }
    assert_eq!(get(&mesh).text(), "yes");
    let seen = seen.lock().unwrap().clone();
    let expected = (
        "web.example".to_owned(),
        "http/1.1".to_owned(),
        HandshakeKind::Full,
    );
    assert_eq!(
        seen,
        [expected],
        "one handshake, for the name, in what is spoken"
    );
    let done = mesh.metric(&["mesh_tls_handshakes_total", "endpoint", "done"]);
    assert_eq!(done, Some(1.0));
}

#[test]
fn http2_goes_out_over_tls_as_https() {
    let (ca, folder) = (Ca::new("up"), Folder::new());
    let config = server(&ca.issue(&["web.example"]), &["h2"], None);
    let plan = Plan::new(Protocol::Http2).endpoint(h2::endpoint(Some(config)), "v1");
    let mesh = Mesh::start(over(plan, by(&folder, &ca)));
    let got = h2::get_clear(mesh.address, 3);
    assert!(
        got.iter().all(|got| got.body == "https gopher"),
        "{:?}",
        got[0].body
    );
    let done = mesh.metric(&["mesh_tls_handshakes_total", "endpoint", "done"]);
    assert_eq!(done, Some(1.0));
}

#[test]
fn http2_to_an_endpoint_that_does_not_speak_it_is_refused_by_name() {
    let (ca, folder, seen) = (Ca::new("up"), Folder::new(), Seen::default());
    for alpn in [&["http/1.1"][..], &[]] {
        let config = server(&ca.issue(&["web.example"]), alpn, None);
        let plan = Plan::new(Protocol::Http2).endpoint(https(config, &seen, false), "v1");
        let mesh = Mesh::start(over(plan, by(&folder, &ca)));
        let got = &h2::get_clear(mesh.address, 1)[0];
        assert_eq!(
            (got.status, &got.headers["x-mesh-reject"]),
            (503, &"upstream_tls".parse().unwrap())
        );
    }
}

#[test]
fn endpoints_with_bad_certificates_are_refused_by_name() {
    let (ca, other, folder) = (Ca::new("up"), Ca::new("other"), Folder::new());
    let cases = [
        ("expired", ca.expired(&["web.example"])),
        ("foreign", other.issue(&["web.example"])),
        ("of another name", ca.issue(&["shop.example"])),
    ];
    for (what, pair) in cases {
        let plan = Plan::new(Protocol::Http).endpoint(
            https(server(&pair, &[], None), &Seen::default(), false),
            "v1",
        );
        let mesh = Mesh::start(over(plan, by(&folder, &ca)));
        let answer = get(&mesh);
        assert_eq!(answer.status(), 503, "{what}");
        assert_eq!(
            answer.field("x-mesh-reject").as_deref(),
            Some("upstream_untrusted"),
            "{what}"
        );
        let count = mesh.metric(&["mesh_tls_handshakes_total", "endpoint", "untrusted"]);
        assert_eq!(count, Some(1.0), "{what}");
        eventually("it is logged", || mesh.records("request").len() == 1);
        assert_eq!(mesh.records("request")[0]["mesh.flags"], "UF", "{what}");
    }
}

#[test]
fn endpoint_that_is_refused_counts_as_one_that_can_not_be_connected() {
    let (ca, folder) = (Ca::new("up"), Folder::new());
    let of = |pair: &Pair| https(server(pair, &[], None), &Seen::default(), false);
    let plan = Plan::new(Protocol::Http)
        .endpoint(of(&ca.expired(&["web.example"])), "v1")
        .endpoint(of(&ca.issue(&["web.example"])), "v1");
    let plan = plan.policy(|policy| {
        policy.tls = Some(UpstreamTls::Simple(Arc::new(by(&folder, &ca))));
        policy.balance = Some(mesh_user::model::Balance::RoundRobin.into());
        policy.retries = Some(RetryPolicy {
            attempts: 1,
            per_try: None,
            on: vec![RetryOn::ConnectFailure],
            statuses: Vec::new(),
            non_idempotent: false,
            backoff: Duration::from_millis(1),
            ..RetryPolicy::default()
        });
    });
    let mesh = Mesh::start(plan);
    for _ in 0..4 {
        assert_eq!(get(&mesh).text(), "yes", "the other endpoint serves");
    }
    let failed = mesh.metric(&["mesh_tls_handshakes_total", "endpoint", "untrusted"]);
    assert!(failed.unwrap() >= 1.0);
}

#[test]
fn subject_alt_names_take_the_place_of_the_server_name() {
    let (ca, folder, seen) = (Ca::new("up"), Folder::new(), Seen::default());
    let config = server(&ca.issue(&["inner.example", "192.0.2.7"]), &[], None);
    let address = https(config, &seen, false);
    for (names, good) in [
        (vec!["inner.example"], true),
        (vec!["no.example", "inner.example"], true),
        (vec!["192.0.2.7"], true),
        (vec!["no.example"], false),
        (vec!["web.example"], false),
    ] {
        let plan = Plan::new(Protocol::Http).endpoint(address, "v1");
        let tls = Originate {
            subject_alt_names: names.iter().map(|name| (*name).to_owned()).collect(),
            ..by(&folder, &ca)
        };
        let mesh = Mesh::start(over(plan, tls));
        let status = if good { 200 } else { 503 };
        assert_eq!(get(&mesh).status(), status, "{names:?}");
    }
    assert!(
        seen.lock()
            .unwrap()
            .iter()
            .all(|(name, ..)| name == "web.example")
    );
}

#[test]
fn without_a_server_name_the_address_is_verified() {
    let (ca, folder, seen) = (Ca::new("up"), Folder::new(), Seen::default());
    for (names, status) in [(&["127.0.0.1"][..], 200), (&["web.example"], 503)] {
        let config = server(&ca.issue(names), &[], None);
        let plan = Plan::new(Protocol::Http).endpoint(https(config, &seen, false), "v1");
        let tls = Originate {
            sni: None,
            ..by(&folder, &ca)
        };
        let mesh = Mesh::start(over(plan, tls));
        assert_eq!(get(&mesh).status(), status, "{names:?}");
    }
    assert_eq!(seen.lock().unwrap()[0].0, "", "no name was sent");
}

#[test]
fn endpoint_that_demands_a_certificate_gets_ours() {
    let (ca, ours, folder) = (Ca::new("up"), Ca::new("ours"), Folder::new());
    let config = server(&ca.issue(&["web.example"]), &[], Some(&ours));
    let address = https(config, &Seen::default(), false);
    let own = folder.pair("own", &ours.issue(&["mesh"]));
    for (certificate, status) in [(Some(own), 200), (None, 503)] {
        let plan = Plan::new(Protocol::Http).endpoint(address, "v1");
        let tls = Originate {
            certificate,
            ..by(&folder, &ca)
        };
        assert_eq!(get(&Mesh::start(over(plan, tls))).status(), status);
    }
}

#[test]
fn skipping_verification_takes_anybody() {
    let other = Ca::new("other");
    let config = server(&other.expired(&["x.example"]), &[], None);
    let plan = Plan::new(Protocol::Http).endpoint(https(config, &Seen::default(), false), "v1");
    let tls = Originate {
        insecure_skip_verify: true,
        ..Originate::default()
    };
    assert_eq!(get(&Mesh::start(over(plan, tls))).text(), "yes");
}

#[test]
fn sessions_are_resumed() {
    let (ca, folder, seen) = (Ca::new("up"), Folder::new(), Seen::default());
    let config = server(&ca.issue(&["web.example"]), &[], None);
    let plan = Plan::new(Protocol::Http).endpoint(https(config, &seen, true), "v1");
    let mesh = Mesh::start(over(plan, by(&folder, &ca)));
    for _ in 0..3 {
        assert_eq!(get(&mesh).text(), "yes");
    }
    let kinds: Vec<_> = seen
        .lock()
        .unwrap()
        .iter()
        .map(|(.., kind)| *kind)
        .collect();
    assert_eq!(kinds.len(), 3);
    assert_eq!(kinds[1..], [HandshakeKind::Resumed; 2], "{kinds:?}");
}

#[test]
fn endpoint_that_does_not_shake_hands_is_given_up_in_time() {
    let (ca, folder) = (Ca::new("up"), Folder::new());
    let silent = endpoint(|stream| {
        let mut all = Vec::new();
        let mut stream = stream;
        let _end = stream.read_to_end(&mut all);
    });
    let plan = Plan::new(Protocol::Http).endpoint(silent, "v1");
    let tls = by(&folder, &ca);
    let mesh = Mesh::start(plan.policy(|policy| {
        policy.tls = Some(UpstreamTls::Simple(Arc::new(tls)));
        policy.timeouts.connect = Some(Duration::from_millis(300));
    }));
    let start = Instant::now();
    let answer = get(&mesh);
    assert_eq!(
        answer.field("x-mesh-reject").as_deref(),
        Some("connect_timeout")
    );
    assert!(
        start.elapsed() < Duration::from_secs(3),
        "{:?}",
        start.elapsed()
    );
}

#[test]
fn endpoint_that_speaks_plain_http_is_refused_by_name() {
    let (ca, folder) = (Ca::new("up"), Folder::new());
    let plain = endpoint(|stream| {
        Reader::new(stream).send("HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n");
    });
    let plan = Plan::new(Protocol::Http).endpoint(plain, "v1");
    let answer = get(&Mesh::start(over(plan, by(&folder, &ca))));
    assert_eq!(
        answer.field("x-mesh-reject").as_deref(),
        Some("upstream_tls")
    );
}

#[test]
fn opaque_bytes_go_out_over_tls() {
    let (ca, folder) = (Ca::new("up"), Folder::new());
    let config = server(&ca.issue(&["web.example"]), &["db"], None);
    let plan = Plan::new(Protocol::Tcp).endpoint(echo("hi!", config), "v1");
    let tls = Originate {
        alpn: vec!["db".to_owned()],
        ..by(&folder, &ca)
    };
    let mesh = Mesh::start(over(plan, tls));
    let mut reader = Reader::new(mesh.connect());
    assert_eq!(reader.bytes(3), b"hi!", "the endpoint speaks first");
    let block: Vec<u8> = (0..1 << 20).map(|at: u32| ((at * 31) >> 5) as u8).collect();
    let sent = block.clone();
    let mut out = reader.stream.try_clone().unwrap();
    let sender = thread::spawn(move || {
        out.write_all(&sent).unwrap();
        out.shutdown(std::net::Shutdown::Write).unwrap();
    });
    assert!(reader.all() == block, "all of it comes back, then the end");
    sender.join().unwrap();
}

#[test]
fn cas_that_change_are_taken_over_and_old_connections_are_not_used_again() {
    let (old, new, folder, seen) = (
        Ca::new("old"),
        Ca::new("new"),
        Folder::new(),
        Seen::default(),
    );
    let config = server(&new.issue(&["web.example"]), &[], None);
    let plan = Plan::new(Protocol::Http).endpoint(https(config, &seen, false), "v1");
    let mesh = Mesh::start(over(plan, by(&folder, &old)));
    assert_eq!(get(&mesh).status(), 503);
    folder.write("ca.crt", &new.pem);
    eventually("the new CA is taken over", || get(&mesh).status() == 200);
    folder.write("ca.crt", &old.pem);
    // The connection that lies idle would still serve.
    eventually("the old CA is taken over", || get(&mesh).status() == 503);
}

#[test]
fn settings_without_files_refuse_by_name_and_do_not_blame_the_endpoint() {
    let folder = Folder::new();
    let plan = Plan::new(Protocol::Http).endpoint(http("never"), "v1");
    let tls = Originate {
        sni: Some("web.example".to_owned()),
        ca: Some(folder.path("missing.crt")),
        ..Originate::default()
    };
    let mesh = Mesh::start(over(plan, tls));
    let answer = get(&mesh);
    assert_eq!(
        answer.field("x-mesh-reject").as_deref(),
        Some("no_certificate")
    );
    let problems = mesh.workers.as_ref().unwrap().tls_problems().unwrap();
    assert!(problems[0].starts_with("unreadable"), "{problems:?}");
    let snapshot = mesh.snapshot();
    let (_, failures) = snapshot.versions[0].endpoints[0].live.recorded();
    assert_eq!(failures, 0);
}

#[test]
fn terminated_and_originated_in_one_pass() {
    let (edge, up, folder) = (Ca::new("edge"), Ca::new("up"), Folder::new());
    let config = server(&up.issue(&["web.example"]), &["h2"], None);
    let mut plan = over(
        Plan::new(Protocol::Http).endpoint(h2::endpoint(Some(config)), "v1"),
        by(&folder, &up),
    );
    let files = folder.pair("edge", &edge.issue(&["edge.example"]));
    plan.model.services[0].ports[0].tls = Some(Arc::new(mesh_user::model::tls::Terminate {
        certificates: vec![files],
        alpn: vec![mesh_user::model::tls::Alpn::Http2],
        ..Default::default()
    }));
    let mesh = Mesh::start(plan);
    let got = h2::get_tls(
        mesh.address,
        "edge.example",
        &client(&edge, &["h2"], None),
        2,
    );
    assert!(got.iter().all(|got| got.body == "https https"));
}
