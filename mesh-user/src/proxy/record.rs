//! The one line for each request and each connection, written when its guard is dropped: also when
//! the task was cut short.

use std::{net::SocketAddr, ops::Range, rc::Rc, time::Duration};

use super::{
    buffer::HeadBuf,
    core::{Conn, Snap},
    inbound,
};
use crate::{
    clock::{self, MonoNanos},
    policy::{Reject, RuleIx, SourceIx, VersionIx, action::Done, rate_limit::Held},
    telemetry::{ConnectionRecord, Direction, RequestRecord, Spoken},
};

/// What is known of a connection so far.
#[derive(Debug)]
pub(super) struct ConnectionLog {
    pub(super) conn: Rc<Conn>,
    /// The snapshot that decided: kept for opaque connections only.
    pub(super) snapshot: Option<Snap>,
    pub(super) source: Option<SourceIx>,
    pub(super) rule: Option<RuleIx>,
    pub(super) version: Option<VersionIx>,
    pub(super) endpoint: Option<SocketAddr>,
    pub(super) spoken: Spoken,
    pub(super) requests: u64,
    pub(super) reject: Option<Reject>,
    pub(super) bytes_in: u64,
    pub(super) bytes_out: u64,
    /// What its rate limits have to do at its end.
    pub(super) held: Option<Box<Held>>,
}

impl ConnectionLog {
    /// Counts the connection as opened.
    pub(super) fn open(conn: Rc<Conn>, spoken: Spoken) -> Self {
        conn.core
            .shared
            .telemetry
            .connection_opened(&conn.workload.key, spoken);
        conn.told_protocol(spoken);
        Self {
            conn,
            snapshot: None,
            source: None,
            rule: None,
            version: None,
            endpoint: None,
            spoken,
            requests: 0,
            reject: None,
            bytes_in: 0,
            bytes_out: 0,
            held: None,
        }
    }
}

impl ConnectionLog {
    fn with<R>(&self, to: impl FnOnce(&ConnectionRecord<'_>) -> R) -> R {
        let conn = &self.conn;
        let current;
        let snapshot = match &self.snapshot {
            Some(snapshot) => snapshot,
            None => {
                current = conn.core.snapshot().0;
                &current
            }
        };
        to(&ConnectionRecord {
            snapshot,
            workload: &conn.workload.key,
            direction: conn.direction,
            source: self.source.or_else(|| match conn.direction {
                Direction::Outbound => snapshot.source(&conn.workload.key),
                Direction::Inbound => inbound::source(&conn.core, snapshot, conn.peer.ip()),
            }),
            rule: self.rule,
            version: self.version,
            endpoint: self.endpoint,
            peer: conn.peer,
            destination: conn.destination,
            spoken: self.spoken,
            requests: self.requests,
            server_name: conn.server_name(),
            reject: self.reject,
            bytes_in: self.bytes_in,
            bytes_out: self.bytes_out,
            dry_run: self.held.as_deref().and_then(Held::dry_run),
            duration: clock::now().since(conn.opened),
        })
    }

    /// Counts an opaque connection as opened, once it is known where it goes.
    pub(super) fn tcp_opened(&self) {
        if let Some(snapshot) = &self.snapshot {
            let decided = (self.source, self.rule, self.version);
            self.conn
                .told
                .connection(snapshot, decided, self.endpoint, clock::now());
        }
        self.with(|record| self.conn.core.shared.telemetry.tcp_opened(record));
    }
}

impl Drop for ConnectionLog {
    fn drop(&mut self) {
        let bytes = self.bytes_in + self.bytes_out;
        if let Some(held) = &mut self.held {
            held.end(bytes, clock::now());
        }
        self.with(|record| self.conn.core.shared.telemetry.connection(record));
    }
}

/// Where in a written head the strings of the log line stand.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Spans {
    pub(super) method: Range<usize>,
    pub(super) target: Range<usize>,
    pub(super) authority: Range<usize>,
    pub(super) request_id: Range<usize>,
    pub(super) user_agent: Range<usize>,
}

