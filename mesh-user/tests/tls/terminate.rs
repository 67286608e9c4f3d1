//! TLS of clients that ends at the proxy.

use std::{
    io::{Read, Write},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
        mpsc,
    },
    thread,
    time::Duration,
};

use mesh_user::model::{
    Match, Protocol,
    tls::{Alpn, CertificateFiles, Terminate, TlsVersion},
};
use rustls::ClientConfig;

use crate::{h2, pki::*, proxy_support::*};

fn ending(plan: Plan, tls: Terminate) -> Plan {
    let mut plan = plan;
    plan.model.services[0].ports[0].tls = Some(Arc::new(tls));
    plan
}

fn with(certificates: Vec<CertificateFiles>) -> Terminate {
    Terminate {
        certificates,
        alpn: vec![Alpn::Http2, Alpn::Http1],
        ..Terminate::default()
    }
}

/// A request over a new connection.
fn get(mesh: &Mesh, name: &str, config: &Arc<ClientConfig>) -> std::io::Result<String> {
    let mut stream = dial(mesh.address, name, config)?;
    exchange(&mut stream)
}

fn exchange(stream: &mut ClientStream) -> std::io::Result<String> {
    stream.write_all(b"GET / HTTP/1.1\r\nhost: web\r\nx-forwarded-proto: gopher\r\n\r\n")?;
    let mut all = Vec::new();
    let mut byte = [0; 1];
    while !all.ends_with(b"\r\n\r\n") {
        stream.read_exact(&mut byte)?;
        all.push(byte[0]);
    }
    let head = String::from_utf8(all).unwrap();
    let length = head.lines().find_map(|line| {
        line.to_ascii_lowercase()
            .strip_prefix("content-length: ")?
            .parse()
            .ok()
    });
    let mut body = vec![0; length.unwrap_or(0)];
    stream.read_exact(&mut body)?;
    Ok(format!("{head}{}", String::from_utf8(body).unwrap()))
}

