//! What each path answers.

use std::{
    collections::{BTreeMap, HashSet},
    io,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use http::{
    Method, Request, Response, StatusCode,
    header::{ALLOW, CONNECTION, CONTENT_TYPE, UPGRADE},
};
use http_body_util::{BodyExt as _, Limited};
use hyper::{
    body::Incoming,
    upgrade::{self, OnUpgrade, Upgraded},
};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde_json::json;
use tokio::{sync::Semaphore, task, time};

use super::{
    AdminOptions, Agent, KernelSample, WorkloadState,
    body::{self, Body},
    document,
    events::Events,
    explain::{self, Question},
    shield::ShieldAsk,
};
use crate::{
    clock::{self, MonoNanos},
    telemetry::{Scrape, Telemetry, logging},
};

/// Largest request body in bytes: a question with 100 header fields has room.
const BODY_BYTES_MAX: usize = 64 << 10;

/// A request body must be there so soon.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);

/// The kernel's numbers are kept so long: walking full maps costs milliseconds.
const KERNEL_KEPT: Duration = Duration::from_secs(5);

/// Scrapes that are made at once; others wait.
const SCRAPES_MAX: usize = 2;

/// The media type of the OpenMetrics text.
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

type Answer = Response<Body>;

/// Which listener a request came through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    /// The unix socket: everything.
    Admin,
    /// The TCP port: metrics and health, nothing that changes or tells.
    Metrics,
}

/// What the handlers share.
#[derive(Debug)]
pub(super) struct State {
    agent: Arc<dyn Agent>,
    telemetry: Arc<Telemetry>,
    events: Arc<Events>,
    kernel: Mutex<Option<(MonoNanos, Arc<KernelSample>)>>,
    scrapes: Arc<Semaphore>,
}

impl State {
    pub(super) fn new(options: AdminOptions) -> Self {
        Self {
            agent: options.agent,
            telemetry: options.telemetry,
            events: options.events,
            kernel: Mutex::new(None),
            scrapes: Arc::new(Semaphore::new(SCRAPES_MAX)),
        }
    }

    /// Lets go of the series of workloads that are gone.
    pub(super) fn retire(&self, now: MonoNanos) {
        let status = self.agent.status();
        let live: HashSet<&str> = status
            .workloads
            .iter()
            .filter(|workload| workload.state != WorkloadState::Gone)
            .map(|workload| &*workload.key)
            .collect();
        self.telemetry.retire(&|key| live.contains(key), now);
    }

    fn kernel(&self, now: MonoNanos) -> Arc<KernelSample> {
        let mut kept = self.kernel.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((at, sample)) = &*kept
            && now.since(*at) < KERNEL_KEPT
        {
            return sample.clone();
        }
        let sample = Arc::new(self.agent.kernel());
        *kept = Some((now, sample.clone()));
        sample
    }

    fn scrape(&self) -> Scrape {
        let status = self.agent.status();
        let kernel = self.kernel(clock::now());
        let mut states: BTreeMap<&str, u64> = BTreeMap::new();
        for state in WorkloadState::ALL {
            states.insert(state.label(), 0);
        }
        for workload in &status.workloads {
            *states.entry(workload.state.label()).or_default() += 1;
        }
        let seconds = |time: SystemTime| {
            time.duration_since(SystemTime::UNIX_EPOCH)
                .ok()
                .map(|since| since.as_secs_f64())
        };
        let mut scrape = Scrape {
            ready: status.ready(),
            reload_seconds: status.config.last_success.and_then(seconds),
            reload_good: status.config.last_error.is_none(),
            workloads: states
                .into_iter()
                .map(|(state, n)| (state.to_owned(), n))
                .collect(),
            kernel: kernel
                .stats
                .iter()
                .map(|row| (row.reason.clone(), row.count))
                .collect(),
            maps: kernel
                .maps
                .iter()
                .map(|row| (row.map.clone(), row.entries, row.capacity))
                .collect(),
            ..Scrape::default()
        };
        scrape.shield = self.agent.shield_sample();
        scrape.breakers(&self.agent.snapshot());
        scrape.generation = status.generation;
        scrape
    }
}

