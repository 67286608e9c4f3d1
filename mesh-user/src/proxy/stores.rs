//! Stores of rate limits that are shared with other nodes.
//!
//! All workers' questions go to one thread of their own, `mesh-limits`, which is made with the first
//! of them: it keeps one connection to each store, asks for the tokens of a key once for all that
//! wait for them, and knows when a store is dead. A request waits at most the store's time-out; what
//! then becomes of it says the limit's `failure`.

mod circuit;
mod envoy;
mod link;
mod message;
mod redis;

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    future::poll_fn,
    pin::pin,
    rc::Rc,
    sync::{Arc, OnceLock},
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    sync::{mpsc, oneshot},
    task::LocalSet,
    time::timeout,
};

use self::{circuit::Circuit, envoy::Envoy, redis::Redis};
use super::core::Core;
use crate::{
    clock,
    model::limit::{RateLimitService, StoreKind},
    policy::{
        Reject,
        rate_limit::{Ask, Bucket, Grant, Held, Limiter, Question, StoreAnswer, Verdict},
    },
};

/// Questions on their way to the thread; those beyond are answered as if the store were dead.
const QUEUE: usize = 1_024;
/// Questions that wait for a store. A dead one holds each for its time-out.
const WAITING_MAX: usize = 4_096;
/// A store that nobody asked for so long is let go of.
const UNUSED: Duration = Duration::from_secs(300);
/// How often that is looked at.
const LOOK: Duration = Duration::from_secs(30);

/// The way to the thread.
#[derive(Debug, Default)]
pub(super) struct Stores(OnceLock<Option<mpsc::Sender<Job>>>);

/// A question, and what its answer is for.
#[derive(Debug)]
struct Job {
    limiter: Arc<Limiter>,
    question: Question,
    then: Then,
}

#[derive(Debug)]
enum Then {
    /// A request waits.
    Reply(oneshot::Sender<Option<StoreAnswer>>),
    /// It is counted.
    Note(Ask),
    /// More tokens are held.
    Refill,
}

impl Then {
    fn has_gone(&self) -> bool {
        matches!(self, Self::Reply(to) if to.is_closed())
    }

    fn end(self, answer: Option<StoreAnswer>) {
        match self {
            // Who waited may have gone.
            Self::Reply(to) => drop(to.send(answer)),
            Self::Note(ask) => ask.note(answer.as_ref()),
            Self::Refill => {}
        }
    }
}

impl Stores {
    /// Hands a question over; false: nobody takes it.
    fn send(&self, job: Job) -> bool {
        let sender = self.0.get_or_init(|| {
            let (sender, jobs) = mpsc::channel(QUEUE);
            let thread = std::thread::Builder::new().name("mesh-limits".to_owned());
            let started = thread.spawn(move || serve(jobs));
            if let Err(error) = &started {
                tracing::error!(%error, "no thread for shared rate limits");
            }
            started.ok().map(|_| sender)
        });
        let Some(sender) = sender else {
            return false;
        };
        match sender.try_send(job) {
            Ok(()) => true,
            Err(mpsc::error::TrySendError::Full(job) | mpsc::error::TrySendError::Closed(job)) => {
                if let Question::Tokens { key, .. } = &job.question
                    && let Some(global) = job.limiter.global()
                {
                    global.failed(key);
                }
                job.then.end(None);
                false
            }
        }
    }
}

