//! What limits have to do yet for a request that they let pass: ask a store, and at its end give a
//! place back or charge bytes.

use std::{mem, sync::Arc, time::Duration};

use super::{
    bucket::Answer,
    global::Question,
    limiter::{At, Limiter, Tally},
    verdict::{AskedList, Verdict},
};
use crate::{clock::MonoNanos, model::limit::StoreFailure, policy::Reject};

/// Held as long as the request lasts. Dropped without [`end`](Self::end) it charges nothing, and
/// its places are free all the same.
#[derive(Debug, Default)]
pub struct Held {
    pub(super) taken: Vec<(Arc<Limiter>, At, Answer)>,
    pub(super) asks: Vec<Ask>,
    /// The limit that would have refused, were it not a dry run: the first.
    pub(super) dry_run: Option<Arc<str>>,
}

/// A question for a store.
#[derive(Debug)]
pub struct Ask {
    limiter: Arc<Limiter>,
    at: At,
    /// What is asked.
    pub question: Question,
    purpose: Purpose,
}

/// What the answer decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    /// Whether the request passes.
    Decides,
    /// Only what is counted.
    DryRun,
    /// Nothing: more tokens are to be held.
    Refill,
}

/// What a store said to a request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StoreAnswer {
    /// Whether the request passes.
    pub admitted: bool,
    /// What is left of the limit.
    pub left: u64,
    /// Time until there is more.
    pub wait: Duration,
    /// Quota and window in seconds, where the store said them.
    pub quota: Option<(u64, u64)>,
    /// Fields for the answer.
    pub fields: Vec<(String, String)>,
}

impl Ask {
    pub(super) fn new(
        limiter: &Arc<Limiter>,
        at: At,
        question: Question,
        purpose: Purpose,
    ) -> Self {
        let limiter = Arc::clone(limiter);
        Self {
            limiter,
            at,
            question,
            purpose,
        }
    }

    /// Whose question it is. It has a store.
    pub const fn limiter(&self) -> &Arc<Limiter> {
        &self.limiter
    }

    /// Whether the request waits for the answer.
    pub fn decides(&self) -> bool {
        self.purpose == Purpose::Decides
    }

    /// Whether no request at all waits for the answer.
    pub fn is_refill(&self) -> bool {
        self.purpose == Purpose::Refill
    }

    /// Counts an answer for which the request did not wait.
    pub fn note(&self, answer: Option<&StoreAnswer>) {
        if self.purpose == Purpose::DryRun {
            self.limiter.count(match answer {
                Some(answer) if answer.admitted => Tally::Admitted,
                Some(_) => Tally::DryRun,
                None => Tally::FailedOpen,
            });
        }
    }
}

impl Held {
    /// Whether a store has to be asked before the request goes on.
    pub fn waits(&self) -> bool {
        self.asks.iter().any(Ask::decides)
    }

    /// Takes the questions for stores.
    pub fn questions(&mut self) -> Vec<Ask> {
        mem::take(&mut self.asks)
    }

    /// The limit that would have refused the request, were it not a dry run.
    pub fn dry_run(&self) -> Option<&str> {
        self.dry_run.as_deref()
    }

    /// The request has ended: its bytes, in both directions, are charged.
    pub fn end(&mut self, bytes: u64, now: MonoNanos) {
        for (limiter, at, _) in mem::take(&mut self.taken) {
            limiter.charge(at, bytes, now);
            limiter.leave(at);
        }
    }

    /// Gives back what was taken, as if the request had not been.
    pub(super) fn refund(&mut self) {
        for (limiter, at, answer) in mem::take(&mut self.taken) {
            limiter.refund(at, answer);
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        for (limiter, at, _) in &self.taken {
            limiter.leave(*at);
        }
    }
}

impl Verdict {
    /// Gives back what was taken: the client went away before the request was let pass.
    pub fn give_back(&mut self) {
        if let Some(held) = &mut self.held {
            held.refund();
        }
    }

    /// Takes the answers of the stores into account; none: the store did not answer. A refusal gives
    /// back what other limits gave.
    pub fn settle(&mut self, answers: Vec<(Ask, Option<StoreAnswer>)>) -> Option<Reject> {
        let mut asked = match mem::take(&mut self.asked) {
            AskedList::None => Vec::new(),
            AskedList::One([one]) => vec![one],
            AskedList::Many(many) => many,
        };
        for (ask, answer) in answers {
            if !ask.decides() {
                ask.note(answer.as_ref());
                continue;
            }
            let limiter = &ask.limiter;
            let Some(answer) = answer else {
                self.without_answer(limiter);
                continue;
            };
            limiter.count(if answer.admitted {
                Tally::Admitted
            } else {
                Tally::Refused
            });
            let mut said = limiter.asked_of_store(ask.at, answer.left, answer.wait);
            if let Some((quota, window_s)) = answer.quota {
                (said.quota, said.window_s) = (quota, super::limiter::window(window_s));
                said.left = answer.left;
            }
            if !answer.admitted && self.refused.is_none() {
                self.refused = Some(asked.len());
                self.set_style(limiter.style());
            }
            asked.push(said);
            self.add_fields(answer.fields);
        }
        self.asked = AskedList::Many(asked);
        let reject = self.reject();
        if reject.is_some() {
            self.give_back();
        }
        reject
    }

    /// What the limit does when its store does not answer.
    pub(super) fn without_answer(&mut self, limiter: &Limiter) {
        let failure = limiter.global().map(super::global::Global::failure);
        if failure == Some(StoreFailure::Closed) {
            limiter.count(Tally::FailedClosed);
            self.store_failed = true;
        } else {
            limiter.count(Tally::FailedOpen);
        }
    }
}
