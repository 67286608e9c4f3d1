//! More endpoints for a request that takes long: when to ask the next one, and whose answer counts.
//!
//! What the legs do is the engines' business ([`super::http1`], [`super::http2`]). Dropping a leg
//! cancels it: its connection or stream is reset and its permits come back.

use std::{
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use tokio::time::{Instant, Sleep};

use super::retry::On;
use crate::policy::retry::is_idempotent;

/// An answer that a leg brought: its head only.
pub(super) trait Answer {
    /// Its status; of gRPC what its status means in HTTP, when it stands in the head.
    fn status(&self) -> u16;
    /// Another answer counts: only the endpoint's record remembers this one.
    fn discard(self);
}

/// A leg: none when it failed, which it has recorded.
pub(super) type Leg<'a, A> = Pin<Box<dyn Future<Output = Option<A>> + 'a>>;

/// A leg that was begun, and at which endpoint.
type Begun<'a, A> = Option<(u64, Leg<'a, A>)>;

/// The hedges of one attempt.
pub(super) struct Hedges<'a, A> {
    after: Duration,
    left: u32,
    sleep: Pin<Box<Sleep>>,
    legs: Vec<Leg<'a, A>>,
    /// Endpoints that were asked.
    pub(super) tried: Vec<u64>,
    /// How many legs were begun.
    pub(super) begun: u32,
}

impl<'a, A: Answer> Hedges<'a, A> {
    /// For a request of this method, if its terms want hedges. `first`: the endpoint that was asked.
    pub(super) fn new(on: On<'_>, method: &str, tried: &[u64], first: u64) -> Option<Box<Self>> {
        let hedge = on.terms.hedge?;
        if !hedge.non_idempotent && !is_idempotent(method) {
            return None;
        }
        let after = on.terms.hedge_after()?;
        let mut tried = tried.to_vec();
        tried.push(first);
        Some(Box::new(Self {
            after,
            left: hedge.max,
            sleep: Box::pin(tokio::time::sleep(after)),
            legs: Vec::new(),
            tried,
            begun: 0,
        }))
    }

    /// How many legs are under way.
    pub(super) fn in_flight(&self) -> usize {
        self.legs.len()
    }

    /// The first answer that counts: a good one, or any when nobody else may still answer.
    /// `alone`: the first endpoint is out of the race. `start` begins a leg at an endpoint that was
    /// not asked; it is asked when it is time for one.
    pub(super) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        alone: bool,
        start: &mut dyn FnMut(&[u64]) -> Begun<'a, A>,
    ) -> Poll<A> {
        loop {
            let mut at = 0;
            while let Some(leg) = self.legs.get_mut(at) {
                match leg.as_mut().poll(cx) {
                    Poll::Pending => at += 1,
                    Poll::Ready(None) => drop(self.legs.swap_remove(at)),
                    Poll::Ready(Some(answer)) => {
                        drop(self.legs.swap_remove(at));
                        if answer.status() < 500 || (alone && self.legs.is_empty()) {
                            return Poll::Ready(answer);
                        }
                        answer.discard();
                    }
                }
            }
            if alone || self.left == 0 || self.sleep.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
            // No other endpoint, or no right to ask it: there will be none later either.
            let Some((endpoint, leg)) = start(&self.tried) else {
                self.left = 0;
                return Poll::Pending;
            };
            self.tried.push(endpoint);
            self.legs.push(leg);
            self.left -= 1;
            self.begun += 1;
            let next = Instant::now() + self.after;
            self.sleep.as_mut().reset(next);
        }
    }

    /// Who is left once the first endpoint is out: ready with none when nobody is.
    pub(super) fn poll_rest(&mut self, cx: &mut Context<'_>) -> Poll<Option<A>> {
        match self.poll(cx, true, &mut |_| None) {
            Poll::Ready(answer) => Poll::Ready(Some(answer)),
            Poll::Pending if self.legs.is_empty() => Poll::Ready(None),
            Poll::Pending => Poll::Pending,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{cell::RefCell, future::poll_fn, rc::Rc};

    use super::*;

    struct Brought(u16, Rc<RefCell<Vec<u16>>>);

    impl Answer for Brought {
        fn status(&self) -> u16 {
            self.0
        }
        fn discard(self) {
            self.1.borrow_mut().push(self.0);
        }
    }

    fn hedges<'a>(left: u32, after_ms: u64) -> Hedges<'a, Brought> {
        let after = Duration::from_millis(after_ms);
        Hedges {
            after,
            left,
            sleep: Box::pin(tokio::time::sleep(after)),
            legs: Vec::new(),
            tried: vec![0],
            begun: 0,
        }
    }

    /// A leg that answers after so many milliseconds; status 0: it fails.
    fn leg<'a>(ms: u64, status: u16, out: &Rc<RefCell<Vec<u16>>>) -> Leg<'a, Brought> {
        let out = Rc::clone(out);
        Box::pin(async move {
            tokio::time::sleep(Duration::from_millis(ms)).await;
            (status > 0).then_some(Brought(status, out))
        })
    }

    #[tokio::test]
    async fn hedge_takes_the_first_good_answer_and_asks_each_endpoint_once() {
        let out = Rc::new(RefCell::new(Vec::new()));
        let mut hedges = hedges(3, 10);
        let mut plan = vec![leg(500, 200, &out), leg(5, 503, &out), leg(7, 200, &out)].into_iter();
        let began = Instant::now();
        let mut asked = Vec::new();
        let won = poll_fn(|cx| {
            hedges.poll(cx, false, &mut |tried| {
                asked.push(tried.to_vec());
                Some((tried.len() as u64, plan.next().unwrap()))
            })
        })
        .await;
        assert_eq!(won.status(), 200);
        // The third leg begins after 30 ms and answers 7 ms later.
        let took = began.elapsed().as_millis();
        assert!((37..400).contains(&took), "{took} ms");
        assert_eq!(asked, [vec![0], vec![0, 1], vec![0, 1, 2]]);
        assert_eq!(*out.borrow(), [503]);
        assert_eq!(hedges.in_flight(), 1, "the first leg still waits");
    }

    #[tokio::test]
    async fn hedge_alone_takes_the_last_answer_even_a_bad_one() {
        let out = Rc::new(RefCell::new(Vec::new()));
        let mut hedges = hedges(2, 1);
        let mut plan = vec![leg(200, 500, &out), leg(260, 503, &out)].into_iter();
        let mut start = |tried: &[u64]| Some((tried.len() as u64, plan.next()?));
        let asked = tokio::time::timeout(
            Duration::from_millis(60),
            poll_fn(|cx| hedges.poll(cx, false, &mut start)),
        );
        assert!(asked.await.is_err());
        assert_eq!(hedges.in_flight(), 2);
        let won = poll_fn(|cx| hedges.poll_rest(cx)).await.unwrap();
        assert_eq!(won.status(), 503);
        assert_eq!(*out.borrow(), [500]);
    }

    #[tokio::test]
    async fn hedge_without_another_endpoint_or_right_gives_up_asking() {
        let mut hedges = hedges(5, 1);
        let mut asked = 0;
        let waited = tokio::time::timeout(
            Duration::from_millis(50),
            poll_fn(|cx| {
                hedges.poll(cx, false, &mut |_| {
                    asked += 1;
                    None
                })
            }),
        );
        assert!(waited.await.is_err());
        assert_eq!(asked, 1);
        assert!(poll_fn(|cx| hedges.poll_rest(cx)).await.is_none());
    }
}