/// Answers one request.
pub(super) async fn answer(state: &Arc<State>, side: Side, request: Request<Incoming>) -> Answer {
    let mut request = request;
    let successor = (request.uri().path() == "/takeover").then(|| upgrade::on(&mut request));
    let (head, body) = request.into_parts();
    let method = &head.method;
    let query = head.uri.query().unwrap_or("");
    match (side, head.uri.path()) {
        (_, "/livez") => get(method, || livez(state)),
        (_, "/readyz") => get(method, || readyz(state, query)),
        (_, "/metrics" | "/stats/prometheus") => {
            if let Some(refused) = only(method, &[Method::GET, Method::HEAD]) {
                return refused;
            }
            metrics(state).await
        }
        (Side::Admin, "/status") => get(method, || one("Status", &state.agent.status())),
        (Side::Admin, "/events") => match only(method, &[Method::GET]) {
            Some(refused) => refused,
            None => events(state, query).await,
        },
        (Side::Admin, path) if path == "/model" || path.starts_with("/config/") => {
            let path = path.to_owned();
            match only(method, &[Method::GET, Method::HEAD]) {
                Some(refused) => refused,
                None => blocking(state, move |state| dump(state, &path)).await,
            }
        }
        (Side::Admin, "/connections") => match only(method, &[Method::GET]) {
            Some(refused) => refused,
            None => {
                let query = query.to_owned();
                blocking(state, move |state| connections(state, &query)).await
            }
        },
        (Side::Admin, "/explain") => match only(method, &[Method::POST]) {
            Some(refused) => refused,
            None => match read(body).await {
                Ok(body) => blocking(state, move |state| explain(state, &body)).await,
                Err(refused) => refused,
            },
        },
        (Side::Admin, "/redirect") => match only(method, &[Method::GET, Method::PUT]) {
            Some(refused) => refused,
            None if method == Method::GET => redirect_state(state),
            None => match read(body).await {
                Ok(body) => redirect(state, &body).await,
                Err(refused) => refused,
            },
        },
        (Side::Admin, "/shield") => match only(method, &[Method::POST]) {
            Some(refused) => refused,
            None => match read(body).await {
                Ok(body) => blocking(state, move |state| shield(state, &body)).await,
                Err(refused) => refused,
            },
        },
        (Side::Admin, "/reload") => match only(method, &[Method::POST]) {
            Some(refused) => refused,
            None => reload(state).await,
        },
        (Side::Admin, "/takeover") => match (only(method, &[Method::POST]), successor) {
            (None, Some(successor)) => hand_over(state, &head, successor),
            (refused, _) => refused.unwrap_or_else(upgrade_needed),
        },
        (Side::Admin, "/logging") => match only(method, &[Method::GET, Method::PUT]) {
            Some(refused) => refused,
            None if method == Method::GET => log_filter(),
            None => match read(body).await {
                Ok(body) => set_log_filter(&body),
                Err(refused) => refused,
            },
        },
        (_, path) => failure(
            StatusCode::NOT_FOUND,
            &format!("nothing is served at {path:?} here"),
        ),
    }
}

