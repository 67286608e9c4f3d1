//! One copy and its answer on a connection of its own.

use std::{cell::RefCell, future::poll_fn, rc::Rc};

use bytes::Bytes;
use http::{
    HeaderValue, Request, Uri, header,
    uri::{Authority, PathAndQuery, Scheme},
};
use http_body_util::BodyExt;
use hyper_util::rt::TokioIo;
use tokio::task::AbortHandle;

use super::{
    body::{Queue, Taken},
    compare::{Digest, Seen},
};
use crate::{
    proxy::{
        core::Core,
        http2,
        pool::Key,
        upstream::{Permits, Upstream},
    },
    telemetry::mirror::MirrorResult,
};

/// What a connection of HTTP/1 holds of a message in either direction, in bytes.
const WIRE_BUFFER_BYTES: usize = 64 << 10;

/// A connection to a mirror's endpoint. Dropped it is closed.
#[derive(Debug)]
pub(super) struct Wire {
    sender: Sender,
    key: Key,
    driver: AbortHandle,
    permits: Rights,
}

/// The permits of a connection: given back by whoever ends it first, its driver or its owner. A
/// driver that is aborted ends later, and who closes an idle connection needs its permit at once.
type Rights = Rc<RefCell<Option<Permits>>>;

#[derive(Debug)]
enum Sender {
    Http1(hyper::client::conn::http1::SendRequest<Taken>),
    Http2(h2::client::SendRequest<Bytes>),
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.driver.abort();
        drop(self.permits.take());
    }
}

impl Wire {
    /// Begins to speak HTTP on a fresh connection.
    pub(super) async fn new(core: &Core, upstream: Upstream, http2: bool) -> Option<Self> {
        let Upstream {
            stream,
            permits,
            key,
            ..
        } = upstream;
        let permits: Rights = Rc::new(RefCell::new(Some(permits)));
        let rights = Rc::clone(&permits);
        let (sender, driver) = if http2 {
            let (sender, connection) = http2::shake(&core.limits(), stream).await.ok()?;
            let driver = tokio::task::spawn_local(async move {
                connection.await;
                drop(rights.take());
            });
            (Sender::Http2(sender), driver)
        } else {
            let mut builder = hyper::client::conn::http1::Builder::new();
            builder.max_buf_size(WIRE_BUFFER_BYTES);
            let (sender, connection) = builder.handshake(TokioIo::new(stream)).await.ok()?;
            let driver = tokio::task::spawn_local(async move {
                // How it ended its last exchange has told.
                let _ended = connection.await;
                drop(rights.take());
            });
            (Sender::Http1(sender), driver)
        };
        Some(Self {
            sender,
            key,
            driver: driver.abort_handle(),
            permits,
        })
    }

    pub(super) const fn key(&self) -> &Key {
        &self.key
    }

    pub(super) const fn is_http2(&self) -> bool {
        matches!(self.sender, Sender::Http2(_))
    }

    /// Whether it may carry another exchange. One that was closed meanwhile says so at the latest
    /// in that exchange: a mirror is not tried again.
    pub(super) fn is_open(&self) -> bool {
        !self.driver.is_finished()
            && match &self.sender {
                Sender::Http1(sender) => sender.is_ready(),
                Sender::Http2(_) => true,
            }
    }

    /// Sends a copy and takes its answer in, to the end. `sent` is called when the head has gone
    /// out as far as we can tell.
    pub(super) async fn exchange(
        &mut self,
        request: Request<()>,
        queue: &Rc<Queue>,
        sent: impl FnOnce(),
    ) -> Result<Seen, MirrorResult> {
        let (mut parts, ()) = request.into_parts();
        match &mut self.sender {
            Sender::Http1(sender) => {
                sender.ready().await.map_err(reset)?;
                to_http1(&mut parts);
                sent();
                let body = Taken(Rc::clone(queue));
                let answer = sender.send_request(Request::from_parts(parts, body)).await;
                let (head, mut body) = answer.map_err(reset)?.into_parts();
                let mut digest = Digest::default();
                while let Some(frame) = body.frame().await {
                    if let Some(data) = frame.map_err(reset)?.data_ref() {
                        digest.data(data);
                    }
                }
                Ok(digest.seen(head.status.as_u16(), None))
            }
            Sender::Http2(sender) => {
                let ready = sender.clone().ready().await.map_err(reset)?;
                to_http2(&mut parts, self.key.tls != 0).ok_or(MirrorResult::FailedReset)?;
                sent();
                exchange_http2(ready, Request::from_parts(parts, ()), queue).await
            }
        }
    }
}

