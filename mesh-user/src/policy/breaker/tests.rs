use std::{
    sync::{
        Barrier,
        atomic::{AtomicBool, AtomicU32, AtomicUsize},
        mpsc,
    },
    task::Wake,
    thread,
    time::{Duration, Instant},
};

use super::{
    super::{
        VersionIx,
        fixture::{compile, model, policy, recompile, service},
        rng::Rng,
    },
    *,
};
use crate::{clock::MonoNanos, model::Policy};

fn caps(all: u32) -> BreakerPolicy {
    BreakerPolicy {
        max_connections: all,
        max_pending: all,
        max_requests: all,
        max_retries: all,
    }
}

fn breaker(all: u32) -> Arc<Breaker> {
    Arc::new(Breaker::new(caps(all)))
}

fn an_endpoint() -> Arc<EndpointState> {
    let snapshot = compile(model(service(1, 0), Vec::new(), Vec::new()));
    Arc::clone(&snapshot.version(VersionIx(0)).endpoints[0])
}

/// A waker that says that it was woken, and wakes its thread.
struct Woken(AtomicBool, thread::Thread);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::SeqCst);
        self.1.unpark();
    }
}

fn waker() -> (Arc<Woken>, Waker) {
    let woken = Arc::new(Woken(AtomicBool::new(false), thread::current()));
    (Arc::clone(&woken), Waker::from(woken))
}

fn poll(
    breaker: &Arc<Breaker>,
    permit: &mut PendingPermit,
) -> (Arc<Woken>, Option<ConnectionPermit>) {
    let (woken, waker) = waker();
    match breaker.poll_connection(permit, &mut Context::from_waker(&waker)) {
        Poll::Ready(connection) => (woken, Some(connection)),
        Poll::Pending => (woken, None),
    }
}

#[test]
fn caps_hold_at_n_minus_1_n_and_n_plus_1() {
    let endpoint = an_endpoint();
    for cap in [0, 1, 2, 10] {
        let breaker = breaker(cap);
        let requests: Vec<_> = (0..cap)
            .map(|_| breaker.request(&endpoint).expect("below the cap"))
            .collect();
        assert_eq!(
            breaker.request(&endpoint).err(),
            Some(Reject::OverflowRequests)
        );
        let connections: Vec<_> = (0..cap)
            .map(|_| breaker.connection().expect("below the cap"))
            .collect();
        assert_eq!(
            breaker.connection().err(),
            Some(Reject::OverflowConnections)
        );
        let pending: Vec<_> = (0..cap)
            .map(|_| breaker.pending().expect("below the cap"))
            .collect();
        assert_eq!(breaker.pending().err(), Some(Reject::OverflowPending));
        let retries: Vec<_> = (0..cap)
            .map(|_| breaker.retry().expect("below the cap"))
            .collect();
        assert!(breaker.retry().is_none());

        let full = Gauges {
            connections: cap,
            pending: cap,
            requests: cap,
            retries: cap,
        };
        assert_eq!(breaker.gauges(), full);
        assert_eq!(endpoint.live.in_flight(), cap);
        drop((requests, connections, pending, retries));
        assert_eq!(breaker.gauges(), Gauges::default());
        assert_eq!(endpoint.live.in_flight(), 0);
    }
}

#[test]
fn one_place_given_back_admits_exactly_one() {
    let (breaker, endpoint) = (breaker(2), an_endpoint());
    let first = breaker.request(&endpoint).unwrap();
    let second = breaker.request(&endpoint).unwrap();
    drop(first);
    let third = breaker.request(&endpoint).unwrap();
    assert!(breaker.request(&endpoint).is_err());
    drop((second, third));
}

