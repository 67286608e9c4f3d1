//! Drives the connections of a load.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    time::{Duration, Instant},
};

use anyhow::Result;
use tokio::task::JoinSet;

use super::{
    client::{Answer, Connection, Failure},
    pace::Pace,
    plan::{Plan, Use},
    report::{Report, Seen},
};

/// Pause after a refused connection: a closed loop would otherwise spin.
const REFUSED_PAUSE: Duration = Duration::from_millis(10);

/// What all connections share; all of them are on one thread.
struct Shared {
    plan: Plan,
    end: Instant,
    next: Cell<u64>,
    /// Requests that have started and are neither answered nor failed.
    open: Cell<u64>,
    pace: Option<Rc<Pace>>,
    /// Since the last interim report.
    seen: RefCell<Seen>,
}

impl Shared {
    /// Number and starting time of the next request; `None` at the end.
    ///
    /// Open loop: the connection that is free takes the next time, also one that is past already:
    /// the wait for a free connection is part of what the request took.
    async fn next(&self) -> Option<(u64, Instant)> {
        let number = self.next.get();
        match &self.pace {
            None => {
                let now = Instant::now();
                if now >= self.end {
                    return None;
                }
                self.next.set(number + 1);
                Some((number, now))
            }
            Some(pace) => {
                let due = pace.due(number);
                if due >= self.end {
                    return None;
                }
                self.next.set(number + 1);
                pace.until(due).await;
                Some((number, due))
            }
        }
    }

    async fn open(&self) -> Result<Connection, Failure> {
        let connection = Connection::open(self.plan.address).await?;
        self.seen.borrow_mut().opened();
        Ok(connection)
    }
}

pub(super) async fn run(plan: Plan, every: impl Fn(&Report) + 'static) -> Result<Report> {
    let pace = plan.rate.map(|rate| Rc::new(Pace::new(rate)));
    let start = Instant::now();
    let shared = Rc::new(Shared {
        end: start + plan.duration,
        next: Cell::new(0),
        open: Cell::new(0),
        pace: pace.clone(),
        seen: RefCell::new(Seen::new(start)),
        plan,
    });
    let mut helpers = JoinSet::new();
    if let Some(pace) = pace {
        helpers.spawn_local(async move {
            if let Err(error) = pace.drive().await {
                eprintln!("the timer failed: {error:#}");
            }
        });
    }
    let total = Rc::new(RefCell::new(Seen::new(start)));
    if let Some(interval) = shared.plan.every {
        helpers.spawn_local(interim(
            Rc::clone(&shared),
            Rc::clone(&total),
            interval,
            every,
        ));
    }
    let mut connections = JoinSet::new();
    for _ in 0..shared.plan.connections {
        connections.spawn_local(connection(Rc::clone(&shared)));
    }
    let last = tokio::time::Instant::from_std(shared.end + shared.plan.timeout);
    let all = async { while connections.join_next().await.is_some() {} };
    let _ = tokio::time::timeout_at(last, all).await;
    connections.abort_all();
    // Due, but no connection was ever free for them.
    let due = shared
        .pace
        .as_ref()
        .map_or(0, |pace| pace.due_before(shared.end));
    for _ in 0..shared.open.get() + due.saturating_sub(shared.next.get()) {
        shared.seen.borrow_mut().failure(Failure::Unfinished);
    }
    total.borrow_mut().add(&shared.seen.borrow());
    // Not the wait for a straggler: rates are those of the time in which was asked.
    let until = Instant::now().min(shared.end.max(start + Duration::from_millis(1)));
    let report = total.borrow().report(until);
    Ok(report)
}

/// Interim reports, each of its own interval.
async fn interim(
    shared: Rc<Shared>,
    total: Rc<RefCell<Seen>>,
    interval: Duration,
    every: impl Fn(&Report),
) {
    let mut ticks = tokio::time::interval(interval);
    ticks.tick().await;
    loop {
        ticks.tick().await;
        let now = Instant::now();
        let seen = shared.seen.replace(Seen::new(now));
        total.borrow_mut().add(&seen);
        every(&seen.report(now));
    }
}

/// One connection's life, with as many sockets one after the other as it takes.
async fn connection(shared: Rc<Shared>) {
    let mut idle = None;
    while let Some((number, start)) = shared.next().await {
        shared.open.set(shared.open.get() + 1);
        let outcome = ask(&shared, &mut idle, number).await;
        shared.open.set(shared.open.get() - 1);
        match outcome {
            Ok(answer) => shared.seen.borrow_mut().answer(&answer, start.elapsed()),
            Err(failure) => {
                shared.seen.borrow_mut().failure(failure);
                idle = None;
                if failure == Failure::Connect && shared.pace.is_none() {
                    tokio::time::sleep(REFUSED_PAUSE).await;
                }
            }
        }
        if shared.plan.use_ == Use::Hold {
            let end = tokio::time::Instant::from_std(shared.end);
            tokio::time::sleep_until(end).await;
            return;
        }
    }
}

async fn ask(
    shared: &Shared,
    idle: &mut Option<Connection>,
    number: u64,
) -> Result<Answer, Failure> {
    let mut connection = match idle.take() {
        Some(connection) => connection,
        None => shared.open().await?,
    };
    if shared.plan.use_ == Use::Tcp {
        connection.ping().await?;
        return Ok(Answer {
            status: 0,
            version: None,
            bytes: 1,
            keep_alive: false,
        });
    }
    let answer = connection
        .exchange(shared.plan.request(number), shared.plan.bodyless)
        .await?;
    if answer.keep_alive && shared.plan.use_ != Use::Once {
        *idle = Some(connection);
    }
    Ok(answer)
}