/// What is known of a request so far. Owns the head as it is sent, which retries and the log line
/// both need.
#[derive(Debug)]
pub(super) struct RequestLog {
    pub(super) conn: Rc<Conn>,
    pub(super) snapshot: Snap,
    pub(super) source: Option<SourceIx>,
    pub(super) rule: Option<RuleIx>,
    pub(super) version: Option<VersionIx>,
    pub(super) endpoint: Option<SocketAddr>,
    pub(super) spoken: Spoken,
    pub(super) head: HeadBuf,
    pub(super) spans: Spans,
    pub(super) status: u16,
    pub(super) grpc_status: Option<u8>,
    pub(super) reject: Option<Reject>,
    /// What its rule did.
    pub(super) actions: Done,
    /// Target and authority as they came, when a rule changed them.
    asked: Option<Box<(Vec<u8>, Vec<u8>)>>,
    pub(super) attempts: u32,
    pub(super) bytes_in: u64,
    pub(super) bytes_out: u64,
    pub(super) started: MonoNanos,
    /// When it ended, if that is known already.
    pub(super) ended: Option<MonoNanos>,
    pub(super) upstream: Option<Duration>,
    /// What its rate limits have to do at its end.
    pub(super) held: Option<Box<Held>>,
}

impl RequestLog {
    pub(super) fn new(
        conn: Rc<Conn>,
        snapshot: Snap,
        source: Option<SourceIx>,
        spoken: Spoken,
        head: HeadBuf,
        started: MonoNanos,
    ) -> Self {
        conn.told.counted();
        Self {
            conn,
            snapshot,
            source,
            rule: None,
            version: None,
            endpoint: None,
            spoken,
            head,
            spans: Spans::default(),
            status: 0,
            grpc_status: None,
            reject: None,
            actions: Done::default(),
            asked: None,
            attempts: 0,
            bytes_in: 0,
            bytes_out: 0,
            started,
            ended: None,
            upstream: None,
            held: None,
        }
    }

    /// The request goes to this endpoint.
    pub(super) fn going_to(&mut self, endpoint: SocketAddr, now: MonoNanos) {
        self.endpoint = Some(endpoint);
        self.conn.told.request(self, now);
    }

    /// A string of the log line.
    fn text(&self, span: &Range<usize>) -> &[u8] {
        self.head.get(span.clone()).unwrap_or_default()
    }

    /// Before the head is written anew: the log line tells what was asked.
    pub(super) fn keep_asked(&mut self) {
        let (target, authority) = (
            self.text(&self.spans.target),
            self.text(&self.spans.authority),
        );
        self.asked = Some(Box::new((target.to_vec(), authority.to_vec())));
        self.head.clear();
        self.spans = Spans::default();
    }

    /// The request's method: a token, so always UTF-8.
    pub(super) fn method(&self) -> &str {
        str::from_utf8(self.text(&self.spans.method)).unwrap_or("")
    }
}

impl Drop for RequestLog {
    fn drop(&mut self) {
        let ended = self.ended.unwrap_or_else(clock::now);
        if let Some(held) = &mut self.held {
            held.end(self.bytes_in + self.bytes_out, ended);
        }
        self.conn.told.request(self, ended);
        let (target, authority) = match &self.asked {
            Some(asked) => (&*asked.0, &*asked.1),
            None => (
                self.text(&self.spans.target),
                self.text(&self.spans.authority),
            ),
        };
        self.conn.core.shared.telemetry.request(&RequestRecord {
            snapshot: &self.snapshot,
            workload: &self.conn.workload.key,
            direction: self.conn.direction,
            source: self.source,
            rule: self.rule,
            version: self.version,
            endpoint: self.endpoint,
            peer: self.conn.peer,
            destination: self.conn.destination,
            spoken: self.spoken,
            method: self.text(&self.spans.method),
            target,
            authority,
            request_id: self.text(&self.spans.request_id),
            user_agent: self.text(&self.spans.user_agent),
            status: self.status,
            grpc_status: self.grpc_status,
            reject: self.reject,
            actions: self.actions,
            attempts: self.attempts,
            bytes_in: self.bytes_in,
            bytes_out: self.bytes_out,
            duration: ended.since(self.started),
            upstream: self.upstream,
            dry_run: self.held.as_deref().and_then(Held::dry_run),
        });
    }
}
