//! Answers that we give ourselves: refusals, and the end of `Max-Forwards`.

use crate::{
    policy::{
        Reject,
        action::{self, Answer},
        rate_limit::{Verdict, decimal},
    },
    proxy::http1::copy::push_field,
};

/// Envoy's older fields, in the order of [`Verdict::draft_03`].
pub(in crate::proxy) const DRAFT_03: [&str; 3] = [
    "x-ratelimit-limit",
    "x-ratelimit-remaining",
    "x-ratelimit-reset",
];

/// Room for the lines of one limit with a short name.
const LIMIT_LINES_BYTES: usize = 128;

/// The `RateLimit` lines of an answer, admitted or not; empty when no limit applies. An origin's
/// own fields stay beside them: repeated list fields are one list.
pub(super) fn limit_lines(verdict: &Verdict) -> Vec<u8> {
    let mut lines = String::new();
    if !verdict.asked.is_empty() {
        lines.reserve(LIMIT_LINES_BYTES);
        lines.push_str("ratelimit-policy: ");
        verdict.push_policy(&mut lines);
        lines.push_str("\r\nratelimit: ");
        verdict.push_limit(&mut lines);
        lines.push_str("\r\n");
    }
    let mut lines = lines.into_bytes();
    if let Some(values) = verdict.draft_03() {
        for (name, value) in DRAFT_03.into_iter().zip(values) {
            push_field(&mut lines, name, value.as_bytes());
        }
    }
    for (name, value) in verdict.fields() {
        push_field(&mut lines, name, value.as_bytes());
    }
    lines
}

/// What of the client's connection an answer has to say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum After {
    /// It stays open; said aloud for HTTP/1.0.
    Open {
        /// The client speaks HTTP/1.0.
        http10: bool,
    },
    /// It is closed.
    Close,
}

impl After {
    pub(super) const fn of(open: bool, http10: bool) -> Self {
        if open {
            Self::Open { http10 }
        } else {
            Self::Close
        }
    }
}

fn end(out: &mut Vec<u8>, after: After) {
    match after {
        After::Open { http10: false } => {}
        After::Open { http10: true } => push_field(out, "connection", b"keep-alive"),
        After::Close => push_field(out, "connection", b"close"),
    }
    out.extend_from_slice(b"\r\n");
}

fn start(out: &mut Vec<u8>, status: u16) {
    let reason = action::reason(status);
    out.extend_from_slice(b"HTTP/1.1 ");
    out.extend_from_slice(decimal(status.into(), &mut [0; 20]).as_bytes());
    out.push(b' ');
    out.extend_from_slice(reason.as_bytes());
    out.extend_from_slice(b"\r\n");
}

fn push_length(out: &mut Vec<u8>, length: usize) {
    let mut digits = [0; 20];
    push_field(
        out,
        "content-length",
        decimal(length as u64, &mut digits).as_bytes(),
    );
}

/// A refusal: its status, one sentence, and its name in `x-mesh-reject`.
pub(super) fn refusal(
    out: &mut Vec<u8>,
    reject: Reject,
    verdict: &Verdict,
    after: After,
    is_head: bool,
    overload: Option<&str>,
) {
    start(out, verdict.status(reject));
    let body = reject.explain();
    push_field(out, "content-type", b"text/plain");
    push_length(out, body.len() + 1);
    push_field(out, "x-mesh-reject", reject.label().as_bytes());
    if reject.is_overload() {
        push_field(out, "x-mesh-overloaded", b"true");
        if let Some(name) = overload {
            push_field(out, name, b"true");
        }
    }
    if reject == Reject::ConnectRefused {
        // RFC 9110, section 15.5.6: a 405 lists what is allowed.
        push_field(
            out,
            "allow",
            b"GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS",
        );
    }
    if let Some(seconds) = verdict.retry_after_s() {
        let mut digits = [0; 20];
        push_field(out, "retry-after", decimal(seconds, &mut digits).as_bytes());
    }
    if verdict.is_envoy_ratelimited() {
        push_field(out, "x-envoy-ratelimited", b"true");
    }
    out.extend_from_slice(&limit_lines(verdict));
    end(out, after);
    if !is_head {
        out.extend_from_slice(body.as_bytes());
        out.push(b'\n');
    }
}

/// An answer of a rule's own. How many bytes of body it has.
pub(super) fn own(
    out: &mut Vec<u8>,
    answer: &Answer,
    verdict: &Verdict,
    after: After,
    is_head: bool,
) -> usize {
    start(out, answer.status);
    for (name, value) in &answer.headers {
        push_field(out, name.as_str(), value.as_bytes());
    }
    let length = answer.content_length();
    if let Some(length) = length {
        push_length(out, length);
    }
    out.extend_from_slice(&limit_lines(verdict));
    end(out, after);
    if is_head || length.is_none() {
        return 0;
    }
    out.extend_from_slice(&answer.body);
    answer.body.len()
}

/// The answer to OPTIONS or TRACE with `Max-Forwards: 0` (RFC 9110, section 7.6.2). TRACE would
/// have to echo the head, credentials included: it is refused instead (section 9.3.8 allows it).
pub(super) fn last_hop(out: &mut Vec<u8>, method: &str, after: After) -> u16 {
    let status = if method == "OPTIONS" { 200 } else { 405 };
    start(out, status);
    push_field(
        out,
        "allow",
        b"GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS",
    );
    push_field(out, "content-length", b"0");
    end(out, after);
    status
}
