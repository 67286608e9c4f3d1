//! HTTP/2 and gRPC.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    process::{Command, Stdio},
};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use mesh_user::{
    demo::echo::{Echo, EchoArgs},
    testbed::Pod,
};
use serde::{Deserialize, Serialize};

use crate::{
    V1,
    scene::{PORT, Scene, VIP4, VIP6, shell, start},
};

/// What the client process shall ask, on one connection, all at once.
#[derive(Serialize, Deserialize)]
struct Plan {
    to: SocketAddr,
    requests: Vec<Ask>,
}

#[derive(Clone, Default, Serialize, Deserialize)]
struct Ask {
    method: String,
    path: String,
    headers: Vec<(String, String)>,
    body: String,
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct Answer {
    status: u16,
    headers: BTreeMap<String, String>,
    /// Whether the stream ended with the head: in gRPC, «trailers only».
    head_ended: bool,
    body: String,
    trailers: BTreeMap<String, String>,
    error: String,
}

impl Answer {
    fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", String::as_str)
    }

    fn version(&self) -> &str {
        self.header("x-echo-version")
    }
}

const PLAN: &str = "MESH_TEST_PLAN";
const MARK: &str = "@@";

/// Without a plan it proves that the client of the other tests sees what a server says, with nothing
/// between them. With one it is that client: [`h2`] starts this binary inside a pod.
#[test]
fn h2_client_sees_what_a_server_says() {
    if let Ok(plan) = std::env::var(PLAN) {
        let answers = ask_all(serde_json::from_str(&plan).unwrap());
        println!("\n{MARK}{}", serde_json::to_string(&answers).unwrap());
        return;
    }
    let server = Echo::start(&EchoArgs {
        http: vec![([127, 0, 0, 1], 0).into()],
        tcp: Vec::new(),
        server_first: Vec::new(),
        name: "alone".into(),
        version: "v7".into(),
        threads: 1,
        fast: false,
    })
    .unwrap();
    let answers = ask_all(Plan {
        to: server.http[0],
        requests: vec![
            get("/status/404"),
            grpc("/a.B/C", &[("x-grpc-status", "9")]),
            get("/abort"),
            get("/bytes/0"),
        ],
    });
    assert_eq!((answers[0].status, answers[0].version()), (404, "v7"));
    assert_eq!(answers[1].body, MESSAGE);
    assert_eq!(answers[1].trailers.get("grpc-status").unwrap(), "9");
    assert!(!answers[1].head_ended);
    assert!(
        answers[2].status == 0 && !answers[2].error.is_empty(),
        "{answers:?}"
    );
    assert!(
        answers[3].status == 200 && answers[3].head_ended,
        "{answers:?}"
    );
}

/// Asks everything at once over one connection.
fn ask_all(plan: Plan) -> Vec<Answer> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let stream = tokio::net::TcpStream::connect(plan.to).await.unwrap();
        let (client, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
                .await
                .unwrap();
        tokio::spawn(connection);
        let tasks: Vec<_> = plan
            .requests
            .into_iter()
            .map(|ask| tokio::spawn(one(client.clone(), ask)))
            .collect();
        let mut answers = Vec::new();
        for task in tasks {
            let answer = task.await.unwrap();
            answers.push(answer.unwrap_or_else(|error| Answer {
                error: error.to_string(),
                ..Answer::default()
            }));
        }
        answers
    })
}

async fn one(
    mut client: hyper::client::conn::http2::SendRequest<Full<Bytes>>,
    ask: Ask,
) -> hyper::Result<Answer> {
    let uri = format!("http://web{}", ask.path);
    let mut request = http::Request::builder()
        .method(ask.method.as_str())
        .uri(uri);
    for (name, value) in &ask.headers {
        request = request.header(name, value);
    }
    let request = request.body(Full::new(Bytes::from(ask.body))).unwrap();
    client.ready().await?;
    let response = client.send_request(request).await?;
    let text = |fields: &http::HeaderMap| {
        let pairs = fields.iter().map(|(name, value)| {
            (
                name.to_string(),
                String::from_utf8_lossy(value.as_bytes()).into_owned(),
            )
        });
        pairs.collect()
    };
    let head_ended = hyper::body::Body::is_end_stream(response.body());
    let (parts, body) = response.into_parts();
    let body = body.collect().await?;
    Ok(Answer {
        status: parts.status.as_u16(),
        headers: text(&parts.headers),
        head_ended,
        trailers: body.trailers().map(text).unwrap_or_default(),
        body: String::from_utf8_lossy(&body.to_bytes()).into_owned(),
        error: String::new(),
    })
}

/// Asks from inside a pod over one HTTP/2 connection.
fn h2(scene: &Scene, pod: &Pod, requests: Vec<Ask>) -> Vec<Answer> {
    let plan = Plan {
        to: (VIP4, PORT).into(),
        requests,
    };
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args([
        "http2::h2_client_sees_what_a_server_says",
        "--exact",
        "--nocapture",
        "--test-threads=1",
    ]);
    command.env(PLAN, serde_json::to_string(&plan).unwrap());
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    let output = scene
        .bed
        .spawn_in(pod, command)
        .unwrap()
        .wait_with_output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let line = text.lines().find_map(|line| line.strip_prefix(MARK));
    serde_json::from_str(line.unwrap_or_else(|| panic!("no answers: {text}"))).unwrap()
}

fn get(path: &str) -> Ask {
    Ask {
        method: "GET".into(),
        path: path.into(),
        ..Ask::default()
    }
}

/// A gRPC message: not compressed, length, payload. ASCII, so that it survives JSON.
const MESSAGE: &str = "\0\0\0\0\x05hello";

