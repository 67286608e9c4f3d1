//! How a rule chooses among its targets when not simply in turn: by a session, by a key.

use super::{
    Client, HeaderView, Observer, PortIx, RequestView, RuleIx, Snapshot,
    attribute::Asker,
    route::RulePlan,
    session::{Resumed, SessionPlan},
    sticky::StickyPlan,
};

/// A rule's sessions and sticky split.
#[derive(Debug)]
pub(super) struct Choice {
    pub(super) session: Option<SessionPlan>,
    pub(super) sticky: Option<StickyPlan>,
}

/// Who chooses, and for what.
pub(super) struct Chooser<'a, H> {
    pub(super) snapshot: &'a Snapshot,
    pub(super) port: PortIx,
    pub(super) rule: RuleIx,
    pub(super) client: Client,
    pub(super) request: Option<&'a RequestView<'a, H>>,
}

impl Choice {
    /// For people, what comes first first.
    pub(super) fn texts(&self) -> Vec<String> {
        let session = self
            .session
            .as_ref()
            .map(|it| format!("session of {}", it.text()));
        let sticky = self
            .sticky
            .as_ref()
            .map(|it| format!("hash of {}", it.text()));
        session.into_iter().chain(sticky).collect()
    }

    /// The target of the request's session, else of its key; none when it has neither.
    pub(super) fn choose<H: HeaderView>(
        &self,
        rule: &RulePlan,
        by: &Chooser<'_, H>,
        observer: &mut impl Observer,
    ) -> Option<(usize, Option<Resumed>)> {
        if let (Some(session), Some(request)) = (&self.session, by.request)
            && let Some((target, resumed)) =
                session.resume(by.snapshot, &rule.targets, request, by.client.unix_s)
        {
            if observer.active() {
                observer.chosen_by(&format_args!("session of {}", session.text()));
            }
            return Some((target, Some(resumed)));
        }
        let sticky = self.sticky.as_ref()?;
        let asker = Asker {
            snapshot: by.snapshot,
            port: by.port,
            rule: Some(by.rule),
            version: None,
            client: by.client,
            request: by.request,
        };
        let target = sticky.choose(&asker, &rule.targets)?;
        if observer.active() {
            observer.chosen_by(&format_args!("hash of {}", sticky.text()));
        }
        Some((target, None))
    }
}

#[cfg(test)]
mod tests;
