//! A hedge in HTTP/2: the whole request on another stream, until its answer's head.

use std::{
    collections::VecDeque,
    future::poll_fn,
    pin::Pin,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Bytes;
use h2::{RecvStream, SendStream, client::ResponseFuture};
use http::{HeaderMap, Request, Response};

use super::{
    client::{Lease, open_stream},
    exchange::Seen,
    flow::Kept,
    stream::Course,
};
use crate::{
    clock::{self, MonoNanos},
    policy::{
        SourceIx,
        breaker::{RequestPermit, RetryPermit},
        retry::AnswerHead,
        snapshot::{EndpointState, Outcome},
    },
    proxy::{
        attempt,
        core::Conn,
        hedge::{Answer, Leg},
        inbound::{self, Judged},
        retry::Charged,
        upstream::{NoConnection, Target},
    },
};

/// The rights of a stream to an endpoint, which end with it.
pub(super) struct Right<'a> {
    pub(super) permit: RequestPermit,
    pub(super) _lease: Lease,
    pub(super) _judged: Judged<'a>,
}

/// An endpoint that answered.
pub(super) struct Won<'a> {
    pub(super) endpoint: Arc<EndpointState>,
    pub(super) right: Right<'a>,
    pub(super) sink: SendStream<Bytes>,
    pub(super) response: Response<RecvStream>,
    pub(super) started: MonoNanos,
    _retry: RetryPermit,
    course: &'a Course<'a>,
    status: u16,
}

impl Answer for Won<'_> {
    fn status(&self) -> u16 {
        self.status
    }

    fn discard(self) {
        let ended = clock::now();
        let took = attempt::took(self.started, None, ended);
        let outcome = Outcome::Status(self.status);
        self.course
            .record(&self.endpoint, outcome, took, None, ended);
    }
}

/// What is sent.
pub(super) struct Whole {
    request: Request<()>,
    data: VecDeque<Bytes>,
    trailers: Option<HeaderMap>,
}

impl Whole {
    /// Of a request that is kept whole.
    pub(super) fn new(request: Request<()>, kept: &mut Kept) -> Self {
        kept.seal();
        Self {
            request,
            data: kept.data.clone(),
            trailers: kept.trailers.clone(),
        }
    }
}

/// Begins a leg at an endpoint that was not asked, if there is one and its caps allow it.
pub(super) fn start<'a>(
    course: &'a Course<'a>,
    conn: &Rc<Conn>,
    source: Option<SourceIx>,
    grpc: bool,
    whole: Whole,
    tried: &[u64],
) -> Option<(u64, Leg<'a, Won<'a>>)> {
    let now = clock::now();
    let (snapshot, version) = (course.snapshot, course.plan.version);
    let endpoint = inbound::pick(conn, snapshot, version, None, tried, now).ok()?;
    if tried.contains(&endpoint.id) {
        return None;
    }
    let retry = course.on.version.admit_retry(now)?;
    let permit = course.on.version.breaker.request(&endpoint).ok()?;
    let charged = &mut Charged::default();
    let judged = inbound::judge(conn, snapshot, source, &endpoint, charged, now).ok()?;
    let id = endpoint.id;
    let conn = Rc::clone(conn);
    let leg = async move {
        let target = Target::new(snapshot, version, &endpoint, &conn, &judged);
        let asked = ask(&conn, &target, whole).await;
        let ended = clock::now();
        match asked {
            Ok((lease, sink, response)) => Some(Won {
                right: Right {
                    permit,
                    _lease: lease,
                    _judged: judged,
                },
                endpoint,
                sink,
                started: now,
                _retry: retry,
                course,
                status: Seen::of(&response, grpc).status(),
                response,
            }),
            Err(failed) => {
                // The permit, which may be that of a probe, outlives the record.
                if let Some(outcome) = failed {
                    let took = attempt::took(now, None, ended);
                    course.record(&endpoint, outcome, took, None, ended);
                }
                drop(permit);
                None
            }
        }
    };
    Some((id, Box::pin(leg)))
}

/// Sends the request and waits for the final head. The error: what the endpoint's record says.
async fn ask(
    conn: &Rc<Conn>,
    target: &Target<'_>,
    whole: Whole,
) -> Result<(Lease, SendStream<Bytes>, Response<RecvStream>), Option<Outcome>> {
    let (lease, mut sender) = open_stream(&conn.core, &conn.workload, target)
        .await
        .map_err(NoConnection::outcome)?;
    let Whole {
        request,
        data,
        trailers,
    } = whole;
    let ends = data.is_empty() && trailers.is_none();
    let Ok((response, sink)) = sender.send_request(request, ends) else {
        lease.retire();
        return Err(Some(Outcome::Abandoned));
    };
    let mut talk = Talk {
        sink,
        response,
        data,
        trailers,
        done: ends,
    };
    let response = poll_fn(|cx| talk.poll(cx)).await;
    let response = response.map_err(|_: h2::Error| Some(Outcome::Reset))?;
    Ok((lease, talk.sink, response))
}

struct Talk {
    sink: SendStream<Bytes>,
    response: ResponseFuture,
    data: VecDeque<Bytes>,
    trailers: Option<HeaderMap>,
    done: bool,
}

impl Talk {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<Response<RecvStream>, h2::Error>> {
        // An endpoint that takes no more may answer all the same: its answer says what is wrong.
        if !self.done && self.poll_send(cx).is_err() {
            self.done = true;
        }
        Pin::new(&mut self.response).poll(cx)
    }

    fn poll_send(&mut self, cx: &mut Context<'_>) -> Result<(), h2::Error> {
        while let Some(chunk) = self.data.front_mut() {
            self.sink.reserve_capacity(chunk.len());
            let room = match self.sink.capacity() {
                0 if chunk.is_empty() => 0,
                0 => match self.sink.poll_capacity(cx) {
                    Poll::Pending => return Ok(()),
                    Poll::Ready(None) => {
                        self.done = true;
                        return Ok(());
                    }
                    Poll::Ready(Some(room)) => room?,
                },
                room => room,
            };
            let part = chunk.split_to(room.min(chunk.len()));
            if chunk.is_empty() {
                self.data.pop_front();
            }
            let last = self.data.is_empty() && self.trailers.is_none();
            self.sink.send_data(part, last)?;
        }
        self.done = true;
        match self.trailers.take() {
            Some(trailers) => self.sink.send_trailers(trailers),
            None => Ok(()),
        }
    }
}
