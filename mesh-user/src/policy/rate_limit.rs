//! Rate limits: of this node, exact over its cores, or shared with other nodes (SEMANTICS §5.8).
//!
//! In any span T a bucket of this node admits at most burst + rate x T, whatever the number of
//! cores. A limit belongs to the policy or rule that states it: the versions and ports that it
//! covers share its buckets, unless `version` is part of the key. A missing attribute (no such
//! header, no identity, an opaque connection's path) is a value like any other: all requests
//! without it share one bucket.
//!
//! [`admit`] decides what can be decided at once. What a store has to be asked is in
//! [`Verdict::held`]; [`Verdict::settle`] takes the answers.

use std::sync::Arc;

use super::{
    Client, HeaderView, Observer, RequestView, Snapshot,
    attribute::Asker,
    matcher::{Entry, SourceSet},
    route::Plan,
    snapshot::Source,
};
use crate::{clock::MonoNanos, model::Match};

mod bucket;
mod global;
mod held;
mod keyed;
mod lease;
mod limiter;
mod places;
mod rows;
mod verdict;

use bucket::Answer;
use global::Known;
pub use global::{Bucket, Global, Question};
use held::Purpose;
pub use held::{Ask, Held, StoreAnswer};
pub use keyed::KEYS_MAX;
pub use lease::{Grant, LEASES_MAX};
use limiter::At;
pub use limiter::{Limiter, Tally};
pub use rows::{LimitRow, StoreRow};
pub use verdict::{Asked, AskedList, Style, Verdict, decimal};

/// A limiter, and for which requests.
#[derive(Clone, Debug)]
pub struct Limit {
    /// The limiter.
    pub limiter: Arc<Limiter>,
    /// Only those for which one of these holds; none: all.
    when: Option<Arc<When>>,
}

/// Conditions, compiled for one snapshot.
#[derive(Debug)]
struct When {
    entries: Vec<Entry>,
    sets: Vec<SourceSet>,
}

impl Limit {
    pub(super) fn new(limiter: Arc<Limiter>, matches: &[Match], sources: &[Source]) -> Self {
        if matches.is_empty() {
            return Self {
                limiter,
                when: None,
            };
        }
        let mut sets = Vec::new();
        let entries = matches.iter().map(|condition| {
            let set = condition.source.as_ref().map(|source| {
                sets.push(SourceSet::new(source, sources));
                sets.len() as u32 - 1
            });
            Entry::new(0, condition, set)
        });
        let entries = entries.collect();
        Self {
            limiter,
            when: Some(Arc::new(When { entries, sets })),
        }
    }

    fn holds<H: HeaderView>(&self, asker: &Asker<'_, H>) -> bool {
        self.when.as_deref().is_none_or(|when| {
            when.entries.iter().any(|entry| {
                entry
                    .first_failure(&when.sets, asker.client.source, asker.request, None)
                    .is_none()
            })
        })
    }

    /// Whether it is for every request.
    pub(super) const fn is_for_all(&self) -> bool {
        self.when.is_none()
    }

    fn is_plain(&self) -> bool {
        self.when.is_none() && self.limiter.plain
    }
}

/// Asks every limit of the rule and of the version, once per request. When one refuses, the tokens
/// that the others gave are returned to them. `request` is none for an opaque connection.
pub fn admit<H: HeaderView>(
    snapshot: &Snapshot,
    plan: &Plan,
    client: impl Into<Client>,
    request: Option<&RequestView<'_, H>>,
    now: MonoNanos,
    observer: &mut impl Observer,
) -> Verdict {
    let (of_rule, of_version) = limits(snapshot, plan);
    match (of_rule, of_version) {
        ([], []) => Verdict::default(),
        ([], [limit]) | ([limit], []) if limit.is_plain() && !observer.active() => {
            let limiter = &limit.limiter;
            let at = limiter.at(&Asker::of(snapshot, plan, client.into(), request));
            let answer = limiter.take(at, now);
            let refused = (!answer.admitted).then_some(0);
            limiter.count(if answer.admitted {
                Tally::Admitted
            } else {
                Tally::Refused
            });
            let mut verdict = Verdict {
                asked: AskedList::One([limiter.asked(at, answer, true)]),
                refused,
                ..Verdict::default()
            };
            if refused.is_some() {
                verdict.set_style(limiter.style());
            }
            verdict
        }
        _ => {
            let asker = Asker::of(snapshot, plan, client.into(), request);
            let admission = Admission::new(&asker, of_rule, of_version, now);
            let verdict = admission.admit();
            admission.tell(&verdict, observer);
            verdict
        }
    }
}

fn limits<'s>(snapshot: &'s Snapshot, plan: &Plan) -> (&'s [Limit], &'s [Limit]) {
    let of_rule = plan.rule.map(|rule| &*snapshot.rule(rule).limits);
    (
        of_rule.unwrap_or_default(),
        &snapshot.version(plan.version).limits,
    )
}

