//! Long connections and streams of a worker that are to follow changes of the configuration.
//!
//! Only those whose version's `on-change` is not `keep` are in here: the others cost nothing. After
//! each swap of the snapshot the worker looks whether each still goes where the configuration
//! sends; one that doesn't is due at once or at a random moment of its deadline, and one that does
//! again is due no more.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, Waker},
    time::Duration,
};

use tokio::time::{Instant, Sleep};

use super::core::Core;
use crate::{
    clock::{self, MonoNanos},
    policy::{
        Snapshot,
        held::{Held, Way},
        route::Plan,
        snapshot::EndpointState,
    },
};

/// An answer that has been under way for so long is a stream, which a change may end; a shorter one
/// is left to end by itself.
pub(super) const LONG: Duration = Duration::from_secs(1);

#[derive(Debug)]
struct Watched {
    held: Held,
    due: Cell<Option<MonoNanos>>,
    waker: RefCell<Option<Waker>>,
}

/// The watched flows of a worker.
#[derive(Debug, Default)]
pub(super) struct Flows {
    open: RefCell<HashMap<u64, Rc<Watched>>>,
    next: Cell<u64>,
}

/// One watched flow. Dropping it ends the watch.
#[derive(Debug)]
pub(super) struct Watch {
    core: Rc<Core>,
    number: u64,
    watched: Rc<Watched>,
    /// Armed for this moment.
    sleep: Option<(MonoNanos, Pin<Box<Sleep>>)>,
}

impl Flows {
    /// Watches a flow, if its version's policy wants that.
    pub(super) fn watch(
        core: &Rc<Core>,
        snapshot: &Snapshot,
        plan: &Plan,
        endpoint: &EndpointState,
    ) -> Option<Box<Watch>> {
        let held = Held::new(snapshot, plan, endpoint)?;
        let flows = &core.flows;
        let number = flows.next.get();
        flows.next.set(number + 1);
        let watched = Rc::new(Watched {
            held,
            due: Cell::new(None),
            waker: RefCell::default(),
        });
        flows.open.borrow_mut().insert(number, Rc::clone(&watched));
        // A swap may have come between the decision and now.
        let (current, _) = core.snapshot();
        if current.generation != snapshot.generation {
            flows.look(core, &current, &watched, &mut HashMap::new());
        }
        Some(Box::new(Watch {
            core: Rc::clone(core),
            number,
            watched,
            sleep: None,
        }))
    }

    /// Looks at all flows after a swap.
    pub(super) fn review(&self, core: &Core) {
        let open = self.open.borrow();
        if open.is_empty() {
            return;
        }
        let (snapshot, _) = core.snapshot();
        let mut known = HashMap::new();
        for watched in open.values() {
            self.look(core, &snapshot, watched, &mut known);
        }
    }

    /// `known`: what was found of others that go the same way.
    fn look(
        &self,
        core: &Core,
        snapshot: &Snapshot,
        watched: &Watched,
        known: &mut HashMap<Way, bool>,
    ) {
        let held = &watched.held;
        let holds = match known.get(&held.way) {
            Some(holds) => *holds,
            None => {
                let holds = held.holds_in(snapshot);
                known.insert(held.way.clone(), holds);
                holds
            }
        };
        let due = match (holds, watched.due.get()) {
            (true, _) => None,
            (false, Some(due)) => Some(due),
            (false, None) => {
                let chance = core.rng.borrow_mut().next_u64();
                Some(clock::now().after(held.pause(chance)))
            }
        };
        if due != watched.due.get() {
            watched.due.set(due);
            if let Some(waker) = watched.waker.take() {
                waker.wake();
            }
        }
    }
}

impl Watch {
    /// Ready once the flow is to end; otherwise the task is woken then.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.poll_after(cx, MonoNanos(0))
    }

    /// The same, but not before `earliest`.
    pub(super) fn poll_after(&mut self, cx: &mut Context<'_>, earliest: MonoNanos) -> Poll<()> {
        let Some(due) = self.watched.due.get() else {
            self.sleep = None;
            let mut waker = self.watched.waker.borrow_mut();
            if !waker
                .as_ref()
                .is_some_and(|waker| waker.will_wake(cx.waker()))
            {
                *waker = Some(cx.waker().clone());
            }
            return Poll::Pending;
        };
        let due = due.max(earliest);
        let now = clock::now();
        if now >= due {
            return Poll::Ready(());
        }
        // The next look may take it back.
        self.watched.waker.replace(Some(cx.waker().clone()));
        if self.sleep.as_ref().is_none_or(|(at, _)| *at != due) {
            let at = Instant::now() + due.since(now);
            self.sleep = Some((due, Box::pin(tokio::time::sleep_until(at))));
        }
        match &mut self.sleep {
            Some((_, sleep)) => sleep.as_mut().poll(cx),
            None => Poll::Pending,
        }
    }

    /// How long both sides may take to see the end before they are reset.
    pub(super) fn grace(&self) -> Duration {
        self.watched.held.grace()
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.core.flows.open.borrow_mut().remove(&self.number);
    }
}
