//! The task of one mirror: an endpoint, a connection, one exchange.

use std::{cell::Cell, rc::Rc, sync::Arc, time::Duration};

use http::Request;

use super::{
    Spoken,
    body::{Queue, State},
    compare::{Pair, Seen},
    exchange::Wire,
};
use crate::{
    clock,
    model::Protocol,
    policy::{SourceIx, VersionIx},
    proxy::{
        core::{Conn, Snap},
        inbound,
        retry::Charged,
        tls::Inside,
        upstream::{NoConnection, Target, dial, permits_spare},
    },
    telemetry::mirror::{MirrorCounts, MirrorResult},
};

/// Longest that a mirror may take from the end of its request: the default of a request time-out.
/// A version's own counts where it is shorter.
const ANSWER_MAX: Duration = Duration::from_secs(15);

/// A copy on its way.
pub(super) struct Sent {
    pub(super) conn: Rc<Conn>,
    pub(super) snapshot: Snap,
    pub(super) source: Option<SourceIx>,
    pub(super) version: VersionIx,
    pub(super) spoken: Spoken,
    pub(super) queue: Rc<Queue>,
    pub(super) pair: Option<Rc<Pair>>,
    pub(super) counts: Arc<MirrorCounts>,
    /// What became of it.
    pub(super) ended: Cell<Option<Result<Seen, MirrorResult>>>,
}

impl Drop for Sent {
    /// Also when the task is cut short: every copy is counted.
    fn drop(&mut self) {
        let ended = self.ended.take().unwrap_or(Err(MirrorResult::CutShort));
        self.counts.count(match ended {
            Ok(_) => MirrorResult::Answered,
            Err(result) => result,
        });
        if let Some(pair) = &self.pair {
            pair.ended(ended.ok());
        }
    }
}

impl Sent {
    pub(super) async fn run(self, request: Request<()>) {
        let span = match self.snapshot.version(self.version).request_timeout {
            Duration::ZERO => ANSWER_MAX,
            span => span.min(ANSWER_MAX),
        };
        let late = async {
            match self.queue.left_open().await {
                State::Over => MirrorResult::FailedBuffer,
                State::Cut => MirrorResult::CutShort,
                State::Ended | State::Open => {
                    tokio::time::sleep(span).await;
                    MirrorResult::FailedTimeout
                }
            }
        };
        let ended = tokio::select! {
            biased;
            // A body that is given up breaks the exchange: why is what counts.
            ended = self.exchange(request) => ended.map_err(|why| match self.queue.state() {
                State::Over => MirrorResult::FailedBuffer,
                State::Cut => MirrorResult::CutShort,
                State::Open | State::Ended => why,
            }),
            late = late => Err(late),
        };
        self.ended.set(Some(ended));
    }

    async fn exchange(&self, request: Request<()>) -> Result<Seen, MirrorResult> {
        let (conn, snapshot) = (&self.conn, &self.snapshot);
        let core = &conn.core;
        let version = snapshot.version(self.version);
        let now = clock::now();
        let endpoint = inbound::pick(conn, snapshot, self.version, None, &[], now)
            .map_err(|_| MirrorResult::SkippedNoEndpoint)?;
        let _permit = version
            .breaker
            .request(&endpoint)
            .map_err(|_| MirrorResult::SkippedOverflow)?;
        let mut charged = Charged::default();
        let judged = inbound::judge(conn, snapshot, self.source, &endpoint, &mut charged, now)
            .map_err(|_| MirrorResult::SkippedInbound)?;
        let mut target = Target::new(snapshot, self.version, &endpoint, conn, &judged);
        let declared = snapshot.port(version.port).protocol;
        let http2 =
            self.spoken == Spoken::Http2 || matches!(declared, Protocol::Http2 | Protocol::Grpc);
        if http2 {
            target.inside = Inside::Http2;
        }
        let mut wire = match core.mirrors.idle.take(&target.key, http2) {
            Some(wire) => wire,
            None => {
                let permits =
                    permits_spare(core, &target).map_err(|_| MirrorResult::SkippedOverflow)?;
                let upstream = dial(core, &conn.workload, &target, permits).await.map_err(
                    |why| match why {
                        NoConnection::Local(_) => MirrorResult::SkippedOverflow,
                        NoConnection::Failed | NoConnection::TimedOut | NoConnection::Tls(_) => {
                            MirrorResult::FailedConnect
                        }
                    },
                )?;
                Wire::new(core, upstream, http2)
                    .await
                    .ok_or(MirrorResult::FailedConnect)?
            }
        };
        let sent = || self.counts.count(MirrorResult::Sent);
        let seen = wire.exchange(request, &self.queue, sent).await?;
        let waited = target.inbound.is_some_and(|breaker| breaker.has_waiters());
        if !core.draining.get() && !waited && !target.breaker.has_waiters() {
            core.mirrors.idle.put(wire, clock::now());
        }
        Ok(seen)
    }
}
