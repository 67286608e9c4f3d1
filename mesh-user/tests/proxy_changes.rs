//! Changes while requests run: none of them fails a request.

mod proxy_support;

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use mesh_user::{
    clock,
    model::{Model, Protocol},
    policy::Snapshot,
};
use proxy_support::*;

/// Changes in a second, and how long.
const CHANGES_PER_SECOND: u32 = 1_000;
const SECONDS: u32 = 2;
const CLIENTS: usize = 4;

/// Answers every request with its version's name.
fn serving(version: &'static str) -> SocketAddr {
    endpoint(move |stream| {
        let mut reader = Reader::new(stream);
        while reader.message().is_some() {
            reader.send(format!(
                "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{version}"
            ));
        }
    })
}

/// Without it: a fleet that scales up and down answers 502 and 503 while it does, or the change that
/// counts comes after a thousand others.
#[test]
fn thousand_changes_a_second_fail_no_request_and_the_last_is_in_force() {
    let (one, two, three) = (serving("v1"), serving("v1"), serving("v2"));
    let plan = || {
        Plan::new(Protocol::Http)
            .endpoint(one, "v1")
            .endpoint(two, "v1")
            .endpoint(three, "v2")
            .route(vec![header("x-user", "beta")], &[("v2", 1)])
            .route(Vec::new(), &[("v1", 50), ("v2", 50)])
    };
    let mesh = Mesh::with(plan(), 2, |_| {});
    let feed = Latest(Mutex::new((1, Arc::clone(&mesh.snapshot().model))));
    let stop = Arc::new(AtomicBool::new(false));
    let asked = Arc::new(AtomicUsize::new(0));
    let clients: Vec<_> = (0..CLIENTS)
        .map(|n| {
            let (stop, asked, address) = (Arc::clone(&stop), Arc::clone(&asked), mesh.address);
            thread::spawn(move || ask_until(&stop, &asked, address, n))
        })
        .collect();

    // As the agent: what came meanwhile is put in force together.
    let applied = thread::scope(|scope| {
        let control = scope.spawn(|| follow(&mesh, &feed, &stop));
        let begun = Instant::now();
        for n in 0..CHANGES_PER_SECOND * SECONDS {
            feed.change(|model| {
                // Weights, an endpoint that comes and goes, one that is not ready for a moment.
                model.rules[1].route[0].weight = 1 + n % 100;
                let endpoints = &mut model.services[0].endpoints;
                match n % 4 {
                    0 => endpoints[0].healthy = false,
                    1 => endpoints[0].healthy = true,
                    2 => drop(endpoints.remove(1)),
                    _ => {
                        let mut back = endpoints[0].clone();
                        back.ports = [("main".to_owned(), two.port())].into();
                        endpoints.insert(1, back);
                    }
                }
            });
            let due = begun + Duration::from_secs(1) * (n + 1) / CHANGES_PER_SECOND;
            thread::sleep(due.saturating_duration_since(Instant::now()));
        }
        feed.change(|model| model.rules[1].route[0].weight = 0);
        let last = feed.latest().0;
        eventually("the last change is in force", || {
            let snapshot = mesh.snapshot();
            let mut weights = snapshot.rules.iter().map(|rule| rule.targets[0].weight);
            weights.next_back() == Some(0)
        });
        // From here on all goes to v2.
        let mut client = Reader::new(mesh.connect());
        for _ in 0..20 {
            client.send("GET / HTTP/1.1\r\nhost: web\r\n\r\n");
            assert_eq!(client.message().expect("an answer").text(), "v2");
        }
        stop.store(true, Ordering::SeqCst);
        let applied = control.join().expect("no panic");
        assert!(applied <= last);
        applied
    });
    for client in clients {
        client.join().expect("no request failed");
    }
    let asked = asked.load(Ordering::SeqCst);
    assert!(
        asked > 100 && applied > 100,
        "{asked} requests, {applied} snapshots"
    );
}

/// As `platform::Feed`, which takes no service on a loopback address.
struct Latest(Mutex<(u64, Arc<Model>)>);

impl Latest {
    fn change(&self, edit: impl FnOnce(&mut Model)) {
        let mut latest = self.0.lock().unwrap();
        let mut model = Model::clone(&latest.1);
        edit(&mut model);
        *latest = (latest.0 + 1, Arc::new(model));
    }

    fn latest(&self) -> (u64, Arc<Model>) {
        self.0.lock().unwrap().clone()
    }
}

/// Puts the latest model in force whenever there is one; how many.
fn follow(mesh: &Mesh, feed: &Latest, stop: &AtomicBool) -> u64 {
    let (mut seen, mut applied) = (1, 0);
    while !stop.load(Ordering::SeqCst) {
        let (generation, model) = feed.latest();
        if generation == seen {
            thread::sleep(Duration::from_micros(200));
            continue;
        }
        seen = generation;
        applied += 1;
        let mut current = mesh.snapshot.lock().unwrap();
        let next = Arc::new(Snapshot::compile(model, Some(&current), clock::now()));
        mesh.workers.as_ref().unwrap().swap(Arc::clone(&next));
        *current = next;
    }
    applied
}

fn ask_until(stop: &AtomicBool, asked: &AtomicUsize, address: SocketAddr, n: usize) {
    let mut client = Reader::new(connect(address));
    let beta = if n == 0 { "x-user: beta\r\n" } else { "" };
    while !stop.load(Ordering::SeqCst) {
        client.send(format!("GET /{n} HTTP/1.1\r\nhost: web\r\n{beta}\r\n"));
        let answer = client.message().expect("an answer");
        let text = answer.text();
        assert_eq!(answer.status(), 200, "{text}");
        assert!(n > 0 || text == "v2", "beta went to {text}");
        asked.fetch_add(1, Ordering::SeqCst);
    }
}

/// Without it: a worker takes a whole snapshot apart in the middle of a request.
#[test]
fn replaced_snapshot_is_taken_apart_by_who_swaps_not_by_a_worker() {
    let up = serving("v1");
    let plan = || Plan::new(Protocol::Http).endpoint(up, "v1");
    let mesh = Mesh::start(plan());
    let first = Arc::downgrade(&mesh.snapshot());
    let mut client = Reader::new(mesh.connect());
    let mut ask = || {
        client.send("GET / HTTP/1.1\r\nhost: web\r\n\r\n");
        assert_eq!(client.message().expect("an answer").status(), 200);
    };
    ask();
    mesh.swap(plan());
    // The worker has the new one from its next request on; the old one is there still.
    eventually("the worker lets go", || {
        ask();
        first.strong_count() == 1
    });
    ask();
    assert_eq!(first.strong_count(), 1, "kept until the next swap or tick");
    mesh.workers.as_ref().unwrap().take_apart();
    assert_eq!(first.strong_count(), 0);
}
