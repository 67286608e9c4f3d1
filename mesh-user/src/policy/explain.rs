//! Why a request goes where it goes: the data path's own decision code with a recording observer.

use std::{net::SocketAddr, sync::Arc};

use serde::Serialize;

use super::{
    HeaderView, PortIx, Reject, RequestView, RuleIx, Snapshot, SourceIx,
    breaker::Gauges,
    describe::{EndpointRow, TargetRow},
    split::Cursors,
};
use crate::{
    clock::MonoNanos,
    model::{BreakerPolicy, kernel_table::Path},
};

/// The whole answer of `mesh explain`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Explanation {
    /// `namespace/name` of the service.
    pub service: String,
    /// Port number.
    pub port: u16,
    /// Who decides for the port.
    pub path: Path,
    /// What forced it.
    pub path_reason: String,
    /// The workload that asks, `namespace/name`; none when it is unknown.
    pub source: Option<Arc<str>>,
    /// Every rule that was tried, in order; the last one matched, unless none did.
    pub tried: Vec<TriedRule>,
    /// The rule that decides; none: implicit route, or no match.
    pub rule: Option<Arc<str>>,
    /// Its index, to compare with a live decision.
    #[serde(skip)]
    pub rule_ix: Option<RuleIx>,
    /// All targets of the rule with their shares.
    pub targets: Vec<TargetRow>,
    /// The version that is next in turn.
    pub next: Option<Arc<str>>,
    /// Endpoints of that version with their state.
    pub endpoints: Vec<EndpointRow>,
    /// Rate limits: what they would say now. Nothing is spent.
    pub limits: Vec<LimitState>,
    /// Caps of the version.
    pub caps: Option<BreakerPolicy>,
    /// What of the caps is used now.
    pub gauges: Option<Gauges>,
    /// How it ends.
    pub outcome: Fate,
}

/// One rule that was tried.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TriedRule {
    /// Rule name.
    pub rule: Arc<str>,
    /// Precedence.
    pub precedence: i32,
    /// The first condition that did not hold, of the alternative that came furthest; none when
    /// the rule matched.
    pub failed: Option<String>,
}

/// What one rate limit would say.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LimitState {
    /// Policy name.
    pub name: String,
    /// The bucket's key: `source.workload=shop/client`; empty for a limit without key.
    pub key: String,
    /// Requests left now, before this one.
    pub left: u64,
    /// Whether this request would be admitted.
    pub admitted: bool,
}

/// How a request would end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Fate {
    /// Refused: label, HTTP status and sentence.
    Refused {
        /// Why.
        reject: Reject,
        /// HTTP status of the answer.
        status: u16,
        /// One sentence.
        because: &'static str,
    },
    /// Forwarded to one of these.
    Forwarded {
        /// The endpoints that may be chosen.
        to: Vec<SocketAddr>,
    },
}

/// Explains a request. `cursors` are not moved.
pub fn explain<H: HeaderView>(
    _snapshot: &Snapshot,
    _port: PortIx,
    _source: Option<SourceIx>,
    _request: &RequestView<'_, H>,
    _cursors: &Cursors,
    _now: MonoNanos,
) -> Explanation {
    unimplemented!("policy")
}
