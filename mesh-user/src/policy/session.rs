//! Sessions that stay at the endpoint at which they began (GEP-1619).
//!
//! The client carries a token: which endpoint of which version, since when, last seen when, and a
//! check that only the configuration's salt can make. It holds hashes only, no address. Nothing is
//! kept here: every node reads every token, also after a restart.

mod siphash;
mod token;

use std::{collections::HashMap, sync::Arc};

use http::{HeaderName, HeaderValue, header};

use self::{siphash::SipKey, token::Token};
use super::{
    HeaderView, RequestView, Snapshot,
    action::Edits,
    attribute::cookie,
    route::{Plan, TargetPlan},
    snapshot::{EndpointIx, EndpointState},
};
use crate::{
    clock::MonoNanos,
    model::action::{Persistence, SessionCarrier},
};

/// A session that a request carries, and that still holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resumed {
    /// Its endpoint, in the plan's version.
    pub endpoint: EndpointIx,
    /// When it began, in seconds since the epoch: 32 bits keep a plan small, and are good until 2106.
    pub since: u32,
}

/// A compiled [`Persistence`].
#[derive(Debug)]
pub(super) struct SessionPlan {
    settings: Persistence,
    header: Option<HeaderName>,
    key: SipKey,
    /// Target and endpoint by what tokens say.
    places: HashMap<u64, (u32, EndpointIx)>,
}

impl SessionPlan {
    /// `scope`: what else keeps the tokens of two rules apart.
    pub(super) fn new(
        from: &Persistence,
        scope: &str,
        snapshot: &Snapshot,
        targets: &[TargetPlan],
    ) -> Self {
        let key = SipKey::new(&from.salt, &format!("{scope}/{}", from.name));
        let mut places = HashMap::new();
        for (target, plan) in (0_u32..).zip(targets).filter(|(_, plan)| !plan.invalid) {
            let version = snapshot.version(plan.version);
            let label = snapshot.port(version.port).label();
            for (at, endpoint) in (0_u32..).zip(&version.endpoints) {
                let name = key.endpoint(&label, &version.name, endpoint.address);
                places.entry(name).or_insert((target, EndpointIx(at)));
            }
        }
        let header = (from.carrier == SessionCarrier::Header)
            .then(|| HeaderName::from_bytes(from.name.as_bytes()).ok())
            .flatten();
        Self {
            settings: from.clone(),
            header,
            key,
            places,
        }
    }

    /// For people.
    pub(super) fn text(&self) -> String {
        let carrier = match self.settings.carrier {
            SessionCarrier::Header => "header",
            SessionCarrier::SessionCookie | SessionCarrier::PermanentCookie => "cookie",
        };
        format!("{carrier} {}", self.settings.name)
    }

    /// The target and session of a request, when its endpoint can still be used. The weight of the
    /// target doesn't count.
    pub(super) fn resume<H: HeaderView>(
        &self,
        snapshot: &Snapshot,
        targets: &[TargetPlan],
        request: &RequestView<'_, H>,
        unix_s: u64,
    ) -> Option<(usize, Resumed)> {
        let value = match self.settings.carrier {
            SessionCarrier::Header => request.headers.values(&self.settings.name).next(),
            SessionCarrier::SessionCookie | SessionCarrier::PermanentCookie => {
                cookie(request.headers, &self.settings.name)
            }
        };
        let token = Token::read(value?, &self.key)?;
        if self.is_over(&token, unix_s) {
            return None;
        }
        let (target, endpoint) = *self.places.get(&token.endpoint)?;
        let version = snapshot.version(targets.get(target as usize)?.version);
        let state = version.endpoints.get(endpoint.0 as usize)?;
        let resumed = Resumed {
            endpoint,
            since: u32::try_from(token.since).unwrap_or(u32::MAX),
        };
        // An endpoint that the platform calls unready or that is ejected ends the session.
        (state.healthy && state.live.is_eligible()).then_some((target as usize, resumed))
    }

    fn is_over(&self, token: &Token, unix_s: u64) -> bool {
        let passed = |since: u64, limit: Option<std::time::Duration>| {
            limit.is_some_and(|limit| unix_s.saturating_sub(since) >= limit.as_secs())
        };
        passed(token.since, self.settings.absolute) || passed(token.seen, self.settings.idle)
    }

    /// The field of the answer that carries the session of this endpoint; none when the client has
    /// it already.
    fn field(
        &self,
        snapshot: &Snapshot,
        plan: &Plan,
        endpoint: &EndpointState,
        unix_s: u64,
        secure: bool,
    ) -> Option<Edits> {
        let version = snapshot.version(plan.version);
        let same = plan.session.filter(|session| {
            let at = version.endpoints.get(session.endpoint.0 as usize);
            at.is_some_and(|at| at.id == endpoint.id)
        });
        if same.is_some() && self.settings.idle.is_none() {
            return None;
        }
        let since = same.map_or(unix_s, |session| u64::from(session.since));
        let label = snapshot.port(version.port).label();
        let token = Token {
            endpoint: self.key.endpoint(&label, &version.name, endpoint.address),
            since,
            seen: unix_s,
        };
        let token = token.write(&self.key);
        let mut edits = Edits::default();
        if let Some(name) = &self.header {
            edits.set(name.clone(), HeaderValue::from_str(&token).ok()?);
            return Some(edits);
        }
        let mut cookie = format!("{}={token}; Path=/; HttpOnly", self.settings.name);
        if let (SessionCarrier::PermanentCookie, Some(absolute)) =
            (self.settings.carrier, self.settings.absolute)
        {
            let left = absolute
                .as_secs()
                .saturating_sub(unix_s.saturating_sub(since));
            cookie.push_str(&format!("; Max-Age={left}"));
        }
        if secure {
            cookie.push_str("; Secure");
        }
        edits.add(header::SET_COOKIE, HeaderValue::from_str(&cookie).ok()?);
        Some(edits)
    }
}

/// The endpoint of the request's session, if it can be had now.
pub fn endpoint(snapshot: &Snapshot, plan: &Plan, now: MonoNanos) -> Option<Arc<EndpointState>> {
    let at = plan.session?.endpoint.0 as usize;
    let endpoint = snapshot.version(plan.version).endpoints.get(at)?;
    (endpoint.healthy && endpoint.live.choose(now)).then(|| Arc::clone(endpoint))
}

/// The edits of the answer that carry the session of the endpoint that gave it; none when its rule
/// has no sessions, or the client knows already. `secure`: the client speaks TLS to us.
pub fn answer(
    snapshot: &Snapshot,
    plan: &Plan,
    endpoint: &EndpointState,
    unix_s: u64,
    secure: bool,
) -> Option<Edits> {
    let choice = snapshot.rule(plan.rule?).choice.as_ref()?;
    let session = choice.session.as_ref()?;
    session.field(snapshot, plan, endpoint, unix_s, secure)
}

#[cfg(test)]
mod tests;