fn grpc(path: &str, headers: &[(&str, &str)]) -> Ask {
    let mut all = vec![
        ("content-type".into(), "application/grpc".into()),
        ("te".into(), "trailers".into()),
    ];
    all.extend(
        headers
            .iter()
            .map(|(name, value)| ((*name).into(), (*value).into())),
    );
    Ask {
        method: "POST".into(),
        path: path.into(),
        headers: all,
        body: MESSAGE.into(),
    }
}

/// Prior knowledge (h2c), each address family; the endpoint is asked in HTTP/2 too.
#[test]
fn curl_speaks_http2_with_prior_knowledge_over_every_family() {
    let scene = start("t-h2c", V1);
    for host in [
        VIP4.to_string(),
        format!("[{VIP6}]"),
        format!("[::ffff:{VIP4}]"),
    ] {
        let curl = format!(
            "curl -s --http2-prior-knowledge -m 10 -w '\\n%{{http_version}} %{{response_code}}' -D - \
             'http://{host}/x?y=z'"
        );
        let text = shell(&scene, &scene.client, &curl);
        assert!(text.ends_with("\n2 200"), "{host}: {text}");
        assert!(text.contains("x-echo-version: v1"), "{text}");
        assert!(
            text.contains("/x?y=z") && text.contains("\"protocol\":\"HTTP/2.0\""),
            "{text}"
        );
    }
    scene.tear_down().unwrap();
}

#[test]
fn grpc_call_brings_message_and_trailers_back() {
    let scene = start("t-grpc", V1);
    let answers = h2(
        &scene,
        &scene.client,
        vec![
            grpc("/echo.Echo/Unary", &[]),
            grpc("/echo.Echo/Unary", &[("x-grpc-status", "5")]),
        ],
    );
    for (answer, status) in answers.iter().zip(["0", "5"]) {
        assert_eq!(
            (answer.status, answer.error.as_str()),
            (200, ""),
            "{answer:?}"
        );
        assert_eq!(answer.header("content-type"), "application/grpc");
        assert_eq!(answer.body, MESSAGE);
        assert_eq!(
            answer.trailers.get("grpc-status").map(String::as_str),
            Some(status)
        );
        assert!(
            !answer.head_ended && !answer.headers.contains_key("grpc-status"),
            "{answer:?}"
        );
    }
    scene.tear_down().unwrap();
}

/// Refusals are what a gRPC library understands: HTTP 200, the status in the only head.
#[test]
fn grpc_refusals_are_trailers_only_with_their_status() {
    let scene = start(
        "t-grpc-no",
        "rules:\n  - {service: web, match: {path: {prefix: /echo.Echo}}, route: [{version: v1}]}\n\
         policies:\n  - {service: web, rate-limit: [{name: all, rate: 1/h, burst: 2}]}\n",
    );
    let unknown = h2(&scene, &scene.client, vec![grpc("/no.Such/Call", &[])]);
    let call = || grpc("/echo.Echo/Unary", &[]);
    let limited = h2(&scene, &scene.client, vec![call(), call(), call()]);
    let good = limited
        .iter()
        .filter(|answer| answer.trailers.contains_key("grpc-status"))
        .count();
    assert_eq!(good, 2, "the burst is served: {limited:?}");
    let over: Vec<_> = limited.iter().filter(|answer| answer.head_ended).collect();
    assert_eq!(over.len(), 1, "{limited:?}");
    for (answer, status, reject) in [
        (&unknown[0], "12", "no_route"),
        (over[0], "8", "rate_limited"),
    ] {
        assert!(
            answer.head_ended && answer.body.is_empty(),
            "trailers only: {answer:?}"
        );
        assert_eq!(
            (answer.status, answer.header("grpc-status")),
            (200, status),
            "{answer:?}"
        );
        assert_eq!(answer.header("content-type"), "application/grpc");
        assert_eq!(answer.header("x-mesh-reject"), reject);
        assert!(!answer.header("grpc-message").is_empty(), "{answer:?}");
    }
    scene.tear_down().unwrap();
}

#[test]
fn every_stream_of_one_connection_is_routed_by_itself() {
    let rules = "
rules:
  - {name: beta, service: web, precedence: 1, match: {headers: {x-user: beta}}, route: [{version: v2}]}
  - {name: split, service: web, route: [{version: v1, weight: 90}, {version: v2, weight: 10}]}
";
    let scene = start("t-h2-split", rules);
    let answers = h2(&scene, &scene.client, vec![get("/"); 500]);
    let of = |version: &str, answers: &[Answer]| {
        answers
            .iter()
            .filter(|answer| answer.version() == version)
            .count()
    };
    // One connection stays on one worker: there the split is exact.
    assert_eq!((of("v1", &answers), of("v2", &answers)), (450, 50));
    let mut beta = get("/");
    beta.headers.push(("x-user".into(), "beta".into()));
    let mixed: Vec<_> = (0..200)
        .map(|i| if i % 2 == 0 { beta.clone() } else { get("/") })
        .collect();
    let answers = h2(&scene, &scene.client, mixed);
    let (asked, others): (Vec<_>, Vec<_>) = answers
        .into_iter()
        .enumerate()
        .partition(|(index, _)| index % 2 == 0);
    assert!(
        asked.iter().all(|(_, answer)| answer.version() == "v2"),
        "by its own header"
    );
    let others: Vec<_> = others.into_iter().map(|(_, answer)| answer).collect();
    assert_eq!((of("v1", &others), of("v2", &others)), (90, 10));
    scene.tear_down().unwrap();
}
