use super::*;
use crate::model::{
    Endpoint, Failure, Interception, Netns, PathChoice, Port, RateLimitPolicy, Service,
    inbound::{InboundCaps, WorkloadSelect},
};

const NOW: MonoNanos = MonoNanos(1_000);

fn workload(name: &str, inbound: Inbound) -> Workload {
    Workload {
        name: name.into(),
        namespace: "shop".into(),
        netns: Netns::Pid(1),
        cgroup: None,
        tags: Tags::from([("app".into(), name.into())]),
        identity: Some(format!("spiffe://x/{name}")),
        interception: Interception {
            inbound,
            failure: Failure::Open,
            ..Interception::default()
        },
        capture: true,
    }
}

fn rule(name: &str, workload: Option<&str>, ports: &[u16]) -> InboundRule {
    InboundRule {
        name: name.into(),
        select: WorkloadSelect {
            workload: workload.map(str::to_owned),
            ..WorkloadSelect::default()
        },
        ports: ports.to_vec(),
        action: InboundAction::Capture,
        allow: Vec::new(),
        deny: Vec::new(),
        rate_limits: Vec::new(),
        caps: InboundCaps::default(),
    }
}

fn from(workload: &str) -> PeerMatch {
    PeerMatch {
        source: Some(SourceMatch {
            workload: Some(workload.into()),
            ..SourceMatch::default()
        }),
        cidr: None,
    }
}

fn range(cidr: &str) -> PeerMatch {
    PeerMatch {
        source: None,
        cidr: Some(cidr.parse().unwrap()),
    }
}

fn identity(identity: &str) -> PeerMatch {
    PeerMatch {
        source: Some(SourceMatch {
            identity: Some(identity.into()),
            ..SourceMatch::default()
        }),
        cidr: None,
    }
}

fn model(inbound: Vec<InboundRule>) -> Model {
    Model {
        workloads: vec![
            workload("web", Inbound::Rules),
            workload("db", Inbound::Capture),
            workload("off", Inbound::Pass),
        ],
        inbound,
        ..Model::default()
    }
}

fn compile(model: Model) -> Snapshot {
    Snapshot::compile(Arc::new(model), None, NOW)
}

fn rule_at(snapshot: &Snapshot, workload: &str, port: u16) -> Option<Arc<str>> {
    let ix = snapshot
        .inbound_at(workload, port)
        .expect("a known workload");
    snapshot.port(ix).inbound.as_ref().unwrap().rule.clone()
}

#[test]
fn port_is_judged_by_the_first_rule_that_covers_it_else_by_none() {
    let denied = InboundRule {
        action: InboundAction::Deny,
        ..rule("deny", None, &[82])
    };
    let snapshot = compile(model(vec![
        denied,
        rule("a", Some("web"), &[80, 81]),
        rule("b", None, &[81]),
        rule("rest", Some("web"), &[]),
    ]));
    let names: Vec<_> = [80, 81, 82, 83]
        .map(|port| rule_at(&snapshot, "shop/web", port))
        .into_iter()
        .map(|name| name.map(|name| name.to_string()))
        .collect();
    let name = |name: &str| Some(name.to_owned());
    assert_eq!(names, [name("a"), name("a"), None, name("rest")]);
    assert_eq!(rule_at(&snapshot, "shop/db", 81).as_deref(), Some("b"));
    assert_eq!(rule_at(&snapshot, "shop/db", 80), None);
    assert_eq!(rule_at(&snapshot, "shop/off", 81), None);
    assert_eq!(snapshot.inbound_at("shop/nobody", 80), None);
    assert_eq!(snapshot.inbound_ports("shop/off"), InboundPorts::default());
    assert_eq!(
        snapshot.inbound_ports("shop/db").default,
        InboundAction::Capture
    );
    assert!(snapshot.service_ports().next().is_none(), "no service's");
}

#[test]
fn denial_wins_and_with_anybody_allowed_nobody_else_is() {
    let mut judged = rule("r", None, &[80]);
    judged.allow = vec![from("web"), range("10.1.0.0/16"), range("fd00::/64")];
    judged.deny = vec![range("10.1.9.0/24")];
    let snapshot = compile(model(vec![judged]));
    let ix = snapshot.inbound_at("shop/db", 80).unwrap();
    let may = |address: &str, source: Option<&str>| {
        let source = source.map(|key| snapshot.source(key).unwrap());
        let peer = snapshot.peer(address.parse().unwrap(), source);
        snapshot.authorise(ix, 80, &peer).is_ok()
    };
    assert!(may("10.9.9.9", Some("shop/web")));
    assert!(!may("10.9.9.9", Some("shop/off")));
    assert!(!may("10.9.9.9", None));
    assert!(may("10.1.2.3", None));
    assert!(may("::ffff:10.1.2.3", None), "the same address");
    assert!(!may("10.1.9.3", None));
    assert!(!may("10.1.9.3", Some("shop/web")), "denied by its address");
    assert!(may("fd00::7", None));
    assert!(!may("fd01::7", None));
    // A port without conditions lets everybody in.
    let free = snapshot.inbound_at("shop/db", 81).unwrap();
    let peer = snapshot.peer("10.9.9.9".parse().unwrap(), None);
    assert!(snapshot.authorise(free, 81, &peer).is_ok());
}

