//! What a rule does before anything is forwarded: a pause, an answer of its own.

use std::{future::poll_fn, task::Poll, time::Duration};

use super::{
    answer::{self, After},
    serve::{Going, Next, Session},
};
use crate::{
    clock,
    policy::{
        Reject,
        action::{Answer, Kind, Then},
    },
    proxy::{buffer::HeadBuf, record::RequestLog},
};

impl Session {
    /// Does what comes before forwarding. The end, when there is nothing to forward.
    pub(super) async fn act(&mut self, going: &mut Going, log: &mut RequestLog) -> Option<Next> {
        let (delay, then) = match going.action.as_deref_mut() {
            Some(action) => (action.delay.take(), std::mem::take(&mut action.then)),
            None => return None,
        };
        if let Some(delay) = delay {
            log.actions.insert(Kind::Delay);
            if !self.wait(delay).await {
                log.reject = Some(Reject::DownstreamClosed);
                return Some(Next::Gone);
            }
            // Time-outs are about what is forwarded: they begin now.
            going.complete = clock::now();
        }
        let next = match then {
            Then::Forward => return None,
            Then::Answer(answer) => self.answer(going, &answer, log).await,
            Then::Refuse(reject) => {
                let close = !self.takes_rest(&going.request);
                let request = Some(&going.request);
                self.refuse(log, request, reject, &going.verdict, close)
                    .await
            }
        };
        Some(next)
    }

    /// Holds nothing meanwhile. Whether the client is still there.
    async fn wait(&mut self, delay: Duration) -> bool {
        let end = clock::now().after(delay);
        poll_fn(|cx| {
            if self.client_has_left(cx) {
                return Poll::Ready(false);
            }
            self.timer.poll(cx, end).map(|()| true)
        })
        .await
    }

    async fn answer(&mut self, going: &Going, answer: &Answer, log: &mut RequestLog) -> Next {
        let request = &going.request;
        let open = request.keep_alive && !self.conn.core.draining.get() && self.takes_rest(request);
        let http10 = request.http10;
        let after = After::of(open, http10);
        let mut out = HeadBuf::take();
        let sent = answer::own(&mut out, answer, &going.verdict, after, request.is_head);
        log.actions.insert(answer.kind);
        log.status = answer.status;
        log.grpc_status = answer.grpc_status;
        log.bytes_out = sent as u64;
        self.send(log, &out, open).await
    }
}