#[test]
fn caps_change_on_reload_while_permits_are_out() {
    let with = |cap: u32| {
        let policy = Policy {
            breaker: Some(caps(cap)),
            ..policy()
        };
        model(service(1, 0), Vec::new(), vec![policy])
    };
    let first = compile(with(2));
    let breaker = Arc::clone(&first.version(VersionIx(0)).breaker);
    let endpoint = an_endpoint();
    let held: Vec<_> = (0..2)
        .map(|_| breaker.request(&endpoint).unwrap())
        .collect();

    let thrown_away =
        super::super::Snapshot::compile(Arc::new(with(9)), Some(&first), MonoNanos(1));
    assert_eq!(
        breaker.caps(),
        caps(2),
        "a snapshot that is not in force changes nothing"
    );
    drop(thrown_away);

    let second = recompile(with(3), &first, MonoNanos(1));
    let carried = &second.version(VersionIx(0)).breaker;
    assert!(
        Arc::ptr_eq(&breaker, carried),
        "requests in flight stay counted"
    );
    let third = carried.request(&endpoint).unwrap();
    assert!(carried.request(&endpoint).is_err());

    recompile(with(1), &second, MonoNanos(2));
    drop(third);
    assert!(
        breaker.request(&endpoint).is_err(),
        "two are still out, the cap is one"
    );
    drop(held);
    assert!(breaker.request(&endpoint).is_ok());
}

#[test]
fn many_threads_never_pass_a_cap_and_all_places_come_back() {
    const CAP: u32 = 5;
    let (breaker, endpoint) = (breaker(CAP), an_endpoint());
    let (most, admitted, now) = (AtomicU32::new(0), AtomicU32::new(0), AtomicU32::new(0));
    let barrier = Barrier::new(16);
    thread::scope(|scope| {
        for _ in 0..16 {
            scope.spawn(|| {
                barrier.wait();
                for _ in 0..20_000 {
                    if let Ok(permit) = breaker.request(&endpoint) {
                        most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                        admitted.fetch_add(1, Ordering::Relaxed);
                        now.fetch_sub(1, Ordering::SeqCst);
                        drop(permit);
                    }
                }
            });
        }
    });
    assert!(most.into_inner() <= CAP);
    assert!(admitted.into_inner() > 0);
    assert_eq!(breaker.gauges(), Gauges::default());
    assert_eq!(endpoint.live.in_flight(), 0);
}

#[test]
fn nobody_is_refused_while_there_is_room() {
    // 8 threads that hold one each can't be refused by a cap of 8, however they race.
    let (breaker, endpoint) = (breaker(8), an_endpoint());
    thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                for _ in 0..20_000 {
                    drop(breaker.request(&endpoint).expect("8 threads, 8 places"));
                }
            });
        }
    });
}

#[test]
fn waiters_are_served_first_come_first_served() {
    let breaker = Arc::new(Breaker::new(BreakerPolicy {
        max_connections: 1,
        ..caps(10)
    }));
    let held = breaker.connection().unwrap();
    let mut waiting: Vec<PendingPermit> = (0..3).map(|_| breaker.pending().unwrap()).collect();
    let woken: Vec<_> = waiting
        .iter_mut()
        .map(|permit| {
            let (woken, connection) = poll(&breaker, permit);
            assert!(connection.is_none());
            woken
        })
        .collect();
    assert!(breaker.has_waiters());
    drop(held);
    let is_woken = || {
        woken
            .iter()
            .map(|w| w.0.load(Ordering::SeqCst))
            .collect::<Vec<_>>()
    };
    assert_eq!(is_woken(), [true, false, false]);
    // Who comes new, or polls out of turn, does not overtake.
    assert_eq!(
        breaker.connection().err(),
        Some(Reject::OverflowConnections)
    );
    assert!(poll(&breaker, &mut waiting[2]).1.is_none());
    let first = poll(&breaker, &mut waiting[0]).1.expect("granted");
    assert!(poll(&breaker, &mut waiting[1]).1.is_none());
    drop(first);
    let second = poll(&breaker, &mut waiting[1]).1.expect("granted");
    drop(second);
    let third = poll(&breaker, &mut waiting[2]).1.expect("granted");
    assert!(!breaker.has_waiters());
    drop(third);
    drop(waiting);
    assert_eq!(breaker.gauges(), Gauges::default());
}

#[test]
fn waiting_with_room_is_over_at_once() {
    let breaker = breaker(1);
    let mut permit = breaker.pending().unwrap();
    assert!(poll(&breaker, &mut permit).1.is_some());
    assert!(!breaker.has_waiters());
}