#[test]
fn endpoints_of_the_model_are_known_by_address_and_strangers_are_no_source() {
    let mut judged = rule("r", None, &[80]);
    judged.allow = vec![identity("spiffe://x/far")];
    let mut model = model(vec![judged]);
    let endpoint = |address: &str, identity: Option<&str>| Endpoint {
        address: address.parse().unwrap(),
        ports: [("grpc".to_owned(), 9_999)].into(),
        identity: identity.map(str::to_owned),
        ..Endpoint::default()
    };
    let port = |name: &str, target, protocol| Port {
        name: name.into(),
        number: 80,
        target,
        protocol,
        path: PathChoice::Auto,
        tls: None,
    };
    model.services.push(Service {
        name: "far".into(),
        namespace: "other".into(),
        hostnames: Vec::new(),
        addresses: Vec::new(),
        ports: vec![
            port("http", 8_080, Protocol::Http),
            port("grpc", 9_090, Protocol::Grpc),
        ],
        versions: Default::default(),
        endpoints: vec![
            endpoint("10.2.0.1", Some("spiffe://x/far")),
            endpoint("10.2.0.2", None),
        ],
        routable: false,
        dial_from: Default::default(),
    });
    let snapshot = compile(model);
    let ix = snapshot.inbound_at("shop/web", 80).unwrap();
    let may = |address: &str| {
        let peer = snapshot.peer(address.parse().unwrap(), None);
        snapshot.authorise(ix, 80, &peer).is_ok()
    };
    assert!(may("10.2.0.1"));
    assert!(!may("10.2.0.2"));
    assert!(!may("10.2.0.3"));
    let protocol = |at: &str| snapshot.inbound_protocol(at.parse().unwrap());
    assert_eq!(protocol("10.2.0.1:8080"), Protocol::Http);
    assert_eq!(protocol("10.2.0.1:9999"), Protocol::Grpc);
    assert_eq!(protocol("10.2.0.1:9090"), Protocol::Auto);
}

/// «Who is not known» must not satisfy a condition that asks for nothing.
#[test]
fn stranger_is_not_met_by_an_empty_source() {
    let mut judged = rule("r", None, &[]);
    judged.deny = vec![PeerMatch {
        source: Some(SourceMatch::default()),
        cidr: None,
    }];
    let snapshot = compile(model(vec![judged]));
    let ix = snapshot.inbound_at("shop/web", 1).unwrap();
    let stranger = snapshot.peer("10.9.9.9".parse().unwrap(), None);
    assert!(snapshot.authorise(ix, 1, &stranger).is_ok());
    let known = snapshot.peer("10.9.9.9".parse().unwrap(), snapshot.source("shop/db"));
    assert_eq!(
        snapshot.authorise(ix, 1, &known),
        Err(Reject::InboundDenied)
    );
}

#[test]
fn dial_for_a_neighbour_is_judged_only_where_something_is_asked_and_the_pass_is_collapsed() {
    let denied = InboundRule {
        action: InboundAction::Deny,
        ..rule("deny", None, &[82])
    };
    let mut full = model(vec![denied, rule("r", None, &[80])]);
    let snapshot = compile(full.clone());
    assert!(snapshot.judges_before_dialling());
    let at = |port| snapshot.inbound_before_dialling("shop/web", port);
    assert!(matches!(at(80), BeforeDialling::Judge(_)));
    assert_eq!(at(81), BeforeDialling::Nothing);
    let BeforeDialling::Judge(dropped) = at(82) else {
        panic!("it is judged")
    };
    let peer = snapshot.peer("10.9.9.9".parse().unwrap(), None);
    assert_eq!(
        snapshot.authorise(dropped, 82, &peer),
        Err(Reject::InboundDenied)
    );
    full.workloads[0].interception.second_pass = SecondPass::Full;
    let full = compile(full);
    let at = |port| full.inbound_before_dialling("shop/web", port);
    assert_eq!(at(80), BeforeDialling::SecondPass);
    assert_eq!(at(81), BeforeDialling::Nothing);
    let mut nothing = model(Vec::new());
    nothing.workloads.truncate(1);
    assert!(!compile(nothing).judges_before_dialling());
}

/// Without it: a reload forgets what is in flight, and fills every bucket.
#[test]
fn caps_and_limits_are_a_workloads_own_and_live_over_a_reload() {
    let mut limited = rule("r", None, &[80, 81]);
    limited.rate_limits = vec![RateLimitPolicy {
        name: "l".into(),
        key: Vec::new(),
        requests: 1,
        per: std::time::Duration::from_secs(1),
        burst: 1,
    }];
    limited.caps.max_requests = 1;
    let first = compile(model(vec![limited.clone()]));
    let plan = |snapshot: &Snapshot, workload: &str, port| {
        let ix = snapshot.inbound_at(workload, port).unwrap();
        let version = snapshot.version(snapshot.port(ix).all);
        (Arc::clone(&version.breaker), version.limits.clone())
    };
    let (web, limits) = plan(&first, "shop/web", 80);
    assert!(Arc::ptr_eq(&web, &plan(&first, "shop/web", 81).0));
    assert!(!Arc::ptr_eq(&web, &plan(&first, "shop/db", 80).0));
    let permit = web.inbound_request().unwrap();
    assert!(web.inbound_request().is_err());
    limited.caps.max_requests = 2;
    let second = Snapshot::compile(Arc::new(model(vec![limited])), Some(&first), NOW);
    second.enforce();
    let (same, carried) = plan(&second, "shop/web", 80);
    assert!(Arc::ptr_eq(&web, &same) && Arc::ptr_eq(&limits[0], &carried[0]));
    let more = same.inbound_request().unwrap();
    assert!(same.inbound_request().is_err(), "two are in flight");
    drop((permit, more));
    assert_eq!(same.gauges().requests, 0);
}
