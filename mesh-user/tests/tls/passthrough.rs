//! TLS that is passed on as it is.

use std::{
    io::{Read, Write},
    net::{Shutdown, SocketAddr},
    sync::Arc,
    thread,
    time::Duration,
};

use mesh_user::model::{Match, Protocol};
use rustls::{ClientConnection, pki_types::ServerName};

use crate::{pki::*, proxy_support::*};

fn sni(names: &[&str]) -> Match {
    Match {
        sni: names.iter().map(|name| (*name).to_owned()).collect(),
        ..Match::default()
    }
}

/// `v1` and `v2` as TLS endpoints of one CA.
struct Two {
    ca: Ca,
    v1: SocketAddr,
    v2: SocketAddr,
}

impl Two {
    fn new() -> Self {
        let ca = Ca::new("passthrough");
        let names = [
            "v1.example",
            "v2.example",
            "deep.v2.example",
            "none.example",
        ];
        let of = |word| echo(word, server(&ca.issue(&names), &["h2"], None));
        let (v1, v2) = (of("one"), of("two"));
        Self { ca, v1, v2 }
    }

    fn plan(&self, protocol: Protocol) -> Plan {
        Plan::new(protocol)
            .endpoint(self.v1, "v1")
            .endpoint(self.v2, "v2")
    }

    /// What the endpoint says that answers for `name`.
    fn ask(&self, mesh: &Mesh, name: &str) -> std::io::Result<String> {
        let mut stream = dial(mesh.address, name, &client(&self.ca, &["h2"], None))?;
        assert_eq!(
            stream.conn.alpn_protocol(),
            Some(&b"h2"[..]),
            "as the endpoint chose"
        );
        let mut word = [0; 3];
        stream.read_exact(&mut word)?;
        Ok(String::from_utf8_lossy(&word).into_owned())
    }
}

/// The ClientHello of a real client.
fn hello(name: &str) -> Vec<u8> {
    let config = client(&Ca::new("nobody"), &["h2"], None);
    let name = ServerName::try_from(name.to_owned()).unwrap();
    let mut client = ClientConnection::new(config, name).unwrap();
    let mut wire = Vec::new();
    client.write_tls(&mut wire).unwrap();
    wire
}

/// A hello with an extension that brings its message to `length` bytes, in records of 16 KiB.
fn large_hello(name: &str, length: usize) -> Vec<u8> {
    let wire = hello(name);
    let mut message = wire[5..].to_vec();
    // Session id, cipher suites and compression stand before the extensions' length.
    let mut at = 4 + 2 + 32;
    at += 1 + usize::from(message[at]);
    at += 2 + usize::from(u16::from_be_bytes([message[at], message[at + 1]]));
    at += 1 + usize::from(message[at]);
    let have = usize::from(u16::from_be_bytes([message[at], message[at + 1]]));
    let more = length - message.len() - 4;
    message.extend([0xfa, 0xfa]);
    message.extend((more as u16).to_be_bytes());
    message.extend(vec![7; more]);
    let extensions = (have + more + 4) as u16;
    message[at..at + 2].copy_from_slice(&extensions.to_be_bytes());
    let body = (message.len() as u32 - 4).to_be_bytes();
    message[1..4].copy_from_slice(&body[1..]);
    assert_eq!(message.len(), length);
    message
        .chunks(16_384)
        .flat_map(|part| {
            let mut record = vec![22, 3, 1];
            record.extend((part.len() as u16).to_be_bytes());
            record.extend(part);
            record
        })
        .collect()
}

/// An endpoint that answers with all that came in until the client's end, after `tag`.
fn mirror(tag: u8) -> SocketAddr {
    endpoint(move |mut stream| {
        let mut all = vec![tag];
        if stream.read_to_end(&mut all).is_ok() {
            let _gone = stream.write_all(&all);
        }
    })
}

fn mirrors(protocol: Protocol, rules: impl FnOnce(Plan) -> Plan) -> Mesh {
    let plan = Plan::new(protocol)
        .endpoint(mirror(1), "v1")
        .endpoint(mirror(2), "v2");
    Mesh::start(rules(plan))
}

/// Sends in pieces, then the end; what comes back.
fn through(mesh: &Mesh, pieces: &[&[u8]]) -> Vec<u8> {
    let mut stream = mesh.connect();
    // Whoever is refused may be so before all is sent.
    let sent = pieces.iter().try_for_each(|piece| stream.write_all(piece));
    if sent.is_ok() {
        let _refused = stream.shutdown(Shutdown::Write);
    }
    let mut all = Vec::new();
    // A reset is an answer too.
    let _end = stream.read_to_end(&mut all);
    all
}