fn livez(state: &State) -> Answer {
    match state.agent.live() {
        Ok(()) => text(StatusCode::OK, "ok\n".into()),
        Err(why) => text(StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")),
    }
}

/// As Kubernetes writes it: `[+]name ok`, `[-]name failed: why`.
fn readyz(state: &State, query: &str) -> Answer {
    let status = state.agent.status();
    let (code, word) = match status.ready() {
        true => (StatusCode::OK, "ok"),
        false => (StatusCode::SERVICE_UNAVAILABLE, "not ready"),
    };
    let verbose = query
        .split('&')
        .any(|part| part == "verbose" || part.starts_with("verbose="));
    let mut out = String::new();
    // Who is not ready says why, asked or not: the probe's message is all that an operator sees.
    if verbose || !status.ready() {
        for condition in &status.conditions {
            out += &match condition.ok {
                true => format!("[+]{} ok: {}\n", condition.name, condition.detail),
                false => format!("[-]{} failed: {}\n", condition.name, condition.detail),
            };
        }
        if status.drain != super::Drain::No {
            out += "[-]draining: the agent is stopping\n";
        }
    }
    text(code, out + word + "\n")
}

/// Sends the metrics piece by piece. Whoever writes them waits for the reader, and goes when the
/// reader goes: the connection's lifetime bounds both.
async fn metrics(state: &Arc<State>) -> Answer {
    let Ok(permit) = state.scrapes.clone().acquire_owned().await else {
        return failure(StatusCode::SERVICE_UNAVAILABLE, "the agent is stopping");
    };
    let (pieces, body) = body::stream();
    let state = state.clone();
    task::spawn_blocking(move || {
        let mut pieces = pieces;
        // An error says that the reader went away.
        let _ = state.telemetry.expose_to(&state.scrape(), &mut pieces);
        pieces.finish();
        drop(permit);
    });
    let mut response = Response::new(body);
    response
        .headers_mut()
        .insert(CONTENT_TYPE, http::HeaderValue::from_static(OPEN_METRICS));
    response
}

/// `from=N&epoch=E`: events from number N of an agent on, waiting for the next one; without an epoch
/// (readers of before there was one) N is this agent's. Without both: the numbers to begin with.
async fn events(state: &State, query: &str) -> Answer {
    if query.is_empty() {
        return one("EventBatch", &state.events.now());
    }
    let (from, epoch) = match query.split_once("&epoch=") {
        Some((from, epoch)) => (from, epoch.parse().ok()),
        None => (query, Some(state.events.epoch())),
    };
    let from = from
        .strip_prefix("from=")
        .and_then(|from| from.parse().ok());
    match (from, epoch) {
        (Some(from), Some(epoch)) => one("EventBatch", &state.events.from(epoch, from).await),
        _ => failure(
            StatusCode::BAD_REQUEST,
            "expected from=N&epoch=E, as the answer before said",
        ),
    }
}

fn dump(state: &State, path: &str) -> Answer {
    let snapshot = state.agent.snapshot();
    match path.trim_start_matches("/config/") {
        "/model" => one("Model", &*snapshot.model),
        "services" => list("ServiceList", &snapshot.describe_services()),
        "routes" => list("RouteList", &snapshot.describe_routes()),
        "endpoints" => list("EndpointList", &snapshot.describe_endpoints(clock::now())),
        "policies" => list("PolicyList", &snapshot.describe_policies()),
        other => failure(
            StatusCode::NOT_FOUND,
            &format!("{other:?}: expected services, routes, endpoints or policies"),
        ),
    }
}

fn explain(state: &State, body: &[u8]) -> Answer {
    let question: Question = match serde_json::from_slice(body) {
        Ok(question) => question,
        Err(error) => return failure(StatusCode::BAD_REQUEST, &format!("the question: {error}")),
    };
    match explain::answer(&state.agent.snapshot(), &question, clock::now()) {
        Ok(answer) => one("Explanation", &answer),
        Err(error) => failure(StatusCode::UNPROCESSABLE_ENTITY, &error.to_string()),
    }
}

/// `peer=ADDRESS:PORT`: of one client; without: all.
fn connections(state: &State, query: &str) -> Answer {
    let peer = match query.strip_prefix("peer=").map(str::parse) {
        None if query.is_empty() => None,
        Some(Ok(peer)) => Some(peer),
        _ => return failure(StatusCode::BAD_REQUEST, "expected peer=ADDRESS:PORT"),
    };
    list("LiveConnectionList", &state.agent.connections(peer))
}

fn redirect_state(state: &State) -> Answer {
    one(
        "Redirect",
        &json!({ "redirect": state.agent.status().redirect }),
    )
}

async fn redirect(state: &Arc<State>, body: &[u8]) -> Answer {
    let on = match body.trim_ascii() {
        b"on" => true,
        b"off" => false,
        _ => return failure(StatusCode::BAD_REQUEST, "expected the body `on` or `off`"),
    };
    blocking(state, move |state| match state.agent.redirect(on) {
        Ok(()) => one("Redirect", &json!({ "redirect": on })),
        Err(why) => failure(StatusCode::INTERNAL_SERVER_ERROR, &why),
    })
    .await
}

fn shield(state: &State, body: &[u8]) -> Answer {
    let ask: ShieldAsk = match serde_json::from_slice(body) {
        Ok(ask) => ask,
        Err(error) => return failure(StatusCode::BAD_REQUEST, &format!("the question: {error}")),
    };
    match state.agent.shield(&ask) {
        Ok(document) => json_answer(Ok(document)),
        Err(why) => failure(StatusCode::UNPROCESSABLE_ENTITY, &why),
    }
}

async fn reload(state: &Arc<State>) -> Answer {
    blocking(state, |state| match state.agent.reload() {
        Ok(generation) => one("Reload", &json!({ "generation": generation })),
        Err(why) => failure(StatusCode::UNPROCESSABLE_ENTITY, &why),
    })
    .await
}

/// The protocol that `/takeover` changes to: one JSON document a line, see `app::takeover`.
pub const TAKEOVER_PROTOCOL: &str = "mesh-takeover";

fn upgrade_needed() -> Answer {
    failure(
        StatusCode::UPGRADE_REQUIRED,
        &format!(
            "expected `upgrade: {TAKEOVER_PROTOCOL}`: this is what `mesh run --takeover` asks"
        ),
    )
}

/// Gives the connection to the agent, on a thread of its own.
fn hand_over(state: &Arc<State>, head: &http::request::Parts, successor: OnUpgrade) -> Answer {
    let asked = head.headers.get(UPGRADE);
    if asked.is_none_or(|protocol| protocol != TAKEOVER_PROTOCOL) {
        return upgrade_needed();
    }
    let agent = Arc::clone(&state.agent);
    task::spawn(async move {
        let stream = match successor.await {
            Ok(upgraded) => plain(upgraded),
            Err(error) => Err(io::Error::other(error)),
        };
        let thread = stream.and_then(|stream| {
            std::thread::Builder::new()
                .name("mesh-takeover".into())
                .spawn(move || agent.hand_over(stream))
        });
        if let Err(error) = thread {
            tracing::warn!(%error, "a successor is not answered");
        }
    });
    let mut response = Response::new(Body::from(String::new()));
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(CONNECTION, http::HeaderValue::from_static("upgrade"));
    headers.insert(UPGRADE, http::HeaderValue::from_static(TAKEOVER_PROTOCOL));
    response
}

/// The socket under an upgraded connection, for blocking use.
fn plain(upgraded: Upgraded) -> io::Result<std::os::unix::net::UnixStream> {
    let parts = upgraded
        .downcast::<TokioIo<tokio::net::UnixStream>>()
        .map_err(|_| io::Error::other("not a unix socket"))?;
    if !parts.read_buf.is_empty() {
        return Err(io::Error::other("it spoke before it was answered"));
    }
    let stream = parts.io.into_inner().into_std()?;
    stream.set_nonblocking(false)?;
    Ok(stream)
}

fn log_filter() -> Answer {
    one("Logging", &json!({ "filter": logging::current() }))
}

fn set_log_filter(body: &[u8]) -> Answer {
    let filter = String::from_utf8_lossy(body);
    match logging::set(filter.trim()) {
        Ok(()) => log_filter(),
        Err(error) => failure(StatusCode::BAD_REQUEST, &error.to_string()),
    }
}

/// Runs what may block away from the thread that answers health checks.
async fn blocking(
    state: &Arc<State>,
    work: impl FnOnce(&State) -> Answer + Send + 'static,
) -> Answer {
    let state = state.clone();
    task::spawn_blocking(move || work(&state))
        .await
        .unwrap_or_else(|error| {
            tracing::error!(%error, "admin: a request panicked");
            failure(
                StatusCode::INTERNAL_SERVER_ERROR,
                "the agent failed to answer; see its log",
            )
        })
}

async fn read(body: Incoming) -> Result<Bytes, Answer> {
    let collected = time::timeout(BODY_TIMEOUT, Limited::new(body, BODY_BYTES_MAX).collect());
    match collected.await {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(error)) if error.is::<http_body_util::LengthLimitError>() => Err(failure(
            StatusCode::PAYLOAD_TOO_LARGE,
            &format!("the body is longer than {BODY_BYTES_MAX} bytes"),
        )),
        Ok(Err(error)) => Err(failure(StatusCode::BAD_REQUEST, &error.to_string())),
        Err(_) => Err(failure(
            StatusCode::REQUEST_TIMEOUT,
            "the body did not come in time",
        )),
    }
}