/// What [`admit`] would say now. Nothing is spent, and `left` is what there is before the request. A
/// store that would have to be asked is taken to admit.
pub fn peek<H: HeaderView>(
    snapshot: &Snapshot,
    plan: &Plan,
    client: impl Into<Client>,
    request: Option<&RequestView<'_, H>>,
    now: MonoNanos,
    observer: &mut impl Observer,
) -> Verdict {
    let asker = Asker::of(snapshot, plan, client.into(), request);
    let (of_rule, of_version) = limits(snapshot, plan);
    Admission::new(&asker, of_rule, of_version, now).look(observer)
}

/// One request and the limits that apply to it.
struct Admission<'a, H> {
    asker: &'a Asker<'a, H>,
    /// Limits of this node, such of stores, and those that only count.
    local: Vec<(&'a Arc<Limiter>, At)>,
    global: Vec<(&'a Arc<Limiter>, At)>,
    dry: Vec<(&'a Arc<Limiter>, At)>,
    now: MonoNanos,
}

impl<'a, H: HeaderView> Admission<'a, H> {
    fn new(
        asker: &'a Asker<'a, H>,
        of_rule: &'a [Limit],
        of_version: &'a [Limit],
        now: MonoNanos,
    ) -> Self {
        let mut admission = Self {
            asker,
            local: Vec::with_capacity(of_rule.len() + of_version.len()),
            global: Vec::new(),
            dry: Vec::new(),
            now,
        };
        for limit in of_rule.iter().chain(of_version) {
            if !limit.holds(asker) {
                continue;
            }
            let limiter = &limit.limiter;
            let list = if limiter.policy().dry_run {
                &mut admission.dry
            } else if limiter.global().is_some() {
                &mut admission.global
            } else {
                &mut admission.local
            };
            list.push((limiter, limiter.at(asker)));
        }
        admission
    }

    /// Looks first, so that a refusal spends nothing; takes then, and gives back what it took when
    /// another core was faster at one of them. Stores come last: what they give is not returned.
    fn admit(&self) -> Verdict {
        let look = self.look_local();
        if look.refused.is_some() {
            return self.refused(look);
        }
        let mut held = Held::default();
        for (at, (limiter, place)) in self.local.iter().enumerate() {
            let answer = limiter.take(*place, self.now);
            if !answer.admitted {
                held.refund();
                // A refusal stays one, even if a second look finds room again.
                return self.refused(Verdict {
                    refused: Some(at),
                    ..self.look_local()
                });
            }
            held.taken.push((Arc::clone(limiter), *place, answer));
        }
        let asked = held
            .taken
            .iter()
            .map(|(limiter, at, answer)| limiter.asked(*at, *answer, true));
        let mut verdict = Verdict {
            asked: AskedList::Many(asked.collect()),
            ..Verdict::default()
        };
        self.ask_stores(&mut verdict, &mut held);
        if verdict.reject().is_some() {
            held.refund();
            return verdict;
        }
        for (limiter, _) in &self.local {
            limiter.count(Tally::Admitted);
        }
        self.ask_dry(&mut held);
        let plain = |(limiter, ..): &(Arc<Limiter>, At, Answer)| limiter.plain;
        if !held.asks.is_empty() || held.dry_run.is_some() || !held.taken.iter().all(plain) {
            verdict.held = Some(Box::new(held));
        }
        verdict
    }

    fn look_local(&self) -> Verdict {
        let answers: Vec<Answer> = self
            .local
            .iter()
            .map(|(limiter, at)| limiter.peek(*at, self.now))
            .collect();
        let refused = answers.iter().position(|answer| !answer.admitted);
        let asked = self
            .local
            .iter()
            .zip(&answers)
            .map(|((limiter, at), answer)| limiter.asked(*at, *answer, false));
        Verdict {
            asked: AskedList::Many(asked.collect()),
            refused,
            ..Verdict::default()
        }
    }

    /// Counts a refusal by a limit of this node.
    fn refused(&self, mut verdict: Verdict) -> Verdict {
        if let Some((limiter, _)) = verdict.refused.and_then(|at| self.local.get(at)) {
            limiter.count(Tally::Refused);
            verdict.set_style(limiter.style());
        }
        verdict
    }

    fn ask_stores(&self, verdict: &mut Verdict, held: &mut Held) {
        let AskedList::Many(mut asked) = std::mem::take(&mut verdict.asked) else {
            return;
        };
        for (limiter, at) in &self.global {
            let Some(global) = limiter.global() else {
                continue;
            };
            let part = limiter.part_of(*at);
            match global.take(self.asker, limiter.policy(), part, self.now) {
                Known::Nothing => {}
                Known::Served { left, wait, refill } => {
                    limiter.count(Tally::Admitted);
                    asked.push(limiter.asked_of_store(*at, left, wait));
                    let refill =
                        refill.map(|question| Ask::new(limiter, *at, question, Purpose::Refill));
                    held.asks.extend(refill);
                }
                Known::Empty { wait } => {
                    limiter.count(Tally::Refused);
                    verdict.refused = verdict.refused.or(Some(asked.len()));
                    verdict.set_style(limiter.style());
                    asked.push(limiter.asked_of_store(*at, 0, wait));
                }
                Known::Down => verdict.without_answer(limiter),
                Known::Ask(question) => {
                    held.asks
                        .push(Ask::new(limiter, *at, question, Purpose::Decides));
                }
            }
            if verdict.reject().is_some() {
                break;
            }
        }
        verdict.asked = AskedList::Many(asked);
    }

    /// Limits that only count are asked last: a request that is refused is none of theirs.
    fn ask_dry(&self, held: &mut Held) {
        for (limiter, at) in &self.dry {
            let tally =
                match limiter.global() {
                    None => {
                        let answer = limiter.take(*at, self.now);
                        if answer.admitted {
                            held.taken.push((Arc::clone(limiter), *at, answer));
                            Tally::Admitted
                        } else {
                            Tally::DryRun
                        }
                    }
                    Some(global) => {
                        let part = limiter.part_of(*at);
                        match global.take(self.asker, limiter.policy(), part, self.now) {
                            Known::Nothing => continue,
                            Known::Served { refill, .. } => {
                                held.asks.extend(refill.map(|question| {
                                    Ask::new(limiter, *at, question, Purpose::Refill)
                                }));
                                Tally::Admitted
                            }
                            Known::Empty { .. } => Tally::DryRun,
                            Known::Down => Tally::FailedOpen,
                            Known::Ask(question) => {
                                held.asks
                                    .push(Ask::new(limiter, *at, question, Purpose::DryRun));
                                continue;
                            }
                        }
                    }
                };
            limiter.count(tally);
            if tally == Tally::DryRun && held.dry_run.is_none() {
                held.dry_run = Some(Arc::clone(&limiter.name));
            }
        }
    }

    /// What a watched decision said.
    fn tell(&self, verdict: &Verdict, observer: &mut impl Observer) {
        if !observer.active() {
            return;
        }
        for ((limiter, _), asked) in self.local.iter().zip(verdict.asked.iter()) {
            // When one refuses nothing is spent: who has something left would have admitted.
            let admitted = verdict.refused.is_none() || asked.left > 0;
            let key = limiter.key_text(self.asker);
            observer.limit(&asked.name, &key, asked.left, admitted);
        }
    }

    /// Everything that the limits would say, spending nothing.
    fn look(&self, observer: &mut impl Observer) -> Verdict {
        let mut verdict = self.look_local();
        self.tell(&verdict, observer);
        if let Some((limiter, _)) = verdict.refused.and_then(|at| self.local.get(at)) {
            verdict.set_style(limiter.style());
        }
        let AskedList::Many(mut asked) = std::mem::take(&mut verdict.asked) else {
            return verdict;
        };
        let shared = self.global.iter().chain(&self.dry);
        for (limiter, at) in shared {
            let dry = limiter.policy().dry_run;
            // The first that refuses decides, and no other is asked then.
            let decided = dry || verdict.reject().is_some();
            let (admitted, said, note) = match limiter.global() {
                None => {
                    let answer = limiter.peek(*at, self.now);
                    let said = limiter.asked(*at, answer, false);
                    (answer.admitted, Some(said), String::new())
                }
                Some(global) => {
                    let part = limiter.part_of(*at);
                    let (known, note) = global.peek(self.asker, limiter.policy(), part, self.now);
                    let (admitted, said) = match known {
                        Known::Nothing | Known::Ask(_) => (true, None),
                        Known::Served { left, wait, .. } => {
                            (true, Some(limiter.asked_of_store(*at, left, wait)))
                        }
                        Known::Empty { wait } => {
                            (false, Some(limiter.asked_of_store(*at, 0, wait)))
                        }
                        Known::Down => {
                            let closed =
                                global.failure() == crate::model::limit::StoreFailure::Closed;
                            verdict.store_failed |= closed && !decided;
                            (!closed, None)
                        }
                    };
                    (admitted, said, note)
                }
            };
            if observer.active() {
                let left = said.as_ref().map_or(0, |asked| asked.left);
                let key = limiter.key_text(self.asker);
                observer.limit(&limiter.name, &key, left, admitted);
                let note = match (dry, admitted) {
                    (true, true) => format!("dry run {note}"),
                    (true, false) => format!("dry run: would refuse {note}"),
                    (false, _) => note,
                };
                observer.limit_note(note.trim_end());
            }
            if let Some(said) = said.filter(|_| !dry) {
                if !admitted && !decided {
                    verdict.refused = Some(asked.len());
                    verdict.set_style(limiter.style());
                }
                asked.push(said);
            }
        }
        verdict.asked = AskedList::Many(asked);
        verdict
    }
}

#[cfg(test)]
mod tests;