#[test]
fn server_name_chooses_the_version_and_nothing_is_decrypted() {
    let two = Two::new();
    let plan = two
        .plan(Protocol::Tls)
        .route(vec![sni(&["v1.example"])], &[("v1", 1)])
        .route(vec![sni(&["*.example"])], &[("v2", 1)]);
    let mesh = Mesh::start(plan);
    for (name, word) in [
        ("v1.example", "one"),
        ("V1.EXAMPLE", "one"),
        ("v2.example", "two"),
        ("deep.v2.example", "two"),
    ] {
        // The client verifies the endpoint's certificate: nobody stands between them.
        assert_eq!(two.ask(&mesh, name).unwrap(), word, "{name}");
    }
    eventually("every connection is logged", || {
        mesh.records("connection").len() == 4
    });
    let names: Vec<_> = mesh
        .records("connection")
        .iter()
        .map(|line| {
            line["tls.client.server_name"]
                .as_str()
                .unwrap_or("")
                .to_owned()
        })
        .collect();
    assert!(names.contains(&"deep.v2.example".to_owned()), "{names:?}");
    assert!(names.contains(&"v1.example".to_owned()), "{names:?}");
}

#[test]
fn hello_byte_by_byte_arrives_unchanged() {
    let mesh = mirrors(Protocol::Tls, |plan| {
        plan.route(vec![sni(&["a.example"])], &[("v1", 1)])
            .route(vec![sni(&["b.example"])], &[("v2", 1)])
    });
    for (name, tag) in [("a.example", 1), ("b.example", 2)] {
        let wire = hello(name);
        let pieces: Vec<&[u8]> = wire.chunks(1).collect();
        let back = through(&mesh, &pieces);
        assert_eq!(back[0], tag, "{name}");
        assert_eq!(&back[1..], wire, "{name}");
    }
}

#[test]
fn hello_of_64_kib_over_five_records_arrives_unchanged() {
    let mesh = mirrors(Protocol::Tls, |plan| {
        plan.route(vec![sni(&["a.example"])], &[("v1", 1)])
            .route(vec![sni(&["b.example"])], &[("v2", 1)])
    });
    let wire = large_hello("b.example", 64 << 10);
    let back = through(&mesh, &wire.chunks(1000).collect::<Vec<_>>());
    assert_eq!(back.len(), wire.len() + 1);
    assert_eq!((back[0], &back[1..]), (2, &wire[..]));
}

#[test]
fn hello_above_64_kib_is_refused() {
    let mesh = mirrors(Protocol::Tls, |plan| plan.route(vec![], &[("v1", 1)]));
    let mut wire = large_hello("b.example", 64 << 10);
    // The message says that it is longer.
    wire[6..9].copy_from_slice(&[1, 0, 1]);
    assert_eq!(through(&mesh, &[&wire]), b"");
    eventually("the refusal is counted", || {
        mesh.metric(&["mesh_rejects_total", "not_tls"]) == Some(1.0)
    });
}

#[test]
fn no_server_name_takes_the_rule_without_one() {
    let two = Two::new();
    let plan = two
        .plan(Protocol::Tls)
        .route(vec![sni(&["v1.example"])], &[("v1", 1)])
        .route(vec![], &[("v2", 1)]);
    let mesh = Mesh::start(plan);
    // To an address no name is sent.
    let back = dial(mesh.address, "127.0.0.1", &client(&two.ca, &["h2"], None));
    // The endpoint answered: its certificate is just not one for the address.
    assert!(back.unwrap_err().to_string().contains("not valid for name"));
    eventually("it is logged", || mesh.records("connection").len() == 1);
    let line = &mesh.records("connection")[0];
    assert_eq!(
        (&line["mesh.rule"], &line["mesh.version"]),
        (&"rule-1".into(), &"v2".into())
    );
    assert!(line["tls.client.server_name"].is_null());
}

#[test]
fn no_matching_name_is_refused_with_no_route() {
    let two = Two::new();
    let plan = two
        .plan(Protocol::Tls)
        .route(vec![sni(&["v1.example"])], &[("v1", 1)]);
    let mesh = Mesh::start(plan);
    for name in ["none.example", "127.0.0.1"] {
        let config = client(&two.ca, &["h2"], None);
        dial(mesh.address, name, &config).unwrap_err();
    }
    eventually("both are counted", || {
        mesh.metric(&["mesh_rejects_total", "\"no_route\""]) == Some(2.0)
    });
}