#[test]
fn waiter_that_leaves_after_its_grant_passes_it_on() {
    let breaker = Arc::new(Breaker::new(BreakerPolicy {
        max_connections: 1,
        ..caps(10)
    }));
    let held = breaker.connection().unwrap();
    let mut first = breaker.pending().unwrap();
    let mut second = breaker.pending().unwrap();
    poll(&breaker, &mut first);
    let (woken, _) = poll(&breaker, &mut second);
    drop(held);
    assert!(!woken.0.load(Ordering::SeqCst));
    // Granted but never taken: the request was cancelled.
    drop(first);
    assert!(woken.0.load(Ordering::SeqCst), "the next one is woken");
    assert!(poll(&breaker, &mut second).1.is_some());
    drop(second);
    assert_eq!(breaker.gauges(), Gauges::default());
}

#[test]
fn waiter_that_leaves_before_its_turn_is_skipped() {
    let breaker = Arc::new(Breaker::new(BreakerPolicy {
        max_connections: 1,
        ..caps(10)
    }));
    let held = breaker.connection().unwrap();
    let mut first = breaker.pending().unwrap();
    let mut second = breaker.pending().unwrap();
    poll(&breaker, &mut first);
    poll(&breaker, &mut second);
    drop(first);
    assert_eq!(breaker.gauges().pending, 1);
    drop(held);
    assert!(poll(&breaker, &mut second).1.is_some());
}

#[test]
fn raised_cap_serves_waiters() {
    let breaker = Arc::new(Breaker::new(BreakerPolicy {
        max_connections: 1,
        ..caps(10)
    }));
    let _held = breaker.connection().unwrap();
    let mut permit = breaker.pending().unwrap();
    let (woken, _) = poll(&breaker, &mut permit);
    breaker.set_caps(
        BreakerPolicy {
            max_connections: 2,
            ..caps(10)
        },
        None,
    );
    assert!(woken.0.load(Ordering::SeqCst));
    assert!(poll(&breaker, &mut permit).1.is_some());
}

/// Waits as a runtime would; false when nothing happens for too long: a lost wake-up.
fn wait(breaker: &Arc<Breaker>, permit: &mut PendingPermit) -> Option<ConnectionPermit> {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let (woken, connection) = poll(breaker, permit);
        if connection.is_some() {
            return connection;
        }
        while !woken.0.load(Ordering::SeqCst) {
            thread::park_timeout(deadline.saturating_duration_since(Instant::now()));
            if Instant::now() >= deadline {
                return None;
            }
        }
    }
}

#[test]
fn waiters_on_many_threads_lose_no_wake_up_also_when_some_give_up() {
    const CAP: u32 = 2;
    let seed = 0xbea4e5;
    let breaker = Arc::new(Breaker::new(BreakerPolicy {
        max_connections: CAP,
        ..caps(1_000)
    }));
    let (now, most, taken) = (AtomicU32::new(0), AtomicU32::new(0), AtomicUsize::new(0));
    thread::scope(|scope| {
        for thread in 0..8 {
            let (breaker, now, most, taken) = (&breaker, &now, &most, &taken);
            scope.spawn(move || {
                let mut rng = Rng::new(seed + thread);
                for round in 0..2_000 {
                    let mut permit = breaker.pending().unwrap();
                    if rng.below(4) == 0 {
                        // Registers and is cancelled, granted or not.
                        drop(poll(breaker, &mut permit));
                        continue;
                    }
                    let connection = wait(breaker, &mut permit)
                        .unwrap_or_else(|| panic!("lost wake-up, seed {seed}, round {round}"));
                    drop(permit);
                    most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                    taken.fetch_add(1, Ordering::Relaxed);
                    if rng.below(8) == 0 {
                        thread::yield_now();
                    }
                    now.fetch_sub(1, Ordering::SeqCst);
                    drop(connection);
                }
            });
        }
    });
    assert!(most.into_inner() <= CAP);
    assert!(taken.into_inner() > 8_000);
    assert_eq!(breaker.gauges(), Gauges::default());
    assert!(!breaker.has_waiters());
}

#[test]
fn permits_may_end_on_another_thread() {
    let (breaker, endpoint) = (breaker(1), an_endpoint());
    let (send, receive) = mpsc::channel();
    send.send(breaker.request(&endpoint).unwrap()).unwrap();
    thread::spawn(move || drop(receive.recv().unwrap()))
        .join()
        .unwrap();
    assert_eq!(breaker.gauges(), Gauges::default());
}
