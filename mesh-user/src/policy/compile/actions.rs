//! Actions of rules and targets, from the model.

use std::sync::Arc;

use crate::{
    model::{
        Rule, Target,
        action::{Actions, PathRewrite, Terminal},
    },
    policy::{
        PortIx, Snapshot, VersionIx,
        action::{ActionPlan, CorsPlan, Edits, MirrorPlan, Prefixes},
        choice::Choice,
        route::TargetPlan,
        session::SessionPlan,
        snapshot::Source,
        sticky::StickyPlan,
    },
};

/// What a rule does.
pub(super) struct OfRule {
    /// The rule's own; there also when only its targets say something.
    pub(super) rule: Option<Arc<ActionPlan>>,
    /// By target: the rule's and its own together.
    targets: Vec<Option<Arc<ActionPlan>>>,
}

impl OfRule {
    /// `resolve` says where a target leads, or that it leads nowhere.
    pub(super) fn new(
        rule: &Rule,
        sources: &[Source],
        mut resolve: impl FnMut(&Target) -> Option<VersionIx>,
    ) -> Self {
        let own = &rule.extra().actions;
        let of_targets = rule.route.iter().map(|target| target.actions.as_deref());
        if *own == Actions::NOTHING && of_targets.clone().all(|actions| actions.is_none()) {
            return Self {
                rule: None,
                targets: Vec::new(),
            };
        }
        let mut everything = std::iter::once(own).chain(of_targets.clone().flatten());
        let prefixes = if everything.any(replaces_prefix) {
            Arc::new(Prefixes::new(&rule.matches, sources))
        } else {
            Arc::default()
        };
        let base = ActionPlan {
            prefixes,
            ..ActionPlan::default()
        };
        let plan = extend(&base, own, &mut resolve);
        let targets = of_targets
            .map(|actions| Some(Arc::new(extend(&plan, actions?, &mut resolve))))
            .collect();
        Self {
            rule: Some(Arc::new(plan)),
            targets,
        }
    }

    /// Of the target at this place.
    pub(super) fn target(&self, at: usize) -> Option<Arc<ActionPlan>> {
        self.targets.get(at).cloned().flatten()
    }
}

/// How a rule chooses among its targets when not in turn.
pub(super) fn choice(
    rule: &Rule,
    snapshot: &Snapshot,
    port: PortIx,
    targets: &[TargetPlan],
) -> Option<Arc<Choice>> {
    let extra = rule.extra();
    if extra.sticky.is_none() && extra.persistence.is_none() {
        return None;
    }
    let name = |target: &TargetPlan| {
        let version = snapshot.version(target.version);
        let port = snapshot.port(version.port).label();
        format!("{port} {} {}", version.name, target.invalid)
    };
    let names: Vec<String> = targets.iter().map(name).collect();
    let scope = format!("{}/{}", snapshot.port(port).label(), rule.name);
    let session = extra.persistence.as_ref();
    let sticky = extra.sticky.as_ref();
    Some(Arc::new(Choice {
        session: session.map(|from| SessionPlan::new(from, &scope, snapshot, targets)),
        sticky: sticky.map(|from| StickyPlan::new(from, &names)),
    }))
}

fn replaces_prefix(actions: &Actions) -> bool {
    let redirect = match &actions.terminal {
        Some(Terminal::Redirect(redirect)) => redirect.path.as_ref(),
        _ => None,
    };
    let rewrite = actions
        .rewrite
        .as_ref()
        .and_then(|rewrite| rewrite.path.as_ref());
    [redirect, rewrite]
        .into_iter()
        .flatten()
        .any(|path| matches!(path, PathRewrite::Prefix(_)))
}

/// What `base` says, then `actions`: edits and mirrors add up, of everything else the later counts.
fn extend(
    base: &ActionPlan,
    actions: &Actions,
    resolve: &mut impl FnMut(&Target) -> Option<VersionIx>,
) -> ActionPlan {
    let edits = |before: &Option<Arc<Edits>>, from| {
        let next = Edits::new(from);
        if next.is_empty() {
            return before.clone();
        }
        let before = before.as_deref().cloned().unwrap_or_default();
        Some(Arc::new(before.then(&next)))
    };
    let rewrite = actions.rewrite.as_ref();
    let mut terminal = actions.terminal.clone().or_else(|| base.terminal.clone());
    let mut mirrors = base.mirrors.clone();
    for mirror in &actions.mirrors {
        match resolve(&mirror.target) {
            Some(version) => mirrors.push(MirrorPlan {
                version,
                fraction: mirror.fraction,
                compare: mirror.compare,
            }),
            // Gateway API: a filter that can't be resolved must not be skipped.
            None => terminal = Some(Terminal::Broken("a mirror leads nowhere".to_owned())),
        }
    }
    ActionPlan {
        request: edits(&base.request, &actions.request_headers),
        response: edits(&base.response, &actions.response_headers),
        hostname: rewrite
            .and_then(|rewrite| rewrite.hostname.as_deref().map(Arc::from))
            .or_else(|| base.hostname.clone()),
        path: rewrite
            .and_then(|rewrite| rewrite.path.clone())
            .or_else(|| base.path.clone()),
        terminal,
        cors: match &actions.cors {
            Some(cors) => Some(Arc::new(CorsPlan::new(cors))),
            None => base.cors.clone(),
        },
        fault: actions.fault.or(base.fault),
        mirrors,
        prefixes: Arc::clone(&base.prefixes),
    }
}
