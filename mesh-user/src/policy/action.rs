//! What a rule does with a request besides sending it somewhere: decided here, done by the engines.
//!
//! In this order: fault (delay, then abort), CORS preflight, an answer of the rule's own, edits of
//! header fields, rewrite, mirrors. [`ActionPlan::decide`] says all of it at once in an [`Action`]
//! that borrows nothing, so that it outlives a delay. The plan of a target already contains what
//! its rule says: [`Snapshot::actions`] gives the one that counts.

mod cors;
mod edits;
mod fault;
mod path;

use std::{fmt, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};

pub(super) use self::{cors::CorsPlan, path::Prefixes};
pub use self::{
    cors::is_origin,
    edits::{Edit, Edits, may_edit},
    fault::{as_grpc, as_http},
};
use super::{Client, HeaderView, Observer, Reject, RequestView, Snapshot, VersionIx, route::Plan};
use crate::model::action::{AbortStatus, Fault, Fraction, PathRewrite, Terminal};

/// The actions of a rule, or of a rule and one of its targets, compiled.
#[derive(Debug, Default)]
pub struct ActionPlan {
    pub(super) request: Option<Arc<Edits>>,
    pub(super) response: Option<Arc<Edits>>,
    pub(super) hostname: Option<Arc<str>>,
    pub(super) path: Option<PathRewrite>,
    pub(super) terminal: Option<Terminal>,
    pub(super) cors: Option<Arc<CorsPlan>>,
    pub(super) fault: Option<Fault>,
    pub(super) mirrors: Vec<MirrorPlan>,
    /// For the replacement of a prefix.
    pub(super) prefixes: Arc<Prefixes>,
}

/// A mirror, compiled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MirrorPlan {
    /// Where to.
    pub version: VersionIx,
    /// Which share of the requests.
    pub fraction: Fraction,
    /// Whether the answers are compared and counted.
    pub compare: bool,
}

/// A request whose actions are decided.
#[derive(Debug)]
pub struct Asked<'a, H> {
    /// Who asks.
    pub client: Client,
    /// What.
    pub request: &'a RequestView<'a, H>,
    /// `http` or `https`: what the client speaks to us.
    pub scheme: &'static str,
    /// The port that it dialled.
    pub port: u16,
    /// Whether it is a gRPC request.
    pub grpc: bool,
}

/// What is done with one request.
#[derive(Debug, Default)]
pub struct Action {
    /// A pause before anything else. No permit is held meanwhile.
    pub delay: Option<Duration>,
    /// Then.
    pub then: Then,
    /// Edits of the request that is forwarded.
    pub request: Option<Arc<Edits>>,
    /// Edits of the final answer that is forwarded; those of an answer of the rule's own are done.
    pub response: Option<Arc<Edits>>,
    /// The new `Host` or `:authority`.
    pub authority: Option<Arc<str>>,
    /// The new path, without the query, which stays.
    pub path: Option<Box<str>>,
    /// Mirrors that get a copy.
    pub mirrors: Vec<MirrorPlan>,
}

impl Action {
    /// Whether the head that is forwarded is another than the one that came.
    pub fn edits_head(&self) -> bool {
        self.request.is_some() || self.authority.is_some() || self.path.is_some()
    }
}

/// What follows the delay.
#[derive(Debug, Default)]
pub enum Then {
    /// It is forwarded.
    #[default]
    Forward,
    /// It is answered.
    Answer(Box<Answer>),
    /// It is refused.
    Refuse(Reject),
}

/// An answer of our own. The engine adds `content-length`, and sends no body to HEAD.
#[derive(Debug)]
pub struct Answer {
    /// HTTP status.
    pub status: u16,
    /// In a gRPC answer, which is a head that is also the trailers.
    pub grpc_status: Option<u8>,
    /// Header fields.
    pub headers: HeaderMap,
    /// Body; empty for 204 and 304.
    pub body: Bytes,
    /// What made it.
    pub kind: Kind,
}

impl Answer {
    fn new(status: u16, kind: Kind) -> Self {
        Self {
            status,
            grpc_status: None,
            headers: HeaderMap::new(),
            body: Bytes::new(),
            kind,
        }
    }

    fn put(&mut self, name: HeaderName, value: HeaderValue) {
        self.headers.append(name, value);
    }