/// Answers with the `x-forwarded-proto` that it got.
fn tells_scheme() -> std::net::SocketAddr {
    http_with(|request, _| {
        let body = request.field("x-forwarded-proto").unwrap_or_default();
        format!(
            "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        )
    })
}

fn problems(mesh: &Mesh) -> Vec<String> {
    mesh.workers.as_ref().unwrap().tls_problems().unwrap()
}

#[test]
fn alpn_decides_between_http2_and_http1_and_the_scheme_is_told() {
    let (ca, folder) = (Ca::new("edge"), Folder::new());
    let files = folder.pair("web", &ca.issue(&["web.example"]));
    let one = Mesh::start(ending(
        Plan::new(Protocol::Http).endpoint(tells_scheme(), "v1"),
        with(vec![files.clone()]),
    ));
    for alpn in [&["http/1.1"][..], &[]] {
        let config = client(&ca, alpn, None);
        let mut stream = dial(one.address, "web.example", &config).unwrap();
        for _ in 0..2 {
            let answer = exchange(&mut stream).unwrap();
            assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
            assert!(
                answer.ends_with("\r\n\r\nhttps"),
                "what the client said is replaced: {answer}"
            );
        }
        let chosen = alpn.first().map(|id| id.as_bytes());
        assert_eq!(stream.conn.alpn_protocol(), chosen);
    }
    let two = Mesh::start(ending(
        Plan::new(Protocol::Http).endpoint(h2::endpoint(None), "v1"),
        with(vec![files]),
    ));
    let config = client(&ca, &["h2", "http/1.1"], None);
    let got = h2::get_tls(two.address, "web.example", &config, 3);
    assert!(
        got.iter()
            .all(|got| got.status == 200 && got.body == "https https")
    );
    eventually("requests are logged with their protocol", || {
        let lines = two.records("request");
        lines.len() == 3
            && lines
                .iter()
                .all(|line| line["network.protocol.version"] == "2")
    });
    eventually("handshakes are counted", || {
        one.metric(&["mesh_tls_handshakes_total", "client", "done"]) == Some(2.0)
    });
}

#[test]
fn absolute_form_may_say_https_where_tls_ends_and_nowhere_else() {
    let (ca, folder) = (Ca::new("edge"), Folder::new());
    let files = folder.pair("web", &ca.issue(&["web.example"]));
    let request = "GET https://web/a HTTP/1.1\r\nhost: web\r\n\r\n";
    let plan = || {
        let first = |request: &Message, _| {
            let line = request.head.lines().next().unwrap_or_default();
            format!(
                "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{line}",
                line.len()
            )
        };
        Plan::new(Protocol::Http).endpoint(http_with(first), "v1")
    };
    let mesh = Mesh::start(ending(plan(), with(vec![files])));
    let mut stream = dial(mesh.address, "web.example", &client(&ca, &[], None)).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    let mut all = [0; 15];
    stream.read_exact(&mut all).unwrap();
    assert_eq!(&all, b"HTTP/1.1 200 OK");
    let plain = Mesh::start(plan());
    let mut reader = Reader::new(plain.connect());
    assert_eq!(reader.send(request).message().unwrap().status(), 400);
}

#[test]
fn plain_requests_keep_the_scheme_that_they_said() {
    let mesh = Mesh::start(Plan::new(Protocol::Http).endpoint(tells_scheme(), "v1"));
    let mut reader = Reader::new(mesh.connect());
    reader.send("GET / HTTP/1.1\r\nhost: web\r\nx-forwarded-proto: gopher\r\n\r\n");
    assert_eq!(reader.message().unwrap().text(), "gopher");
}

#[test]
fn certificate_is_the_first_that_covers_the_server_name() {
    let folder = Folder::new();
    let (a, b, c) = (Ca::new("a"), Ca::new("b"), Ca::new("c"));
    let certificates = vec![
        folder.pair("a", &a.issue(&["a.example", "127.0.0.1"])),
        folder.pair("b", &b.issue(&["*.b.example"])),
        folder.pair("c", &c.issue(&["x.b.example"])),
    ];
    let mesh = Mesh::start(ending(
        Plan::new(Protocol::Http).endpoint(http("yes"), "v1"),
        with(certificates),
    ));
    // Each client trusts one CA only, so its success says whose certificate was shown.
    for (name, ca) in [
        ("a.example", &a),
        ("A.EXAMPLE", &a),
        ("y.b.example", &b),
        ("x.b.example", &b),
        ("127.0.0.1", &a),
    ] {
        let answer = get(&mesh, name, &client(ca, &["http/1.1"], None));
        assert!(answer.unwrap().ends_with("yes"), "{name}");
    }
    // A name that none covers gets the first, which the client then refuses.
    let error = get(&mesh, "z.y.b.example", &client(&a, &[], None)).unwrap_err();
    assert!(error.to_string().contains("not valid for name"), "{error}");
}

#[test]
fn certificate_changes_under_load_without_a_failed_request() {
    let (old, new, folder) = (Ca::new("old"), Ca::new("new"), Folder::new());
    let files = folder.pair("web", &old.issue(&["web.example"]));
    let mesh = Arc::new(Mesh::with(
        ending(
            Plan::new(Protocol::Http).endpoint(http("yes"), "v1"),
            with(vec![files]),
        ),
        2,
        |_| {},
    ));
    let mut both = old.roots();
    both.extend(new.roots().roots);
    let config = Arc::new(
        ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(both)
            .with_no_client_auth(),
    );
    let (stop, done) = (
        Arc::new(AtomicBool::new(false)),
        Arc::new(AtomicUsize::new(0)),
    );
    let clients: Vec<_> = (0..4)
        .map(|at| {
            let (mesh, config) = (Arc::clone(&mesh), Arc::clone(&config));
            let (stop, done) = (Arc::clone(&stop), Arc::clone(&done));
            thread::spawn(move || {
                // Two keep their connection, two make a new one each time.
                let mut kept = dial(mesh.address, "web.example", &config).unwrap();
                while !stop.load(Ordering::Relaxed) {
                    let answer = if at % 2 == 0 {
                        exchange(&mut kept)
                    } else {
                        get(&mesh, "web.example", &config)
                    };
                    assert!(answer.unwrap().ends_with("yes"));
                    done.fetch_add(1, Ordering::Relaxed);
                }
            })
        })
        .collect();
    let only_new = client(&new, &[], None);
    get(&mesh, "web.example", &only_new).unwrap_err();
    // The certificate first, and the key not yet: the pair does not match for a while.
    let pair = new.issue(&["web.example"]);
    folder.write("web.crt", &pair.cert);
    eventually("the half is seen", || !problems(&mesh).is_empty());
    folder.write("web.key", &pair.key);
    eventually("the new pair is shown", || {
        get(&mesh, "web.example", &only_new).is_ok()
    });
    let before = done.load(Ordering::Relaxed);
    eventually("the load goes on", || {
        done.load(Ordering::Relaxed) > before + 20
    });
    stop.store(true, Ordering::Relaxed);
    for client in clients {
        client.join().expect("no request failed");
    }
    assert_eq!(problems(&mesh), Vec::<String>::new());
}

#[test]
fn files_that_do_not_fit_are_kept_out_and_named() {
    let (ca, folder) = (Ca::new("edge"), Folder::new());
    let good = ca.issue(&["web.example"]);
    let files = folder.pair("web", &good);
    let mesh = Mesh::start(ending(
        Plan::new(Protocol::Http).endpoint(http("yes"), "v1"),
        with(vec![files]),
    ));
    let config = client(&ca, &[], None);
    assert!(get(&mesh, "web.example", &config).is_ok());
    let other = ca.issue(&["web.example"]);
    let cases: [(&str, &str, String); 5] = [
        ("web.key", "key-mismatch", other.key.clone()),
        ("web.key", "no-key", String::new()),
        ("web.key", "bad-pem", good.key[..60].to_owned()),
        ("web.crt", "no-certificate", good.key.clone()),
        ("web.crt", "bad-pem", good.cert[..200].to_owned()),
    ];
    for (file, name, text) in cases {
        let path = folder.write(file, &text);
        eventually(name, || {
            problems(&mesh)
                .iter()
                .any(|problem| problem.starts_with(name))
        });
        eventually("it is counted", || {
            mesh.metric(&["mesh_tls_files_refused 1"]).is_some()
        });
        let told = problems(&mesh).join("");
        assert!(told.contains(path.to_str().unwrap()), "{told}");
        assert!(
            get(&mesh, "web.example", &config).is_ok(),
            "the last pair is in force: {name}"
        );
        folder.write("web.crt", &good.cert);
        folder.write("web.key", &good.key);
        eventually("all is well again", || problems(&mesh).is_empty());
    }
    std::fs::remove_file(folder.path("web.key")).unwrap();
    eventually("unreadable", || {
        problems(&mesh).iter().any(|p| p.starts_with("unreadable"))
    });
    assert!(get(&mesh, "web.example", &config).is_ok());
}

#[test]
fn port_without_a_good_certificate_refuses_until_there_is_one() {
    let (ca, folder) = (Ca::new("edge"), Folder::new());
    let files = CertificateFiles {
        cert: folder.path("web.crt"),
        key: folder.path("web.key"),
    };
    let mesh = Mesh::start(ending(
        Plan::new(Protocol::Http).endpoint(http("yes"), "v1"),
        with(vec![files]),
    ));
    let config = client(&ca, &[], None);
    get(&mesh, "web.example", &config).unwrap_err();
    eventually("it is counted", || {
        mesh.metric(&["mesh_rejects_total", "no_certificate"]) == Some(1.0)
    });
    folder.pair("web", &ca.issue(&["web.example"]));
    eventually("files come", || get(&mesh, "web.example", &config).is_ok());
}

#[test]
fn client_without_a_certificate_of_the_ca_is_refused() {
    let (ca, clients, folder) = (Ca::new("edge"), Ca::new("clients"), Folder::new());
    let files = folder.pair("web", &ca.issue(&["web.example"]));
    let mesh = Mesh::start(ending(
        Plan::new(Protocol::Http).endpoint(http("yes"), "v1"),
        Terminate {
            client_ca: Some(folder.write("clients.crt", &clients.pem)),
            ..with(vec![files])
        },
    ));
    let own = clients.issue(&["somebody"]);
    let good = client(&ca, &[], Some(&own));
    assert!(get(&mesh, "web.example", &good).unwrap().ends_with("yes"));
    get(&mesh, "web.example", &client(&ca, &[], None)).unwrap_err();
    let foreign = client(&ca, &[], Some(&ca.issue(&["somebody"])));
    get(&mesh, "web.example", &foreign).unwrap_err();
    let old = client(&ca, &[], Some(&clients.expired(&["somebody"])));
    get(&mesh, "web.example", &old).unwrap_err();
    eventually("each is counted", || {
        mesh.metric(&["mesh_rejects_total", "\"tls_handshake\""]) == Some(3.0)
            && mesh.metric(&["mesh_tls_handshakes_total", "client", "untrusted"]) == Some(3.0)
    });
}

#[test]
fn handshakes_that_fail_have_names() {
    let (ca, folder) = (Ca::new("edge"), Folder::new());
    let files = folder.pair("web", &ca.issue(&["web.example"]));
    let tls = Terminate {
        min_version: TlsVersion::V13,
        ..with(vec![files])
    };
    let plan = ending(Plan::new(Protocol::Http).endpoint(http("yes"), "v1"), tls);
    let mesh = Mesh::with(plan, 1, |limits| {
        limits.header_timeout = Duration::from_millis(300);
    });
    // Plain HTTP, an old version, no common protocol, and silence.
    let mut plain = Reader::new(mesh.connect());
    let answer = plain.send(GET).all();
    assert_eq!(answer.first(), Some(&21), "an alert: {answer:?}");
    let old = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS12])
        .unwrap()
        .with_root_certificates(ca.roots())
        .with_no_client_auth();
    get(&mesh, "web.example", &Arc::new(old)).unwrap_err();
    let error = get(&mesh, "web.example", &client(&ca, &["gopher"], None)).unwrap_err();
    assert!(
        error.to_string().contains("NoApplicationProtocol"),
        "{error}"
    );
    assert!(Reader::new(mesh.connect()).is_closed(), "silence");
    eventually("each is counted", || {
        mesh.metric(&["mesh_rejects_total", "\"tls_handshake\""]) == Some(3.0)
            && mesh.metric(&["mesh_rejects_total", "tls_timeout"]) == Some(1.0)
            && mesh.metric(&["mesh_tls_handshakes_total", "client", "timed_out"]) == Some(1.0)
    });
}

