//! Talks to a running agent over its admin socket.

use std::{io, path::PathBuf, time::Duration};

use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::{body::Bytes, client::conn::http1};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::{net::UnixStream, time};

use crate::kernel::Instance;

/// An answer must be there so soon. A reload compiles a whole model, and takes longer than that
/// only where something is wrong.
const TIMEOUT: Duration = Duration::from_secs(60);

/// Largest answer in bytes: the model of 10,000 services has some MiB.
const ANSWER_BYTES_MAX: usize = 256 << 20;

/// Why an agent didn't answer as wished.
#[derive(Debug, thiserror::Error)]
pub(super) enum ClientError {
    /// Nobody listens.
    #[error(
        "no agent runs as instance {:?} ({} {}): start one with `mesh run --config FILE`, or name \
         another with --instance; `mesh bpf ...` works without an agent",
        .instance.name(), .socket.display(),
        .there.then_some("is there, but nobody answers").unwrap_or("doesn't exist")
    )]
    NoAgent {
        /// The instance.
        instance: Instance,
        /// Its socket.
        socket: PathBuf,
        /// Whether the socket's file exists.
        there: bool,
    },
    /// Not allowed.
    #[error(
        "not allowed to ask the agent of instance {:?}: {} belongs to the user that runs the \
         agent; try again as that user, or as root (`sudo mesh ...`)",
        .instance.name(), .socket.display()
    )]
    Denied {
        /// The instance.
        instance: Instance,
        /// Its socket.
        socket: PathBuf,
    },
    /// It took too long.
    #[error("the agent did not answer within {} s", TIMEOUT.as_secs())]
    Timeout,
    /// The connection broke, or the answer is not what an agent says.
    #[error("the agent's answer can't be read: {0}")]
    Broken(String),
    /// The agent says no.
    #[error("{message}")]
    Refused {
        /// HTTP status.
        status: StatusCode,
        /// Its message.
        message: String,
    },
}

/// Asks one question.
pub(super) fn ask(
    instance: &Instance,
    method: Method,
    path: &str,
    body: impl Into<Bytes>,
) -> Result<Value, ClientError> {
    let body = body.into();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| ClientError::Broken(error.to_string()))?;
    runtime.block_on(async {
        time::timeout(TIMEOUT, exchange(instance, method, path, body))
            .await
            .unwrap_or(Err(ClientError::Timeout))
    })
}

/// [`ask`] for what only reads.
pub(super) fn get(instance: &Instance, path: &str) -> Result<Value, ClientError> {
    ask(instance, Method::GET, path, Bytes::new())
}

async fn exchange(
    instance: &Instance,
    method: Method,
    path: &str,
    body: Bytes,
) -> Result<Value, ClientError> {
    let broken = |error: &dyn std::fmt::Display| ClientError::Broken(error.to_string());
    let stream = connect(instance).await?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|error| broken(&error))?;
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header(http::header::HOST, "mesh")
        .body(Full::new(body))
        .map_err(|error| broken(&error))?;
    let exchange = async {
        let response = sender
            .send_request(request)
            .await
            .map_err(|error| broken(&error))?;
        let status = response.status();
        let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX)
            .collect()
            .await
            .map_err(|error| broken(&error))?;
        Ok((status, body.to_bytes()))
    };
    let (status, body) = tokio::select! {
        biased;
        answer = exchange => answer?,
        ended = connection => {
            let why = ended.err().map_or_else(|| "it closed".into(), |error| error.to_string());
            return Err(ClientError::Broken(why));
        }
    };
    understand(status, &body)
}

async fn connect(instance: &Instance) -> Result<UnixStream, ClientError> {
    let socket = instance.admin_socket();
    UnixStream::connect(&socket)
        .await
        .map_err(|error| match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => ClientError::NoAgent {
                instance: instance.clone(),
                there: error.kind() == io::ErrorKind::ConnectionRefused,
                socket,
            },
            io::ErrorKind::PermissionDenied => ClientError::Denied {
                instance: instance.clone(),
                socket,
            },
            _ => ClientError::Broken(format!("{}: {error}", socket.display())),
        })
}

fn understand(status: StatusCode, body: &[u8]) -> Result<Value, ClientError> {
    let document: Value = serde_json::from_slice(body)
        .map_err(|error| ClientError::Broken(format!("status {status}, {error}")))?;
    if status.is_success() {
        return Ok(document);
    }
    let message = match document["message"].as_str() {
        Some(message) => message.to_owned(),
        None => format!("the agent answered {status}"),
    };
    Err(ClientError::Refused { status, message })
}