fn reset<E>(_error: E) -> MirrorResult {
    MirrorResult::FailedReset
}

async fn exchange_http2(
    mut sender: h2::client::SendRequest<Bytes>,
    request: Request<()>,
    queue: &Queue,
) -> Result<Seen, MirrorResult> {
    let ends = queue.is_empty();
    let (answer, mut sink) = sender.send_request(request, ends).map_err(reset)?;
    let send = async {
        if !ends && send_body(&mut sink, queue).await.is_err() {
            // It may have answered all the same.
            tracing::debug!("mirror takes no more of the body");
        }
    };
    let receive = async {
        let (head, mut body) = answer.await.map_err(reset)?.into_parts();
        let mut digest = Digest::default();
        while let Some(data) = body.data().await {
            let data = data.map_err(reset)?;
            digest.data(&data);
            // An error says that the stream has ended.
            let _ended = body.flow_control().release_capacity(data.len());
        }
        let trailers = body.trailers().await.map_err(reset)?;
        let grpc = http2::grpc_status(trailers.as_ref().unwrap_or(&head.headers));
        Ok(digest.seen(head.status.as_u16(), grpc))
    };
    let mut receive = std::pin::pin!(receive);
    tokio::select! {
        biased;
        answer = &mut receive => answer,
        () = send => receive.await,
    }
}

async fn send_body(sink: &mut h2::SendStream<Bytes>, queue: &Queue) -> Result<(), MirrorResult> {
    while let Some(data) = poll_fn(|cx| queue.poll_data(cx)).await {
        let mut data = data.map_err(reset)?;
        while !data.is_empty() {
            sink.reserve_capacity(data.len());
            let room = poll_fn(|cx| sink.poll_capacity(cx)).await;
            let room = room.ok_or(MirrorResult::FailedReset)?.map_err(reset)?;
            sink.send_data(data.split_to(room.min(data.len())), false)
                .map_err(reset)?;
        }
    }
    match queue.take_trailers() {
        Some(trailers) => sink.send_trailers(trailers),
        None => sink.send_data(Bytes::new(), true),
    }
    .map_err(reset)
}

/// Fields that are ours to make, or that ask for what nobody waits for.
fn strip(headers: &mut http::HeaderMap) {
    headers.remove(header::TRANSFER_ENCODING);
    headers.remove(header::EXPECT);
}

/// Origin form, with Host.
fn to_http1(parts: &mut http::request::Parts) {
    strip(&mut parts.headers);
    if let Some(authority) = parts.uri.authority()
        && let Ok(host) = HeaderValue::from_str(authority.as_str())
    {
        parts.headers.insert(header::HOST, host);
    }
    if let Some(path) = parts.uri.path_and_query().cloned() {
        parts.uri = Uri::from(path);
    }
    parts.version = http::Version::HTTP_11;
}

/// With `:scheme` as it is spoken and `:authority`, without what HTTP/2 forbids. None: the
/// authority is none.
fn to_http2(parts: &mut http::request::Parts, over_tls: bool) -> Option<()> {
    strip(&mut parts.headers);
    let mut uri = std::mem::take(&mut parts.uri).into_parts();
    let host = parts.headers.remove(header::HOST);
    if uri.authority.is_none() {
        uri.authority = Some(Authority::try_from(host?.as_bytes()).ok()?);
    }
    uri.scheme = Some(if over_tls {
        Scheme::HTTPS
    } else {
        Scheme::HTTP
    });
    uri.path_and_query
        .get_or_insert_with(|| PathAndQuery::from_static("/"));
    parts.uri = Uri::from_parts(uri).ok()?;
    parts.version = http::Version::HTTP_2;
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copy_in_http2_says_the_scheme_that_it_is_sent_in() {
        for (uri, host) in [("/a?b", Some("web:80")), ("http://web:80/a?b", None)] {
            for (over_tls, want) in [(false, "http://web:80/a?b"), (true, "https://web:80/a?b")] {
                let mut request = Request::get(uri).header("expect", "100-continue");
                if let Some(host) = host {
                    request = request.header("host", host);
                }
                let (mut parts, ()) = request.body(()).unwrap().into_parts();
                to_http2(&mut parts, over_tls).unwrap();
                assert_eq!(parts.uri, want);
                assert!(parts.headers.is_empty());
            }
        }
        let (mut none, ()) = Request::get("/").body(()).unwrap().into_parts();
        assert_eq!(to_http2(&mut none, false), None);
    }
}
