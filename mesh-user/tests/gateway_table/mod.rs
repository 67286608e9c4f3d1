//! The cases of `data/gateway-cases.txt`, and the scene in which they play.

#![allow(
    dead_code,
    clippy::allow_attributes,
    reason = "every test file uses its own part of this; expect would fail where all is used"
)]

use std::net::SocketAddr;

use mesh_user::config::{self, Config};

/// What the proxy can't do yet; cases that need it are skipped, and the features are «no».
pub(crate) const NEEDS_NOT_MERGED: &[&str] = &["h2c"];

const TABLE: &str = include_str!("../data/gateway-cases.txt");

/// A case.
#[derive(Debug)]
pub(crate) struct Case {
    pub(crate) name: &'static str,
    pub(crate) features: Vec<&'static str>,
    pub(crate) needs: Vec<&'static str>,
    pub(crate) routes: String,
    pub(crate) requests: Vec<Request>,
}

impl Case {
    /// Whether the proxy can do what it takes.
    pub(crate) fn is_ready(&self) -> bool {
        !self
            .needs
            .iter()
            .any(|need| NEEDS_NOT_MERGED.contains(need))
    }
}

/// A request, or several alike, with what must come of it.
#[derive(Debug)]
pub(crate) struct Request {
    /// The line, for messages.
    pub(crate) line: &'static str,
    pub(crate) method: &'static str,
    pub(crate) target: &'static str,
    /// `namespace/name` of the service.
    pub(crate) to: &'static str,
    pub(crate) port: u16,
    /// None: nobody known.
    pub(crate) from: Option<&'static str>,
    pub(crate) times: usize,
    /// The cookie by which a session is kept.
    pub(crate) session: Option<&'static str>,
    pub(crate) headers: Vec<(&'static str, &'static str)>,
    /// Backends or statuses, any of which will do.
    pub(crate) outcome: Vec<&'static str>,
    /// Of several: how often each must come.
    pub(crate) counts: Vec<(&'static str, usize)>,
    /// What is asserted besides: `req.x`, `res.x`, `path`, `host`, `location`, `mirror`, `nomirror`.
    pub(crate) asserts: Vec<(&'static str, &'static str)>,
}

/// All cases.
pub(crate) fn cases() -> Vec<Case> {
    TABLE.split("\n=== ").skip(1).map(case).collect()
}

fn case(text: &'static str) -> Case {
    let (head, rest) = text.split_once("\nroutes:\n").expect(text);
    let (routes, requests) = rest.split_once("requests:\n").expect(text);
    let mut lines = head.lines();
    let name = lines.next().expect(text);
    let (mut features, mut needs) = (Vec::new(), Vec::new());
    for line in lines {
        let (key, words) = line.split_once(": ").expect(line);
        let words = words.split(' ').collect();
        match key {
            "features" => features = words,
            "needs" => needs = words,
            _ => panic!("{name}: {line}"),
        }
    }
    Case {
        name,
        features,
        needs,
        routes: routes.to_owned(),
        requests: requests
            .lines()
            .filter(|line| !line.is_empty())
            .map(request)
            .collect(),
    }
}

fn request(line: &'static str) -> Request {
    let (ask, answer) = line.split_once(" -> ").expect(line);
    let mut words = ask.split(' ');
    let method = words.next().expect(line);
    let mut out = Request {
        line,
        method,
        target: words.next().expect(line),
        to: "shop/echo",
        port: match method {
            "GRPC" => 81,
            "TLS" => 85,
            _ => 80,
        },
        from: Some("shop/client"),
        times: 1,
        session: None,
        headers: Vec::new(),
        outcome: Vec::new(),
        counts: Vec::new(),
        asserts: Vec::new(),
    };
    for word in words {
        match word.split_once(['=', ':']).expect(line) {
            ("to", to) => out.to = to,
            ("port", port) => out.port = port.parse().expect(line),
            ("from", from) => out.from = (from != "-").then_some(from),
            ("times", times) => out.times = times.parse().expect(line),
            ("session", cookie) => out.session = Some(cookie),
            header => out.headers.push(header),
        }
    }
    for word in answer.split(' ') {
        if let Some((what, count)) = word.split_once('*') {
            out.counts.push((what, count.parse().expect(line)));
        } else if let Some(assert) = word.split_once(':') {
            out.asserts.push(assert);
        } else {
            out.outcome = word.split('|').collect();
        }
    }
    out
}

/// A service of the scene: `namespace/name`, what the table calls it, its ports.
pub(crate) struct Scene {
    pub(crate) key: &'static str,
    pub(crate) label: &'static str,
    pub(crate) ports: &'static [(&'static str, u16, &'static str)],
}

const PORTS: &[(&str, u16, &str)] = &[
    ("http", 80, "http"),
    ("grpc", 81, "grpc"),
    ("tcp", 82, "tcp"),
    ("alt", 83, "http"),
    ("spare", 84, "http"),
    ("tls", 85, "tls"),
];

/// The services. The first is nobody's: the proxy's tests give its address to their listener.
pub(crate) const SERVICES: &[Scene] = &[
    Scene {
        key: "zz/unused",
        label: "unused",
        ports: &[("main", 9, "http")],
    },
    Scene {
        key: "shop/echo",
        label: "echo",
        ports: PORTS,
    },
    Scene {
        key: "shop/echo-v1",
        label: "v1",
        ports: PORTS,
    },
    Scene {
        key: "shop/echo-v2",
        label: "v2",
        ports: PORTS,
    },
    Scene {
        key: "shop/echo-v3",
        label: "v3",
        ports: PORTS,
    },
    Scene {
        key: "shop/plain",
        label: "plain",
        ports: &[("one", 1, "tcp"), ("two", 2, "tcp")],
    },
    Scene {
        key: "shop/empty",
        label: "empty",
        ports: &[("http", 80, "http")],
    },
    Scene {
        key: "team/echo",
        label: "team",
        ports: PORTS,
    },
    Scene {
        key: "team/echo-v1",
        label: "team-v1",
        ports: PORTS,
    },
];

/// The virtual address of a service.
pub(crate) fn virtual_address(key: &str, port: u16) -> SocketAddr {
    let at = SERVICES.iter().position(|service| service.key == key);
    let at = u8::try_from(at.expect(key)).expect("few services");
    SocketAddr::from(([10, 96, at, 1], port))
}

/// The table's name of a service.
pub(crate) fn label(key: &str) -> &'static str {
    let service = SERVICES.iter().find(|service| service.key == key);
    service.expect(key).label
}