#[test]
fn opaque_bytes_inside_go_by_server_name_and_keep_their_ends() {
    let (ca, folder) = (Ca::new("edge"), Folder::new());
    let files = folder.pair("any", &ca.issue(&["a.example", "b.example"]));
    // Answers only after the client's end.
    let mirror = |tag: u8| {
        endpoint(move |mut stream| {
            let mut all = vec![tag];
            if stream.read_to_end(&mut all).is_ok() {
                let _gone = stream.write_all(&all);
            }
        })
    };
    let sni = |name: &str| Match {
        sni: vec![name.to_owned()].into(),
        ..Match::default()
    };
    let plan = Plan::new(Protocol::Tcp)
        .endpoint(mirror(1), "v1")
        .endpoint(mirror(2), "v2")
        .route(vec![sni("a.example")], &[("v1", 1)])
        .route(vec![sni("b.example")], &[("v2", 1)]);
    let mesh = Mesh::start(ending(
        plan,
        Terminate {
            alpn: Vec::new(),
            ..with(vec![files])
        },
    ));
    let block: Vec<u8> = (0..1 << 20).map(|at: u32| ((at * 31) >> 5) as u8).collect();
    for (name, tag) in [("a.example", 1), ("b.example", 2)] {
        let mut stream = dial(mesh.address, name, &client(&ca, &[], None)).unwrap();
        stream.write_all(&block).unwrap();
        stream.conn.send_close_notify();
        stream.flush().unwrap();
        let mut back = Vec::new();
        stream
            .read_to_end(&mut back)
            .expect("an end that is told, not a cut");
        assert!(back[0] == tag && back[1..] == block, "{name}");
    }
    eventually("the name is logged", || {
        let lines = mesh.records("connection");
        lines
            .iter()
            .any(|line| line["tls.client.server_name"] == "b.example")
    });
}

