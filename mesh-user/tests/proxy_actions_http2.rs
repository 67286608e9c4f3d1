//! Actions of rules on the wire, over HTTP/2, and what a gRPC client gets of them.

mod actions;
mod proxy_support;

use std::{
    future::poll_fn,
    net::SocketAddr,
    sync::{Arc, Mutex},
    thread,
    time::{Duration, Instant},
};

use actions::{ANSWERED, Case, DELAY, cases};
use bytes::Bytes;
use h2::client::SendRequest;
use http::{HeaderMap, Request, Response};
use mesh_user::model::{
    Actions, Protocol, Rule, RuleExtra, Select, Target,
    action::{
        AbortStatus, DirectResponse, Fault, Fraction, HeaderEdits, Persistence, Redirect,
        SessionCarrier, Terminal,
    },
};
use proxy_support::*;

type Seen = Arc<Mutex<Vec<Request<()>>>>;

/// Answers as the table says: 200 with [`ANSWERED`] and `up`; a gRPC request with a head that is
/// also the trailers. Notes the heads.
fn watched() -> (SocketAddr, Seen) {
    let (listener, address) = bind();
    listener.set_nonblocking(true).unwrap();
    let seen = Seen::default();
    let note = Arc::clone(&seen);
    thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async move {
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            while let Ok((stream, _)) = listener.accept().await {
                let note = Arc::clone(&note);
                tokio::spawn(async move {
                    let mut connection = h2::server::handshake(stream).await.unwrap();
                    while let Some(Ok((request, mut respond))) = connection.accept().await {
                        let (parts, _body) = request.into_parts();
                        let grpc = parts.headers.get("content-type");
                        let grpc = grpc.is_some_and(|value| value == "application/grpc");
                        let is_head = parts.method == "HEAD";
                        note.lock().unwrap().push(Request::from_parts(parts, ()));
                        let mut response = Response::builder();
                        for (name, value) in ANSWERED {
                            response = response.header(*name, *value);
                        }
                        if grpc {
                            response = response.header("grpc-status", "5");
                            let response = response.body(()).unwrap();
                            respond.send_response(response, true).unwrap();
                            continue;
                        }
                        let response = response.header("content-length", 2).body(()).unwrap();
                        let mut out = respond.send_response(response, is_head).unwrap();
                        if !is_head {
                            out.send_data(Bytes::from_static(b"up"), true).unwrap();
                        }
                    }
                });
            }
        });
    });
    (address, seen)
}

async fn client(address: SocketAddr) -> SendRequest<Bytes> {
    let stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let (sender, connection) = h2::client::handshake(stream).await.unwrap();
    tokio::spawn(connection);
    sender.ready().await.unwrap()
}

/// An answer, taken in whole.
struct Got {
    status: u16,
    headers: HeaderMap,
    body: String,
    /// The head was all.
    ended: bool,
}

impl Got {
    fn field(&self, name: &str) -> Option<String> {
        joined(&self.headers, name)
    }
}

fn joined(headers: &HeaderMap, name: &str) -> Option<String> {
    let values = headers.get_all(name).iter();
    let values: Vec<&str> = values.map(|value| value.to_str().unwrap()).collect();
    (!values.is_empty()).then(|| values.join(", "))
}

async fn ask(sender: &mut SendRequest<Bytes>, request: Request<()>, body: &'static str) -> Got {
    *sender = sender.clone().ready().await.unwrap();
    let (response, mut out) = sender.send_request(request, body.is_empty()).unwrap();
    if !body.is_empty() {
        out.send_data(Bytes::from_static(body.as_bytes()), true)
            .unwrap();
    }
    let (parts, mut from) = response.await.unwrap().into_parts();
    let ended = from.is_end_stream();
    let mut all = Vec::new();
    while let Some(data) = poll_fn(|cx| from.poll_data(cx)).await {
        let data = data.unwrap();
        from.flow_control().release_capacity(data.len()).unwrap();
        all.extend_from_slice(&data);
    }
    Got {
        status: parts.status.as_u16(),
        headers: parts.headers,
        body: String::from_utf8(all).unwrap(),
        ended,
    }
}

fn request_of(case: &Case) -> Request<()> {
    let uri = if case.target == "*" {
        "http://web/*".to_owned()
    } else {
        format!("http://web{}", case.target)
    };
    let mut request = Request::builder().method(case.method).uri(uri);
    for (name, value) in &case.fields {
        request = request.header(*name, *value);
    }
    request.body(()).unwrap()
}

