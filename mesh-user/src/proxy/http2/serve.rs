//! A client's HTTP/2 connection: accepts streams, watches the peer.

use std::{
    future::poll_fn,
    rc::Rc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use h2::{Reason, server::Connection};
use tokio::task::JoinSet;

use super::{
    settings, stream,
    wire::{Watch, Wire},
};
use crate::{
    clock::{self, MonoNanos},
    policy::Reject,
    proxy::{
        accept::guarded,
        buffer::Buf,
        core::{Conn, Place},
        detect::PREFACE,
        record::ConnectionLog,
        socket::Socket,
        timer::{NEVER, Timer, deadline},
    },
    telemetry::Spoken,
};

/// How long streams may take to see that their connection has gone, and the last frames to go out.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Serves a connection that speaks HTTP/2.
pub(in crate::proxy) async fn serve(
    conn: Rc<Conn>,
    place: Place,
    stream: Socket,
    buf: Buf,
    mut timer: Timer,
) {
    let mut log = ConnectionLog::open(Rc::clone(&conn), Spoken::Http2);
    conn.idle.set(false);
    let limits = conn.core.limits();
    let wire = Wire::new(stream, buf, PREFACE.len());
    let watch = wire.watch();
    let mut handshake = settings::server(&limits).handshake::<_, Bytes>(wire);
    let until = clock::now().after(limits.header_timeout);
    let shaken = poll_fn(|cx| {
        if let Poll::Ready(done) = std::pin::Pin::new(&mut handshake).poll(cx) {
            return Poll::Ready(done.map_err(|_| Reject::BadRequest));
        }
        timer.poll(cx, until).map(|()| Err(Reject::HeaderTimeout))
    });
    let connection = match shaken.await {
        Ok(connection) => connection,
        Err(reject) => {
            log.reject = Some(reject);
            return;
        }
    };
    let mut server = Server {
        conn,
        place,
        connection,
        watch,
        timer,
        streams: JoinSet::new(),
        idle_since: clock::now(),
        closing: false,
    };
    log.reject = server.run(&mut log.requests).await;
    server.finish().await;
}

struct Server {
    conn: Rc<Conn>,
    place: Place,
    connection: Connection<Wire, Bytes>,
    watch: Rc<Watch>,
    timer: Timer,
    streams: JoinSet<()>,
    idle_since: MonoNanos,
    /// GOAWAY was sent.
    closing: bool,
}

impl Server {
    /// Accepts streams until the connection ends; why, if it was our wish.
    async fn run(&mut self, requests: &mut u64) -> Option<Reject> {
        let core = Rc::clone(&self.conn.core);
        let mut drained = std::pin::pin!(core.drained.notified());
        poll_fn(|cx| {
            if !self.closing && (drained.as_mut().poll(cx).is_ready() || core.draining.get()) {
                self.close();
            }
            self.poll(cx, requests)
        })
        .await
    }

    fn close(&mut self) {
        self.closing = true;
        self.connection.graceful_shutdown();
    }

    fn poll(&mut self, cx: &mut Context<'_>, requests: &mut u64) -> Poll<Option<Reject>> {
        while let Poll::Ready(Some(_ended)) = self.streams.poll_join_next(cx) {
            if self.streams.is_empty() {
                self.idle_since = clock::now();
            }
        }
        loop {
            let accepted = self.connection.poll_accept(cx);
            if self.watch.flooded.get() {
                self.connection.abrupt_shutdown(Reason::ENHANCE_YOUR_CALM);
                return Poll::Ready(Some(Reject::BadRequest));
            }
            match accepted {
                Poll::Ready(Some(Ok((request, respond)))) => {
                    *requests += 1;
                    let conn = &self.conn;
                    let core = &conn.core;
                    let snapshot = self.place.refresh(conn);
                    let (conn, place) = (Rc::clone(conn), self.place);
                    let serving = guarded(Rc::clone(core), "h2_stream", move || {
                        stream::serve(conn, place, snapshot, request, respond)
                    });
                    self.streams.spawn_local(serving);
                }
                // The error is the peer's: h2 has told it with a GOAWAY.
                Poll::Ready(Some(Err(error))) => {
                    let ours = error.is_library() || error.is_go_away() && !error.is_remote();
                    return Poll::Ready(ours.then_some(Reject::BadRequest));
                }
                Poll::Ready(None) => return Poll::Ready(None),
                Poll::Pending => break,
            }
        }
        let limits = self.conn.core.limits();
        let head = self.watch.headers_since.get();
        let head = head.map_or(NEVER, |since| deadline(since, limits.header_timeout));
        let idle = if self.streams.is_empty() {
            deadline(self.idle_since, limits.keep_alive_timeout)
        } else {
            NEVER
        };
        let age = match self.closing {
            true => NEVER,
            false => self.conn.expires(&limits),
        };
        match self.timer.poll(cx, head.min(idle).min(age)) {
            Poll::Ready(()) if age < head.min(idle) => {
                // Streams that are open go on; the client makes the next ones elsewhere.
                self.close();
                self.idle_since = clock::now();
                cx.waker().wake_by_ref();
                Poll::Pending
            }
            Poll::Ready(()) if head <= idle => {
                self.connection.abrupt_shutdown(Reason::ENHANCE_YOUR_CALM);
                Poll::Ready(Some(Reject::HeaderTimeout))
            }
            Poll::Ready(()) => {
                // Twice means that the peer did not react to the first.
                if self.closing {
                    return Poll::Ready(None);
                }
                self.close();
                self.idle_since = clock::now();
                cx.waker().wake_by_ref();
                Poll::Pending
            }
            Poll::Pending => Poll::Pending,
        }
    }

    /// Sends what is left to say, then waits for the streams to write their records.
    async fn finish(mut self) {
        let until = clock::now().after(LAST_WORDS);
        poll_fn(|cx| match self.connection.poll_closed(cx) {
            Poll::Ready(_) => Poll::Ready(()),
            Poll::Pending => self.timer.poll(cx, until),
        })
        .await;
        drop(self.connection);
        let (streams, timer) = (&mut self.streams, &mut self.timer);
        let until = clock::now().after(LAST_WORDS);
        poll_fn(|cx| {
            loop {
                match streams.poll_join_next(cx) {
                    Poll::Ready(None) => return Poll::Ready(()),
                    Poll::Ready(Some(_ended)) => {}
                    Poll::Pending => return timer.poll(cx, until),
                }
            }
        })
        .await;
    }
}