    /// The length of the body, where it is to be said (RFC 9110 §8.6: not in 1xx and 204; a gRPC
    /// answer has none).
    pub fn content_length(&self) -> Option<usize> {
        let says = !matches!(self.status, 100..200 | 204 | 304) && self.grpc_status.is_none();
        says.then_some(self.body.len())
    }
}

/// An action, for the metric and the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// A fault's pause.
    Delay,
    /// A fault's answer.
    Abort,
    /// The answer to a CORS preflight.
    Preflight,
    /// A redirect.
    Redirect,
    /// An answer of the rule's.
    Respond,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Self; 5] = [
        Self::Delay,
        Self::Abort,
        Self::Preflight,
        Self::Redirect,
        Self::Respond,
    ];

    /// Its label.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Delay => "delay",
            Self::Abort => "abort",
            Self::Preflight => "cors_preflight",
            Self::Redirect => "redirect",
            Self::Respond => "respond",
        }
    }
}

/// The actions that were done for one request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Done(u8);

impl Done {
    /// One more.
    pub const fn insert(&mut self, kind: Kind) {
        self.0 |= 1 << kind as u8;
    }

    /// Whether it was done.
    pub const fn has(self, kind: Kind) -> bool {
        self.0 >> kind as u8 & 1 == 1
    }

    /// The faults among them.
    #[must_use]
    pub const fn faults(self) -> Self {
        Self(self.0 & (1 << Kind::Delay as u8 | 1 << Kind::Abort as u8))
    }

    /// Envoy's response flags, joined as there; empty when there are none.
    pub const fn flags(self) -> &'static str {
        match (self.has(Kind::Delay), self.has(Kind::Abort)) {
            (true, true) => "DI,FI",
            (true, false) => "DI",
            (false, true) => "FI",
            (false, false) => "",
        }
    }
}

impl Snapshot {
    /// The actions of what was decided; none when nothing is done but forwarding.
    pub fn actions(&self, plan: &Plan) -> Option<&Arc<ActionPlan>> {
        let rule = self.rule(plan.rule?);
        let all = rule.actions.as_ref()?;
        let target = rule.targets.get(plan.target as usize);
        target
            .and_then(|target| target.actions.as_ref())
            .or(Some(all))
    }
}

impl ActionPlan {
    /// Whether every request is answered without being forwarded: then no target is needed.
    pub(super) const fn answers(&self) -> bool {
        self.terminal.is_some()
    }

    /// Decides. `hit` says whether a request is among such a share: it is asked once for each
    /// share, in the order fault delay, fault abort, mirrors.
    pub fn decide<H: HeaderView>(
        &self,
        asked: &Asked<'_, H>,
        mut hit: impl FnMut(Fraction) -> bool,
        observer: &mut impl Observer,
    ) -> Action {
        if observer.active() {
            self.each_text(|text| observer.action(text));
        }
        let fault = self.fault.unwrap_or_default();
        let delay = fault.delay.filter(|(share, _)| hit(*share));
        let abort = fault.abort.filter(|(share, _)| hit(*share));
        let mut action = Action {
            delay: delay.map(|(_, time)| time),
            ..Action::default()
        };
        if let Some((_, status)) = abort {
            action.then = Then::Answer(Box::new(fault::answer(status, asked.grpc)));
            return action;
        }
        let cors = self.cors.as_ref();
        if let Some(answer) = cors.and_then(|cors| cors.preflight(asked.request)) {
            action.then = Then::Answer(Box::new(answer));
            return action;
        }
        action.response.clone_from(&self.response);
        if let Some(edits) = cors.and_then(|cors| cors.edits(asked.request)) {
            let before = self.response.as_deref().cloned().unwrap_or_default();
            action.response = Some(Arc::new(before.then(&edits)));
        }
        if let Some(terminal) = &self.terminal {
            action.then = self.answer(terminal, asked, action.response.as_deref());
            return action;
        }
        action.request.clone_from(&self.request);
        action.authority.clone_from(&self.hostname);
        let path = self.path.as_ref();
        action.path = path
            .and_then(|path| path::rewritten(path, &self.prefixes, asked))
            .map(String::into_boxed_str);
        let mirrors = self.mirrors.iter().copied();
        action.mirrors = mirrors.filter(|mirror| hit(mirror.fraction)).collect();
        action
    }

