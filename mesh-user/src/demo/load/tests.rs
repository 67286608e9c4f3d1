//! The generator against the echo servers, over loopback.

use super::*;
use crate::demo::echo::{Echo, tests::args as echo_args};

fn load(echo: &Echo, path: &str) -> LoadArgs {
    LoadArgs {
        target: format!("http://{}{path}", echo.http[0]),
        connect: None,
        connections: 4,
        duration: Duration::from_millis(300),
        timeout: Duration::from_secs(5),
        rate: None,
        new_connection: false,
        hold: false,
        tcp: false,
        method: "GET".into(),
        headers: Vec::new(),
        mix: Vec::new(),
        every: None,
        json: false,
    }
}

fn run(args: &LoadArgs) -> Report {
    measure(args, |_| ()).expect("the arguments are valid")
}

#[test]
fn closed_loop_keeps_its_connections() {
    for fast in [false, true] {
        let mut args = echo_args();
        args.fast = fast;
        let echo = Echo::start(&args).expect("loopback");
        let report = run(&load(&echo, "/"));
        assert!(report.requests > 20, "{report:?}");
        assert_eq!(report.unanswered(), 0, "{report:?}");
        assert_eq!(report.connections_opened, 4);
        assert_eq!(report.statuses.get(&200), Some(&report.requests));
        assert_eq!(report.versions.get("v1"), Some(&report.requests));
    }
}

#[test]
fn new_connection_is_made_for_each_request() {
    let echo = Echo::start(&echo_args()).expect("loopback");
    let mut args = load(&echo, "/");
    args.new_connection = true;
    let report = run(&args);
    assert!(report.requests > 20, "{report:?}");
    assert_eq!(
        report.connections_opened,
        report.requests + report.unanswered()
    );
}

#[test]
fn statuses_and_bytes_are_counted() {
    let echo = Echo::start(&echo_args()).expect("loopback");
    let report = run(&load(&echo, "/status/418"));
    assert_eq!(report.statuses.get(&418), Some(&report.requests));
    let report = run(&load(&echo, "/bytes/100000"));
    assert!(report.bytes > 100_000 * report.requests, "{report:?}");
    assert_eq!(report.unanswered(), 0, "{report:?}");
}

/// A closed connection is an error of one request, not the end of the load.
#[test]
fn aborted_requests_are_errors_by_name() {
    let echo = Echo::start(&echo_args()).expect("loopback");
    let report = run(&load(&echo, "/abort"));
    assert_eq!(report.requests, 0, "{report:?}");
    let ended = report.errors.get("closed").copied().unwrap_or(0)
        + report.errors.get("reset").copied().unwrap_or(0);
    assert!(ended > 4, "{report:?}");
}

#[test]
fn refused_connections_are_errors_by_name() {
    let echo = Echo::start(&echo_args()).expect("loopback");
    let args = load(&echo, "/");
    drop(echo);
    let report = run(&args);
    assert_eq!(report.requests, 0);
    assert!(report.errors["connect"] >= 4, "{report:?}");
}

#[test]
fn open_loop_asks_at_its_rate() {
    let echo = Echo::start(&echo_args()).expect("loopback");
    let mut args = load(&echo, "/");
    args.duration = Duration::from_millis(500);
    args.rate = Some(400);
    let report = run(&args);
    assert_eq!(report.unanswered(), 0, "{report:?}");
    assert!((199..=200).contains(&report.requests), "{report:?}");
}

/// With latency counted from when a request was sent, a server that needs 20 ms would look like
/// 20 ms at any rate. One connection can do 50 of the 500 a second, so the queue grows all along.
#[test]
fn open_loop_charges_for_the_wait() {
    let echo = Echo::start(&echo_args()).expect("loopback");
    let mut args = load(&echo, "/delay/20");
    args.connections = 1;
    args.rate = Some(500);
    let report = run(&args);
    assert!(report.latency_us.p50 > 500_000.0, "{report:?}");
}

/// What could not even be started when the time was up is not forgotten.
#[test]
fn open_loop_counts_what_was_never_asked() {
    let echo = Echo::start(&echo_args()).expect("loopback");
    let mut args = load(&echo, "/delay/60000");
    args.connections = 1;
    args.rate = Some(100);
    args.timeout = Duration::from_millis(50);
    let report = run(&args);
    assert_eq!(report.requests, 0);
    assert!(
        (29..=30).contains(&report.errors["unfinished"]),
        "{report:?}"
    );
}

#[test]
fn tcp_connects_and_closes_again_and_again() {
    let echo = Echo::start(&echo_args()).expect("loopback");
    let mut args = load(&echo, "/");
    args.target = echo.tcp[0].to_string();
    args.tcp = true;
    let report = run(&args);
    assert!(report.requests > 20, "{report:?}");
    assert_eq!(report.unanswered(), 0, "{report:?}");
}

#[test]
fn hold_asks_once_on_each_connection_and_keeps_it() {
    let echo = Echo::start(&echo_args()).expect("loopback");
    let mut args = load(&echo, "/");
    args.connections = 50;
    args.hold = true;
    let report = run(&args);
    assert_eq!(
        (report.requests, report.connections_opened),
        (50, 50),
        "{report:?}"
    );
}

#[test]
fn interim_reports_sum_up_to_the_whole() {
    let echo = Echo::start(&echo_args()).expect("loopback");
    let mut args = load(&echo, "/");
    args.every = Some(Duration::from_millis(50));
    let interim = std::rc::Rc::new(std::cell::Cell::new((0, 0)));
    let seen = std::rc::Rc::clone(&interim);
    let report = measure(&args, move |part| {
        let (count, sum) = seen.get();
        seen.set((count + 1, sum + part.requests));
    })
    .expect("valid");
    let (count, sum) = interim.get();
    assert!(
        count >= 3 && sum > 0 && sum <= report.requests,
        "{count} {sum} {report:?}"
    );
}

#[test]
fn arguments_that_make_no_sense_are_refused() {
    let echo = Echo::start(&echo_args()).expect("loopback");
    for target in ["https://127.0.0.1/", "127.0.0.1:80", "http://", "http://\n"] {
        let mut args = load(&echo, "/");
        args.target = target.into();
        assert!(measure(&args, |_| ()).is_err(), "{target:?}");
    }
    for text in ["0", "-1", "nan", "inf", "1e9", ""] {
        assert!(seconds(text).is_err(), "{text:?}");
    }
    assert_eq!(seconds("2.5"), Ok(Duration::from_millis(2500)));
}
