//! The admin thread: two listeners, bounded connections, bounded time.

use std::{net::TcpListener, os::unix::net::UnixListener, sync::Arc, time::Duration};

use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::{Semaphore, oneshot},
    time,
};

use super::{
    AdminOptions,
    routes::{self, Side, State},
};
use crate::clock;

/// Open connections for each listener; one more is closed at once. A scraper and a few people
/// need less than ten.
const CONNECTIONS_MAX: usize = 128;

/// A request head must be complete so soon after the last answer: also how long an idle
/// connection is kept.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);

/// Largest request head in bytes: the smallest that hyper takes.
const HEAD_BYTES_MAX: usize = 8_192;

/// A connection is asked to end after this, whatever it does, and cut [`CUT`] later: so a reader
/// that never reads holds its answer for no longer.
const LIFETIME: Duration = Duration::from_secs(120);

const CUT: Duration = Duration::from_secs(10);

/// How often series of workloads that are gone are looked for.
const RETIRE_EVERY: Duration = Duration::from_secs(5);

/// How long the pause is after accept failed: no file descriptor is left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves until `stopped` fires.
pub(super) async fn run(
    options: AdminOptions,
    unix: UnixListener,
    tcp: Option<TcpListener>,
    retired: oneshot::Receiver<()>,
    stopped: oneshot::Receiver<()>,
) {
    let state = Arc::new(State::new(options));
    let unix = tokio::net::UnixListener::from_std(unix);
    let tcp = tcp.map(tokio::net::TcpListener::from_std).transpose();
    let (unix, tcp) = match (unix, tcp) {
        (Ok(unix), Ok(tcp)) => (unix, tcp),
        (Err(error), _) | (_, Err(error)) => {
            tracing::error!(%error, "admin: the listeners can't be polled");
            return;
        }
    };
    let admin = accept_loop(state.clone(), Side::Admin, async || {
        unix.accept().await.map(|(stream, _)| stream)
    });
    let metrics = async {
        if let Some(tcp) = tcp {
            let accept = async || tcp.accept().await.map(|(stream, _)| stream);
            tokio::select! {
                () = accept_loop(state.clone(), Side::Metrics, accept) => {}
                _ = retired => last_ones(&state, &tcp).await,
            }
            // Closed here: a successor has the port.
        }
        std::future::pending().await
    };
    tokio::select! {
        () = admin => {}
        () = metrics => {}
        () = retire_loop(state.clone()) => {}
        _ = stopped => {}
    }
}

/// Takes what waits to be accepted: closing the listener would reset it.
async fn last_ones(state: &Arc<State>, tcp: &tokio::net::TcpListener) {
    for _ in 0..CONNECTIONS_MAX {
        let Ok(Ok((stream, _))) = time::timeout(Duration::ZERO, tcp.accept()).await else {
            return;
        };
        let state = state.clone();
        tokio::spawn(async move { serve(state, Side::Metrics, stream).await });
    }
}

async fn accept_loop<S>(state: Arc<State>, side: Side, accept: impl AsyncFn() -> std::io::Result<S>)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        match accept().await {
            Ok(stream) => {
                let Ok(permit) = room.clone().try_acquire_owned() else {
                    continue;
                };
                let state = state.clone();
                tokio::spawn(async move {
                    serve(state, side, stream).await;
                    drop(permit);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "admin: can't accept");
                time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn serve<S>(state: Arc<State>, side: Side, stream: S)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let service = service_fn(move |request: hyper::Request<Incoming>| {
        let state = state.clone();
        async move { Ok::<_, std::convert::Infallible>(routes::answer(&state, side, request).await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(HEAD_BYTES_MAX)
        .serve_connection(TokioIo::new(stream), service)
        // Only `/takeover` asks for it.
        .with_upgrades();
    let mut connection = std::pin::pin!(connection);
    // How a connection to the admin port ended is of no use to anybody.
    if time::timeout(LIFETIME, connection.as_mut()).await.is_err() {
        connection.as_mut().graceful_shutdown();
        let _ = time::timeout(CUT, connection).await;
    }
}

async fn retire_loop(state: Arc<State>) {
    let mut ticks = time::interval(RETIRE_EVERY);
    loop {
        ticks.tick().await;
        state.retire(clock::now());
    }
}