fn one(rule: Rule) -> (Mesh, Seen) {
    let (up, seen) = watched();
    let mut plan = Plan::new(Protocol::Http2).endpoint(up, "v1");
    plan.model.rules.push(rule);
    (Mesh::start(plan), seen)
}

#[test]
fn actions_of_the_table_are_carried_out_over_http2() {
    for case in cases() {
        let name = case.name;
        let (mesh, seen) = one(case.rule.clone());
        let port = mesh.address.port().to_string();
        let started = Instant::now();
        let got = block(async {
            let mut sender = client(mesh.address).await;
            ask(&mut sender, request_of(&case), case.body).await
        });
        if case.want.counted.contains(&"delay") {
            assert!(started.elapsed() >= DELAY, "{name}");
        }
        assert_eq!(got.status, case.want.status, "{name}: {:?}", got.headers);
        for (field, value) in &case.want.answer {
            let value = value.map(|value| value.replace("%PORT%", &port));
            assert_eq!(got.field(field), value, "{name}: {field}");
        }
        if let Some(body) = case.want.body {
            assert_eq!(got.body, body, "{name}");
        }
        let seen = seen.lock().unwrap();
        let target = seen.first().map(|seen| seen.uri().path_and_query());
        let target = target.flatten().map(|target| target.as_str());
        assert_eq!(target, case.want.target, "{name}");
        if let Some(seen) = seen.first() {
            let authority = seen.uri().authority().map(|it| it.as_str());
            assert_eq!(authority, Some(case.want.authority), "{name}");
            for (field, value) in &case.want.request {
                let seen = joined(seen.headers(), field);
                assert_eq!(seen.as_deref(), *value, "{name}: {field}");
            }
        }
        eventually("a record", || mesh.records("request").len() == 1);
        let record = &mesh.records("request")[0];
        assert_eq!(record["mesh.flags"], case.want.flags, "{name}");
        let asked = case.target.split('?').next().unwrap();
        assert_eq!(record["url.path"], asked, "{name}");
        for kind in ["delay", "abort", "cors_preflight", "redirect", "respond"] {
            let label = format!("kind=\"{kind}\"");
            let want = f64::from(u8::from(case.want.counted.contains(&kind)));
            let count = mesh.metric(&["mesh_actions_total", &label]);
            assert_eq!(count, Some(want), "{name}: {kind}");
        }
    }
}

fn acting(actions: Actions) -> Rule {
    doing(RuleExtra {
        actions,
        ..RuleExtra::default()
    })
}

fn doing(extra: RuleExtra) -> Rule {
    Rule {
        name: "acts".to_owned(),
        route: vec![Target {
            select: Select::Version("v1".to_owned()),
            ..Target::default()
        }],
        extra: Some(Box::new(extra)),
        ..Rule::default()
    }
}

fn grpc() -> Request<()> {
    Request::builder()
        .method("POST")
        .uri("http://web/s/m")
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(())
        .unwrap()
}

/// Each answer of a rule's own, as gRPC: a head with a status, 200 and no body.
#[test]
fn grpc_request_gets_a_grpc_answer_from_every_action() {
    let abort = |status| Actions {
        fault: Some(Fault {
            delay: None,
            abort: Some((Fraction::ALL, status)),
        }),
        ..Actions::default()
    };
    let respond = |status, body: &str| Actions {
        terminal: Some(Terminal::Respond(DirectResponse {
            status,
            headers: vec![("x-own".to_owned(), "1".to_owned())],
            body: body.to_owned(),
        })),
        ..Actions::default()
    };
    let redirect = Actions {
        terminal: Some(Terminal::Redirect(Redirect {
            scheme: None,
            hostname: Some("other".to_owned()),
            port: Some(81),
            path: None,
            status: 302,
        })),
        ..Actions::default()
    };
    let broken = Actions {
        terminal: Some(Terminal::Broken("nowhere".to_owned())),
        ..Actions::default()
    };
    for (actions, status, message) in [
        (
            abort(AbortStatus::Http(503)),
            "14",
            Some("fault filter abort"),
        ),
        (abort(AbortStatus::Grpc(9)), "9", Some("fault filter abort")),
        (respond(404, "no 100%\n"), "12", Some("no 100%25")),
        (respond(503, ""), "14", None),
        (redirect, "2", None),
        (
            broken,
            "13",
            Some("an action of the rule can't be resolved"),
        ),
    ] {
        let (mesh, seen) = one(acting(actions));
        let got = block(async {
            let mut sender = client(mesh.address).await;
            ask(&mut sender, grpc(), "message").await
        });
        assert_eq!((got.status, got.ended), (200, true), "{status}");
        assert_eq!(
            got.field("content-type").as_deref(),
            Some("application/grpc")
        );
        assert_eq!(got.field("grpc-status").as_deref(), Some(status));
        if let Some(message) = message {
            let got = got.field("grpc-message").unwrap();
            assert!(got.contains(message) || status == "13", "{got}");
        }
        assert!(seen.lock().unwrap().is_empty());
        eventually("a record", || mesh.records("request").len() == 1);
        let code: u8 = status.parse().unwrap();
        assert_eq!(mesh.records("request")[0]["rpc.grpc.status_code"], code);
    }
}

