//! HTTP/2 and gRPC on their way in.

use std::{
    net::SocketAddr,
    process::{Command, Stdio},
};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use mesh_user::testbed::Pod;

use crate::{
    scene::{self, PORT, VIP4, eventually},
    stage::{Setup, Stage},
};

const TO: &str = "MESH_TEST_GRPC_TO";
const MARK: &str = "@@";
/// A gRPC message: not compressed, length, payload.
const MESSAGE: &[u8] = b"\0\0\0\0\x05hello";
const CALLS: usize = 12;

/// Not a test by itself: with an address it is the client that [`calls`] starts inside a pod.
#[test]
fn grpc_client_process() {
    let Ok(to) = std::env::var(TO) else { return };
    let to: SocketAddr = to.parse().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let statuses = runtime.block_on(async {
        let stream = tokio::net::TcpStream::connect(to).await.unwrap();
        let (client, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
                .await
                .unwrap();
        tokio::spawn(connection);
        let mut statuses = Vec::new();
        for _call in 0..CALLS {
            let request = hyper::Request::post("http://web/echo.Echo/Unary")
                .header("content-type", "application/grpc")
                .header("te", "trailers")
                .body(Full::new(Bytes::from_static(MESSAGE)))
                .unwrap();
            let answer = client.clone().send_request(request).await.unwrap();
            let head = answer.headers().get("grpc-status").cloned();
            let body = answer.into_body().collect().await.unwrap();
            let trailer = body
                .trailers()
                .and_then(|trailers| trailers.get("grpc-status"));
            let status = head.as_ref().or(trailer).expect("a status");
            statuses.push(status.to_str().unwrap().to_owned());
        }
        statuses
    });
    println!("\n{MARK}{}", statuses.join(","));
}

/// The statuses of calls on one connection from inside a pod.
fn calls(stage: &Stage, pod: &Pod) -> Vec<String> {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["http2::grpc_client_process", "--exact", "--nocapture"]);
    command.env(TO, SocketAddr::from((VIP4, PORT)).to_string());
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    let child = stage.scene.bed.spawn_in(pod, command).unwrap();
    let output = child.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let line = text.lines().find_map(|line| line.strip_prefix(MARK));
    let line = line.unwrap_or_else(|| panic!("no answers: {text}"));
    line.split(',').map(str::to_owned).collect()
}

/// Denied is PERMISSION_DENIED (7), whether the destination's rules are applied at its own pass or
/// before the dial.
#[test]
fn grpc_calls_pass_the_inbound_side_and_are_refused_in_their_own_words() {
    let mut stage = Stage::build("in-grpc");
    let config = |pass: &str| {
        let mut more = String::new();
        for pod in stage.scene.bed.pods() {
            if pod.name.starts_with("web-") {
                more.push_str(&format!(
                    "  - {{name: {}, netns: {}, second-pass: {pass}}}\n",
                    pod.name,
                    pod.netns.display()
                ));
            }
        }
        more.push_str(
            "inbound:\n  - {ports: [8080], deny: {source: {workload: tester}}}\n\
             policies: [{service: web, balance: round-robin}]\n",
        );
        stage.config(&Setup {
            app: "",
            more: &more,
            agent: "",
        })
    };
    let (full, collapsed) = (config("full"), config("collapse"));
    stage.scene.start_with(&full).unwrap();
    scene::live(&stage.scene, 6);
    assert_eq!(calls(&stage, &stage.scene.client), vec!["0"; CALLS]);
    assert_eq!(calls(&stage, &stage.scene.tester), vec!["7"; CALLS]);
    eventually("both sides are logged", || {
        stage.logged("request", "inbound").len() == 2 * CALLS
    });
    let lines = stage.logged("request", "inbound");
    assert!(
        lines
            .iter()
            .all(|line| line["network.protocol.version"] == "2"),
        "{lines:?}"
    );
    stage.scene.put_in_force(&collapsed).unwrap();
    assert_eq!(calls(&stage, &stage.scene.client), vec!["0"; CALLS]);
    assert_eq!(calls(&stage, &stage.scene.tester), vec!["7"; CALLS]);
}