#[test]
fn large_answer_to_a_slow_reader_arrives_whole() {
    let (ca, folder) = (Ca::new("edge"), Folder::new());
    let files = folder.pair("web", &ca.issue(&["web.example"]));
    let body: Arc<Vec<u8>> = Arc::new((0..8 << 20).map(|at: u32| ((at * 31) >> 5) as u8).collect());
    let served = Arc::clone(&body);
    let plan = Plan::new(Protocol::Http).endpoint(
        endpoint(move |stream| {
            let mut reader = Reader::new(stream);
            while reader.message().is_some() {
                let head = format!(
                    "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n",
                    served.len()
                );
                reader.send(head).send(&*served);
            }
        }),
        "v1",
    );
    let mesh = Mesh::start(ending(plan, with(vec![files])));
    let mut stream = dial(mesh.address, "web.example", &client(&ca, &[], None)).unwrap();
    for _ in 0..2 {
        stream.write_all(GET.as_bytes()).unwrap();
        let mut head = Vec::new();
        let mut byte = [0; 1];
        while !head.ends_with(b"\r\n\r\n") {
            stream.read_exact(&mut byte).unwrap();
            head.push(byte[0]);
        }
        let mut back = vec![0; body.len()];
        stream.read_exact(&mut back).unwrap();
        assert!(back == *body);
    }
}