fn get(method: &Method, answer: impl FnOnce() -> Answer) -> Answer {
    only(method, &[Method::GET, Method::HEAD]).unwrap_or_else(answer)
}

/// The refusal of a method that the path doesn't take.
fn only(method: &Method, allowed: &[Method]) -> Option<Answer> {
    if allowed.contains(method) {
        return None;
    }
    let allowed: Vec<&str> = allowed.iter().map(Method::as_str).collect();
    let allowed = allowed.join(", ");
    let message = format!("method {method}: expected {allowed}");
    let mut refused = failure(StatusCode::METHOD_NOT_ALLOWED, &message);
    if let Ok(value) = allowed.parse() {
        refused.headers_mut().insert(ALLOW, value);
    }
    Some(refused)
}

fn one<T: Serialize>(kind: &str, thing: &T) -> Answer {
    json_answer(document::one(kind, thing))
}

fn list<T: Serialize>(kind: &str, rows: &[T]) -> Answer {
    json_answer(document::list(kind, rows))
}

fn json_answer(document: Result<serde_json::Value, serde_json::Error>) -> Answer {
    match document {
        Ok(document) => response(StatusCode::OK, "application/json", document.to_string()),
        Err(error) => failure(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string()),
    }
}

fn failure(status: StatusCode, message: &str) -> Answer {
    let document = document::one("Error", &json!({ "message": message }));
    let text = document.map_or_else(|_| message.to_owned(), |document| document.to_string());
    response(status, "application/json", text)
}

fn text(status: StatusCode, text: String) -> Answer {
    response(status, "text/plain; charset=utf-8", text)
}

fn response(status: StatusCode, media: &'static str, text: String) -> Answer {
    let mut response = Response::new(Body::from(text));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(CONTENT_TYPE, http::HeaderValue::from_static(media));
    response
}