#[test]
fn plain_bytes_on_a_tls_port_are_refused_by_name() {
    let mesh = mirrors(Protocol::Tls, |plan| plan.route(vec![], &[("v1", 1)]));
    let mut reader = Reader::new(mesh.connect());
    reader.send(GET);
    assert!(reader.is_reset());
    eventually("it is logged", || mesh.records("connection").len() == 1);
    assert_eq!(mesh.records("connection")[0]["mesh.reject"], "not_tls");
}

#[test]
fn hello_that_does_not_end_is_refused_in_time() {
    let plan = Plan::new(Protocol::Tls).endpoint(mirror(1), "v1");
    let mesh = Mesh::with(plan, 1, |limits| {
        limits.header_timeout = Duration::from_millis(200);
    });
    let mut reader = Reader::new(mesh.connect());
    reader.send(&hello("a.example")[..100]);
    assert!(reader.is_reset());
    let silent = mesh.connect();
    assert!(Reader::new(silent).is_reset());
    eventually("both are counted", || {
        mesh.metric(&["mesh_rejects_total", "tls_timeout"]) == Some(2.0)
    });
}

#[test]
fn client_that_leaves_within_its_hello_is_no_refusal_of_ours() {
    let mesh = mirrors(Protocol::Tls, |plan| plan.route(vec![], &[("v1", 1)]));
    assert_eq!(through(&mesh, &[&hello("a.example")[..50]]), b"");
    eventually("it is logged", || mesh.records("connection").len() == 1);
    assert_eq!(
        mesh.records("connection")[0]["mesh.reject"],
        "downstream_closed"
    );
}

#[test]
fn auto_port_routes_tls_by_name_and_takes_everything_else_as_before() {
    let mesh = mirrors(Protocol::Auto, |plan| {
        plan.route(vec![sni(&["b.example"])], &[("v2", 1)])
            .route(vec![], &[("v1", 1)])
    });
    let wire = hello("b.example");
    let pieces: Vec<&[u8]> = wire.chunks(7).collect();
    assert_eq!(through(&mesh, &pieces), [&[2], &wire[..]].concat());
    // Another name, no hello at all, and one that breaks off into nonsense: the rest's.
    let other = hello("c.example");
    assert_eq!(through(&mesh, &[&other]), [&[1], &other[..]].concat());
    assert_eq!(through(&mesh, &[b"\x16\x02abc"]), b"\x01\x16\x02abc");
    let broken = [&wire[..40], &[0xff; 300]].concat();
    assert_eq!(through(&mesh, &[&broken]), [&[1], &broken[..]].concat());
}

#[test]
fn bulk_after_the_hello_arrives_whole_in_both_directions() {
    let two = Two::new();
    let mesh = Mesh::start(
        two.plan(Protocol::Tls)
            .route(vec![sni(&["v2.example"])], &[("v2", 1)]),
    );
    let mut stream = dial(mesh.address, "v2.example", &client(&two.ca, &["h2"], None)).unwrap();
    let mut word = [0; 3];
    stream.read_exact(&mut word).unwrap();
    let block: Vec<u8> = (0..64 << 10)
        .map(|at: u32| ((at * 31) >> 3) as u8)
        .collect();
    let mut back = vec![0; block.len()];
    for _ in 0..64 {
        stream.write_all(&block).unwrap();
        stream.read_exact(&mut back).unwrap();
        assert!(back == block, "4 MiB echoed, unchanged");
    }
}

#[test]
fn many_clients_at_once_reach_their_own_version() {
    let two = Arc::new(Two::new());
    let plan = two
        .plan(Protocol::Tls)
        .route(vec![sni(&["v1.example"])], &[("v1", 1)])
        .route(vec![sni(&["v2.example"])], &[("v2", 1)]);
    let mesh = Arc::new(Mesh::with(plan, 2, |_| {}));
    let clients: Vec<_> = (0..16)
        .map(|at| {
            let (two, mesh) = (Arc::clone(&two), Arc::clone(&mesh));
            thread::spawn(move || {
                let (name, word) = [("v1.example", "one"), ("v2.example", "two")][at % 2];
                for _ in 0..5 {
                    assert_eq!(two.ask(&mesh, name).unwrap(), word);
                }
            })
        })
        .collect();
    for client in clients {
        client.join().unwrap();
    }
}