#[test]
fn answer_that_is_cut_has_no_orderly_end() {
    let (ca, folder) = (Ca::new("edge"), Folder::new());
    let files = folder.pair("web", &ca.issue(&["web.example"]));
    // Without a length only the end of the connection says that it is whole.
    let serve = |whole: bool, seen: mpsc::Receiver<()>| {
        let seen = Mutex::new(seen);
        endpoint(move |stream| {
            let mut reader = Reader::new(stream);
            if reader.message().is_some() {
                reader.send("HTTP/1.1 200 OK\r\n\r\nhalf");
                // Not before the first half has arrived.
                let _arrived = seen.lock().unwrap().recv();
                if !whole {
                    reset(reader.stream);
                }
            }
        })
    };
    for whole in [true, false] {
        let (tell, seen) = mpsc::channel();
        let plan = Plan::new(Protocol::Http).endpoint(serve(whole, seen), "v1");
        let mesh = Mesh::start(ending(plan, with(vec![files.clone()])));
        let mut stream = dial(mesh.address, "web.example", &client(&ca, &[], None)).unwrap();
        stream
            .write_all(b"GET / HTTP/1.0\r\nhost: web\r\n\r\n")
            .unwrap();
        let mut all = Vec::new();
        let mut byte = [0; 1];
        while !all.ends_with(b"half") {
            stream.read_exact(&mut byte).unwrap();
            all.push(byte[0]);
        }
        tell.send(()).unwrap();
        let end = stream.read_to_end(&mut all);
        assert_eq!(end.is_ok(), whole, "{end:?}");
    }
}