    fn answer<H: HeaderView>(
        &self,
        terminal: &Terminal,
        asked: &Asked<'_, H>,
        edits: Option<&Edits>,
    ) -> Then {
        let mut answer = match terminal {
            Terminal::Broken(_) => return Then::Refuse(Reject::FilterUnresolved),
            Terminal::Redirect(redirect) => {
                let mut answer = Answer::new(redirect.status, Kind::Redirect);
                let location = path::location(redirect, &self.prefixes, asked);
                // A path that is no field value can't have come in a request head either.
                let Ok(location) = HeaderValue::from_str(&location) else {
                    return Then::Refuse(Reject::BadRequest);
                };
                answer.put(header::LOCATION, location);
                answer
            }
            Terminal::Respond(response) => {
                let mut answer = Answer::new(response.status, Kind::Respond);
                for (name, value) in &response.headers {
                    if let (Ok(name), Ok(value)) = (
                        HeaderName::from_bytes(name.as_bytes()),
                        HeaderValue::from_str(value),
                    ) {
                        answer.put(name, value);
                    }
                }
                answer.body = Bytes::copy_from_slice(response.body.as_bytes());
                answer
            }
        };
        if let Some(edits) = edits {
            edits.apply(&mut answer.headers);
        }
        Then::Answer(Box::new(answer))
    }

    /// Each action, for people.
    pub(super) fn texts(&self) -> Vec<String> {
        let mut texts = Vec::new();
        self.each_text(|text| texts.push(text.to_string()));
        texts
    }

    fn each_text(&self, mut say: impl FnMut(&dyn fmt::Display)) {
        let fault = self.fault.unwrap_or_default();
        if let Some((share, time)) = fault.delay {
            say(&format_args!("fault: delay {time:?}{}", Share(share)));
        }
        if let Some((share, status)) = fault.abort {
            let status = match status {
                AbortStatus::Http(status) => format!("{status}"),
                AbortStatus::Grpc(status) => format!("gRPC {status}"),
            };
            say(&format_args!("fault: abort with {status}{}", Share(share)));
        }
        if self.cors.is_some() {
            say(&"cors");
        }
        match &self.terminal {
            Some(Terminal::Redirect(redirect)) => {
                say(&format_args!("redirect {}", redirect.status))
            }
            Some(Terminal::Respond(response)) => say(&format_args!("respond {}", response.status)),
            Some(Terminal::Broken(why)) => say(&format_args!("filter unresolved: {why}")),
            None => {}
        }
        for (edits, what) in [(&self.request, "request"), (&self.response, "response")] {
            for edit in edits.iter().flat_map(|edits| edits.iter()) {
                say(&format_args!("{what} header {}", EditText(edit)));
            }
        }
        if let Some(hostname) = &self.hostname {
            say(&format_args!("rewrite host to {hostname}"));
        }
        match &self.path {
            Some(PathRewrite::Full(path)) => say(&format_args!("rewrite path to {path:?}")),
            Some(PathRewrite::Prefix(path)) => say(&format_args!("rewrite prefix to {path:?}")),
            None => {}
        }
        for mirror in &self.mirrors {
            say(&format_args!("mirror{}", Share(mirror.fraction)));
        }
    }
}

struct Share(Fraction);

impl fmt::Display for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Fraction {
            numerator,
            denominator,
        } = self.0;
        if numerator >= denominator {
            return Ok(());
        }
        let percent = f64::from(numerator) * 100.0 / f64::from(denominator.max(1));
        write!(f, " for {percent} %")
    }
}

struct EditText<'a>(&'a Edit);

impl fmt::Display for EditText<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Edit {
            name,
            replaces,
            values,
        } = self.0;
        let sign = match (replaces, values.is_empty()) {
            (true, true) => return write!(f, "{name} removed"),
            (true, false) => "=",
            (false, _) => "+=",
        };
        let values: Vec<String> = values
            .iter()
            .map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned())
            .collect();
        write!(f, "{name} {sign} {}", values.join(", "))
    }
}

/// The reason phrase of a status, for HTTP/1.
pub fn reason(status: u16) -> &'static str {
    StatusCode::from_u16(status)
        .ok()
        .and_then(|status| status.canonical_reason())
        .unwrap_or("Unknown")
}

#[cfg(test)]
mod tests;