/// Asks for what a request waits for, and settles its verdict. `gone`: whether its client has gone;
/// it is then given up, and what other limits gave is given back.
///
/// # Errors
/// [`Reject::RateLimited`], [`Reject::RateLimitService`], [`Reject::DownstreamClosed`].
pub(super) async fn ask(
    core: &Core,
    verdict: &mut Verdict,
    mut gone: impl FnMut(&mut Context<'_>) -> bool,
) -> Result<(), Reject> {
    let answered = {
        let mut asking = pin!(settled(core, verdict));
        poll_fn(|cx| match asking.as_mut().poll(cx) {
            Poll::Ready(answered) => Poll::Ready(Some(answered)),
            Poll::Pending if gone(cx) => Poll::Ready(None),
            Poll::Pending => Poll::Pending,
        })
        .await
    };
    answered.unwrap_or_else(|| {
        verdict.give_back();
        Err(Reject::DownstreamClosed)
    })
}

async fn settled(core: &Core, verdict: &mut Verdict) -> Result<(), Reject> {
    let questions = verdict.held.as_mut().map(|held| held.questions());
    let mut waiting = Vec::new();
    for ask in questions.unwrap_or_default() {
        if !ask.decides() {
            forget(core, ask);
            continue;
        }
        let (reply, answer) = oneshot::channel();
        core.shared.stores.send(Job {
            limiter: Arc::clone(ask.limiter()),
            question: ask.question.clone(),
            then: Then::Reply(reply),
        });
        waiting.push((ask, answer));
    }
    let mut answers = Vec::with_capacity(waiting.len());
    let began = clock::now();
    for (ask, answer) in waiting {
        let limit = ask.limiter().global().map(|global| global.service.timeout);
        let left = limit
            .unwrap_or_default()
            .saturating_sub(clock::now().since(began));
        // The thread may be late as the store may: a request waits no longer for either.
        let answer = timeout(left, answer).await;
        answers.push((ask, answer.ok().and_then(Result::ok).flatten()));
    }
    verdict.settle(answers).map_or(Ok(()), Err)
}

/// Asks what no request waits for.
pub(super) fn tell(core: &Core, held: &mut Held) {
    for ask in held.questions() {
        forget(core, ask);
    }
}

fn forget(core: &Core, ask: Ask) {
    core.shared.stores.send(Job {
        limiter: Arc::clone(ask.limiter()),
        question: ask.question.clone(),
        then: if ask.is_refill() {
            Then::Refill
        } else {
            Then::Note(ask)
        },
    });
}

fn serve(mut jobs: mpsc::Receiver<Job>) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => {
            tracing::error!(%error, "no runtime for shared rate limits");
            return;
        }
    };
    LocalSet::new().block_on(&runtime, async {
        let mut stores: HashMap<String, Rc<Store>> = HashMap::new();
        let waiting = Rc::new(Cell::new(0));
        let mut looked = clock::now();
        loop {
            let next = timeout(LOOK, jobs.recv()).await;
            let now = clock::now();
            if now.since(looked) >= LOOK {
                looked = now;
                stores.retain(|_, store| now.since(store.used.get()) < UNUSED);
            }
            let job = match next {
                Ok(Some(job)) => job,
                // The workers have gone.
                Ok(None) => return,
                Err(_) => continue,
            };
            let Some(global) = job.limiter.global() else {
                job.then.end(None);
                continue;
            };
            let service = &global.service;
            let known = stores.get(&service.name);
            let store = match known.filter(|store| store.service == *service) {
                Some(store) => Rc::clone(store),
                None => {
                    let store = Rc::new(Store::new(service, &waiting));
                    stores.insert(service.name.clone(), Rc::clone(&store));
                    store
                }
            };
            store.used.set(now);
            store.take(job);
        }
    });
}

/// Names the tokens of a key: the limiter's address, and the key.
type Tokens = (usize, Box<str>);

/// One store.
struct Store {
    service: Arc<RateLimitService>,
    client: Client,
    circuit: Circuit,
    /// Keys whose tokens are being asked for, and who waits for them.
    asking: RefCell<HashMap<Tokens, Vec<Then>>>,
    /// Questions that wait, of all stores.
    waiting: Rc<Cell<usize>>,
    used: Cell<clock::MonoNanos>,
}

enum Client {
    Redis(Rc<Redis>),
    Envoy(Rc<Envoy>),
}

impl Store {
    fn new(service: &Arc<RateLimitService>, waiting: &Rc<Cell<usize>>) -> Self {
        let address = service.address.clone();
        Self {
            client: match &service.kind {
                StoreKind::Redis(redis) => Client::Redis(Redis::new(address, redis.clone())),
                StoreKind::Envoy { domain } => {
                    Client::Envoy(Envoy::new(address, domain.clone(), service.timeout))
                }
            },
            service: Arc::clone(service),
            circuit: Circuit::default(),
            asking: RefCell::default(),
            waiting: Rc::clone(waiting),
            used: Cell::default(),
        }
    }

    fn take(self: Rc<Self>, job: Job) {
        let Job {
            limiter,
            question,
            then,
        } = job;
        if self.waiting.get() >= WAITING_MAX {
            then.end(None);
            return;
        }
        match question {
            Question::Tokens { key, bucket } => {
                let tokens = (Arc::as_ptr(&limiter) as usize, key);
                let mut asking = self.asking.borrow_mut();
                if let Some(others) = asking.get_mut(&tokens) {
                    others.push(then);
                    self.waiting.set(self.waiting.get() + 1);
                    return;
                }
                asking.insert(tokens.clone(), vec![then]);
                self.waiting.set(self.waiting.get() + 1);
                drop(asking);
                tokio::task::spawn_local(self.ask_tokens(limiter, tokens, bucket));
            }
            Question::Descriptor { entries, hits } => {
                self.waiting.set(self.waiting.get() + 1);
                tokio::task::spawn_local(async move {
                    let answer = self.ask_descriptor(&limiter, entries, hits).await;
                    self.waiting.set(self.waiting.get() - 1);
                    then.end(answer);
                });
            }
        }
    }

