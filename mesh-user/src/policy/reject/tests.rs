use std::collections::HashSet;

use super::*;

#[test]
fn every_reason_is_listed_once() {
    // `ALL` is written by hand: a reason that is not in it would have no docs. The discriminants
    // count from 0, so the last one says how many there are.
    let last = Reject::RouteChanged as usize;
    let listed: Vec<usize> = Reject::ALL.iter().map(|reject| *reject as usize).collect();
    assert_eq!(listed, (0..=last).collect::<Vec<_>>());
}

#[test]
fn every_reason_has_a_label_of_its_own_that_fits_metrics() {
    let labels: HashSet<&str> = Reject::ALL.iter().map(|reject| reject.label()).collect();
    assert_eq!(labels.len(), Reject::ALL.len());
    for reject in Reject::ALL {
        let label = reject.label();
        assert!(
            label.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'),
            "{label}"
        );
        // One name in code, metric, log and JSON.
        assert_eq!(serde_json::to_value(reject).unwrap(), label);
    }
}

#[test]
fn every_reason_has_a_valid_status_sentence_and_flag() {
    let sentences: HashSet<&str> = Reject::ALL.iter().map(|reject| reject.explain()).collect();
    assert_eq!(sentences.len(), Reject::ALL.len());
    for reject in Reject::ALL {
        let (status, label) = (reject.status(), reject.label());
        assert!(
            status == 0 || (400..600).contains(&status),
            "{label}: {status}"
        );
        assert_eq!(status == 0, *reject == Reject::DownstreamClosed, "{label}");
        assert!((1..=16).contains(&reject.grpc_status()), "{label}");
        assert!(!reject.flag().is_empty(), "{label}");
        assert!(!reject.explain().ends_with('.'), "{label}");
    }
}

#[test]
fn statuses_follow_the_table_of_local_replies() {
    for (reject, status, flag) in [
        (Reject::NoRoute, 404, "NR"),
        (Reject::NoEndpoint, 503, "UH"),
        (Reject::NoHealthyEndpoint, 503, "UH"),
        (Reject::NoWeight, 500, "NR"),
        (Reject::InvalidBackend, 500, "NR"),
        (Reject::ConnectFailed, 503, "UF"),
        (Reject::OverflowRequests, 503, "UO"),
        (Reject::OverflowPending, 503, "UO"),
        (Reject::OverflowConnections, 503, "UO"),
        (Reject::UpstreamTimeout, 504, "UT"),
        (Reject::UpstreamClosed, 503, "UC"),
        (Reject::UpstreamReset, 503, "UR"),
        (Reject::RateLimited, 429, "RL"),
    ] {
        assert_eq!(
            (reject.status(), reject.flag()),
            (status, flag),
            "{}",
            reject.label()
        );
    }
    // gRPC: RESOURCE_EXHAUSTED, UNAVAILABLE, UNIMPLEMENTED.
    assert_eq!(Reject::RateLimited.grpc_status(), 8);
    assert_eq!(Reject::OverflowRequests.grpc_status(), 14);
    assert_eq!(Reject::NoEndpoint.grpc_status(), 14);
    assert_eq!(Reject::NoRoute.grpc_status(), 12);
}

#[test]
fn overload_is_said_of_caps_only() {
    let overload: Vec<&str> = Reject::ALL
        .iter()
        .filter(|r| r.is_overload())
        .map(|r| r.label())
        .collect();
    assert_eq!(
        overload,
        [
            "overflow_connections",
            "overflow_pending",
            "overflow_requests",
            "workload_connections",
            "dial_permits"
        ]
    );
}