/// The scene with a case's routes. `at` says where the endpoint of a label and a protocol is; all
/// ports of a protocol share it.
pub(crate) fn scene(routes: &str, at: impl Fn(&str, &str) -> SocketAddr) -> Config {
    let mut text = "apiVersion: mesh/v1alpha1\nkind: MeshConfig\nservices:\n".to_owned();
    for service in SERVICES {
        let (namespace, name) = service.key.split_once('/').expect("a key");
        let address = virtual_address(service.key, 1).ip();
        let ports: Vec<String> = service
            .ports
            .iter()
            .map(|(name, number, protocol)| {
                format!("{{name: {name}, number: {number}, protocol: {protocol}, path: proxy}}")
            })
            .collect();
        let of = |protocol: &str| at(service.label, protocol);
        let numbers: Vec<String> = service
            .ports
            .iter()
            .map(|(name, _, protocol)| format!("{name}: {}", of(protocol).port()))
            .collect();
        let endpoints = if service.label == "empty" {
            String::new()
        } else {
            let ip = of("http").ip();
            format!("{{address: {ip}, ports: {{{}}}}}", numbers.join(", "))
        };
        text.push_str(&format!(
            "  - {{name: {name}, namespace: {namespace}, addresses: [{address}], routable: true, \
             dial-from: node, ports: [{}], endpoints: [{endpoints}]}}\n",
            ports.join(", ")
        ));
    }
    text.push_str("workloads:\n");
    for namespace in ["shop", "team"] {
        text.push_str(&format!(
            "  - {{name: client, namespace: {namespace}, netns: /run/netns/{namespace}}}\n"
        ));
    }
    if !routes.is_empty() {
        text.push_str("---\n");
        text.push_str(routes);
    }
    config::parse("case.yaml", &text).unwrap_or_else(|error| panic!("{error}\n{text}"))
}