    /// Asks for tokens until nobody waits for them.
    async fn ask_tokens(self: Rc<Self>, limiter: Arc<Limiter>, tokens: Tokens, bucket: Bucket) {
        let (Client::Redis(redis), Some(global)) = (&self.client, limiter.global()) else {
            return self.end(&tokens, usize::MAX, &mut || None);
        };
        let key = &tokens.1;
        loop {
            let asked_at = clock::now();
            if !self.circuit.lets(asked_at) {
                global.failed(key);
                global.set_down(self.circuit.until());
                return self.end(&tokens, usize::MAX, &mut || None);
            }
            let wanted = global.want(key, self.count(&tokens), asked_at);
            let answer = timeout(self.service.timeout, redis.take(key, bucket, wanted)).await;
            let now = clock::now();
            let grant = match answer {
                Ok(Ok(grant)) => grant,
                failed => {
                    let error = failed.map_or_else(
                        |_| "no answer in time".into(),
                        |answer| answer.map_or_else(|error| error, |_| Box::from("no error")),
                    );
                    global.failed(key);
                    self.failed(&limiter, &error.to_string());
                    return self.end(&tokens, usize::MAX, &mut || None);
                }
            };
            self.good(&limiter);
            let waiting = self.count(&tokens);
            let mut left = global.granted(key, waiting, grant, asked_at, now);
            let out = grant.given < grant.wanted;
            let served = usize::try_from(left).unwrap_or(usize::MAX);
            // Who came while the store was asked and got none asks again, unless it has none.
            let answered = if out { usize::MAX } else { served };
            self.end(&tokens, answered, &mut || {
                let admitted = left > 0;
                left = left.saturating_sub(1);
                Some(said(grant, admitted))
            });
            if self
                .asking
                .borrow_mut()
                .get(&tokens)
                .is_none_or(Vec::is_empty)
            {
                self.asking.borrow_mut().remove(&tokens);
                return;
            }
        }
    }

    /// How many wait for a token; who has gone takes none.
    fn count(&self, tokens: &Tokens) -> u64 {
        let mut asking = self.asking.borrow_mut();
        let Some(all) = asking.get_mut(tokens) else {
            return 0;
        };
        let before = all.len();
        all.retain(|then| !then.has_gone());
        self.waiting.set(self.waiting.get() - (before - all.len()));
        all.iter()
            .filter(|then| !matches!(then, Then::Refill))
            .count() as u64
    }

    /// Answers the first that wait for tokens; all of them: the key is done with.
    fn end(&self, tokens: &Tokens, first: usize, answer: &mut dyn FnMut() -> Option<StoreAnswer>) {
        let mut asking = self.asking.borrow_mut();
        let Some(waiting) = asking.get_mut(tokens) else {
            return;
        };
        let (refills, mut rest): (Vec<Then>, Vec<Then>) = std::mem::take(waiting)
            .into_iter()
            .partition(|then| matches!(then, Then::Refill));
        let later = rest.split_off(first.min(rest.len()));
        self.waiting
            .set(self.waiting.get() - refills.len() - rest.len());
        if first == usize::MAX {
            asking.remove(tokens);
        } else {
            *waiting = later;
        }
        drop(asking);
        for then in rest {
            then.end(answer());
        }
    }

    async fn ask_descriptor(
        &self,
        limiter: &Arc<Limiter>,
        entries: Vec<(String, String)>,
        hits: u32,
    ) -> Option<StoreAnswer> {
        let Client::Envoy(envoy) = &self.client else {
            return None;
        };
        if !self.circuit.lets(clock::now()) {
            if let Some(global) = limiter.global() {
                global.set_down(self.circuit.until());
            }
            return None;
        }
        match timeout(self.service.timeout, envoy.should_rate_limit(entries, hits)).await {
            Ok(Ok(answer)) => {
                self.good(limiter);
                Some(answer)
            }
            Ok(Err(error)) => {
                self.failed(limiter, &error.to_string());
                None
            }
            Err(_) => {
                self.failed(limiter, "no answer in time");
                None
            }
        }
    }

    fn good(&self, limiter: &Limiter) {
        if let Some(global) = limiter.global() {
            global.count(true);
        }
        if self.circuit.good() {
            tracing::info!(store = self.service.name, "rate limit store answers again");
        }
    }

    fn failed(&self, limiter: &Limiter, error: &str) {
        let now = clock::now();
        let opened = self.circuit.bad(now);
        if opened {
            // What hangs is dialled anew.
            match &self.client {
                Client::Redis(redis) => redis.reset(),
                Client::Envoy(envoy) => envoy.reset(),
            }
            let pause = self.circuit.until().since(now);
            tracing::warn!(
                store = self.service.name,
                error,
                ?pause,
                "rate limit store does not answer"
            );
        }
        if let Some(global) = limiter.global() {
            global.count(false);
            if self.circuit.until() > now {
                global.set_down(self.circuit.until());
            }
        }
    }
}

fn said(grant: Grant, admitted: bool) -> StoreAnswer {
    StoreAnswer {
        admitted,
        left: if admitted { grant.left } else { 0 },
        wait: grant.wait,
        ..StoreAnswer::default()
    }
}
