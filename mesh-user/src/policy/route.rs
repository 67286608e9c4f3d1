//! Which rule, and which version: the version is chosen here, by the rule's weights.

use std::sync::Arc;

use super::{HeaderView, Observer, PortIx, Reject, RequestView, RuleIx, Snapshot, SourceIx, VersionIx, split::Cursors};

/// The rules of one port, indexed so that the cost of a look-up stays flat.
#[derive(Debug, Default)]
pub struct RouteTable {}

/// One rule, compiled.
#[derive(Debug)]
pub struct RulePlan {
    /// Its name.
    pub name: Arc<str>,
    /// Its precedence.
    pub precedence: i32,
    /// Targets: version and weight.
    pub targets: Vec<(VersionIx, u32)>,
}

/// Where a request or connection goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    /// The service port.
    pub port: PortIx,
    /// The rule; none when the service has no rules and all endpoints serve.
    pub rule: Option<RuleIx>,
    /// The version.
    pub version: VersionIx,
}

/// Decides for a request.
///
/// # Errors
/// [`Reject::NoRoute`] when the port has rules and none matches; [`Reject::NoWeight`] when all
/// weights of the rule are 0. (A version without endpoints is found out by `balance::pick`.)
pub fn decide<H: HeaderView>(
    _snapshot: &Snapshot,
    _port: PortIx,
    _source: Option<SourceIx>,
    _request: &RequestView<'_, H>,
    _cursors: &mut Cursors,
    _observer: &mut impl Observer,
) -> Result<Plan, Reject> {
    unimplemented!("policy")
}

/// Decides for an opaque connection: rules that need HTTP never match.
///
/// # Errors
/// As [`decide`].
pub fn decide_tcp(
    _snapshot: &Snapshot,
    _port: PortIx,
    _source: Option<SourceIx>,
    _cursors: &mut Cursors,
    _observer: &mut impl Observer,
) -> Result<Plan, Reject> {
    unimplemented!("policy")
}