#[test]
fn header_edits_reach_a_grpc_answer_that_is_only_trailers() {
    let edits = |name: &str| HeaderEdits {
        set: vec![(name.to_owned(), "set".to_owned())],
        remove: vec!["x-gone".to_owned()],
        ..HeaderEdits::default()
    };
    let actions = Actions {
        request_headers: edits("x-asked"),
        response_headers: edits("x-told"),
        ..Actions::default()
    };
    let (mesh, seen) = one(acting(actions));
    let got = block(async {
        let mut sender = client(mesh.address).await;
        ask(&mut sender, grpc(), "").await
    });
    assert!(got.ended);
    assert_eq!(got.field("grpc-status").as_deref(), Some("5"));
    assert_eq!(got.field("x-told").as_deref(), Some("set"));
    assert_eq!(got.field("x-gone"), None);
    let seen = seen.lock().unwrap();
    assert_eq!(seen[0].headers()["x-asked"], "set");
    assert_eq!(seen[0].headers()["te"], "trailers");
}

#[test]
fn fault_delay_ends_at_the_clients_own_deadline() {
    let delay = Duration::from_secs(60);
    let actions = Actions {
        fault: Some(Fault {
            delay: Some((Fraction::ALL, delay)),
            abort: None,
        }),
        ..Actions::default()
    };
    let (mesh, seen) = one(acting(actions));
    let got = block(async {
        let mut sender = client(mesh.address).await;
        let mut request = grpc();
        let headers = request.headers_mut();
        headers.insert("grpc-timeout", "50m".parse().unwrap());
        ask(&mut sender, request, "").await
    });
    assert_eq!(got.field("grpc-status").as_deref(), Some("4"));
    assert!(seen.lock().unwrap().is_empty());
}

#[test]
fn fault_delay_ends_when_the_stream_is_reset() {
    let actions = Actions {
        fault: Some(Fault {
            delay: Some((Fraction::ALL, Duration::from_secs(60))),
            abort: None,
        }),
        ..Actions::default()
    };
    let (mesh, seen) = one(acting(actions));
    block(async {
        let mut sender = client(mesh.address).await;
        let (response, mut out) = sender.send_request(grpc(), false).unwrap();
        // The next request is served meanwhile: nothing else on the connection waits.
        out.send_reset(h2::Reason::CANCEL);
        drop((response, out));
        while mesh.records("request").is_empty() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    });
    assert_eq!(mesh.records("request")[0]["mesh.flags"], "DI,DC");
    assert!(seen.lock().unwrap().is_empty());
}

#[test]
fn session_by_cookie_is_told_over_http2() {
    let extra = RuleExtra {
        persistence: Some(Persistence {
            name: "sid".to_owned(),
            carrier: SessionCarrier::SessionCookie,
            absolute: None,
            idle: None,
            salt: "s".to_owned(),
        }),
        ..RuleExtra::default()
    };
    let (mesh, _) = one(doing(extra));
    block(async {
        let mut sender = client(mesh.address).await;
        let request = |cookie: Option<&str>| {
            let mut request = Request::builder().uri("http://web/");
            if let Some(cookie) = cookie {
                request = request.header("cookie", cookie);
            }
            request.body(()).unwrap()
        };
        let first = ask(&mut sender, request(None), "").await;
        let cookie = first.field("set-cookie").unwrap();
        let pair = cookie.split(';').next().unwrap();
        assert!(pair.starts_with("sid="));
        let again = ask(&mut sender, request(Some(pair)), "").await;
        assert_eq!(again.field("set-cookie"), None, "it is known already");
    });
}
