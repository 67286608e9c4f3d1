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

/// A running agent, or where one would be.
#[derive(Clone, Debug)]
pub(super) struct Agent {
    pub(super) instance: Instance,
    pub(super) socket: PathBuf,
}

impl Agent {
    /// The agent of an instance.
    pub(super) fn of(instance: &Instance) -> Self {
        Self {
            instance: instance.clone(),
            socket: instance.admin_socket(),
        }
    }

    /// Asks what only reads.
    pub(super) fn get(&self, path: &str) -> Result<Value, ClientError> {
        self.ask(Method::GET, path, Bytes::new())
    }

    /// Asks one question.
    pub(super) fn ask(
        &self,
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
            time::timeout(TIMEOUT, self.exchange(method, path, body))
                .await
                .unwrap_or(Err(ClientError::Timeout))
        })
    }

    /// Asks without a time limit of its own.
    pub(super) async fn exchange(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> Result<Value, ClientError> {
        let stream = self.connect().await?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
            .await
            .map_err(broken)?;
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(http::header::HOST, "mesh")
            .body(Full::new(body))
            .map_err(broken)?;
        let exchange = async {
            let response = sender.send_request(request).await.map_err(broken)?;
            let status = response.status();
            let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX);
            Ok((status, body.collect().await.map_err(broken)?.to_bytes()))
        };
        let (status, body) = {
            let mut exchange = std::pin::pin!(exchange);
            tokio::select! {
                biased;
                answer = &mut exchange => answer?,
                // It closes as soon as the answer is complete; the answer may still be unread.
                ended = connection => match (exchange.await, ended) {
                    (Ok(answer), _) => answer,
                    (Err(_), Err(error)) => return Err(broken(error)),
                    (Err(error), Ok(())) => return Err(error),
                },
            }
        };
        understand(status, &body)
    }

    async fn connect(&self) -> Result<UnixStream, ClientError> {
        UnixStream::connect(&self.socket)
            .await
            .map_err(|error| match error.kind() {
                io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                    ClientError::NoAgent {
                        instance: self.instance.clone(),
                        there: error.kind() == io::ErrorKind::ConnectionRefused,
                        socket: self.socket.clone(),
                    }
                }
                io::ErrorKind::PermissionDenied => ClientError::Denied {
                    instance: self.instance.clone(),
                    socket: self.socket.clone(),
                },
                _ => ClientError::Broken(format!("{}: {error}", self.socket.display())),
            })
    }
}

fn broken(error: impl std::fmt::Display) -> ClientError {
    ClientError::Broken(error.to_string())
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
