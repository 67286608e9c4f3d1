//! Services, workloads, outbound exceptions.

use std::{
    net::{IpAddr, Ipv4Addr},
    path::PathBuf,
};

use ipnet::IpNet;

use super::{Reader, reader};
use crate::{
    config::text,
    model::{
        DialFrom, Endpoint, Failure, Inbound, Interception, Mode, Netns, OutboundAction,
        OutboundRule, PathChoice, Port, Protocol, SecondPass, Service, Transport, Workload,
    },
};

/// Stands for an address that is not one.
const NO_ADDRESS: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);

fn owned(text: Option<&str>) -> String {
    text.unwrap_or_default().to_owned()
}

fn namespace(reader: Reader<'_>) -> String {
    reader.text("namespace").unwrap_or("default").to_owned()
}

pub(super) fn service(from: Reader<'_>) -> Service {
    let address = |node| {
        reader::text(node)
            .and_then(|text| text.parse().ok())
            .unwrap_or(NO_ADDRESS)
    };
    Service {
        name: owned(from.text("name")),
        namespace: namespace(from),
        // Host names are equal without case (RFC 9110 §4.2.3).
        hostnames: from
            .nodes("hostnames")
            .iter()
            .map(|node| reader::text(node).unwrap_or_default().to_ascii_lowercase())
            .collect(),
        addresses: from.nodes("addresses").iter().map(address).collect(),
        ports: from.items("ports").map(port).collect(),
        versions: from
            .entries("versions")
            .map(|(name, node)| (name.to_owned(), reader::tags(node)))
            .collect(),
        endpoints: from.items("endpoints").map(endpoint).collect(),
        routable: from.bool("routable").unwrap_or(false),
        dial_from: match from.text("dial-from") {
            Some("node") => DialFrom::Node,
            _ => DialFrom::Workload,
        },
    }
}

fn port(from: Reader<'_>) -> Port {
    let number = from.int("number").unwrap_or(0);
    let word = from.text("protocol").unwrap_or("auto");
    let protocol = protocol(word);
    Port {
        name: from
            .text("name")
            .map_or_else(|| format!("{word}-{number}"), str::to_owned),
        number,
        target: from.int("target").unwrap_or(number),
        protocol,
        path: match from.text("path") {
            Some("kernel") => PathChoice::Kernel,
            Some("prefer-kernel") => PathChoice::PreferKernel,
            Some("proxy") => PathChoice::Proxy,
            _ => PathChoice::Auto,
        },
        tls: super::tls::terminate(from.object("tls"), protocol),
    }
}

fn protocol(word: &str) -> Protocol {
    match word {
        "http" => Protocol::Http,
        "http2" => Protocol::Http2,
        "grpc" => Protocol::Grpc,
        "tcp" => Protocol::Tcp,
        "tls" => Protocol::Tls,
        _ => Protocol::Auto,
    }
}

fn endpoint(from: Reader<'_>) -> Endpoint {
    Endpoint {
        address: from.parsed("address").unwrap_or(NO_ADDRESS),
        ports: from
            .entries("ports")
            .map(|(name, node)| (name.to_owned(), reader::int(node).unwrap_or(0)))
            .collect(),
        tags: from.tags("tags"),
        locality: owned(from.text("locality")),
        identity: from.text("identity").map(str::to_owned),
        healthy: from.bool("healthy").unwrap_or(true),
        weight: from.int("weight").unwrap_or(1),
        priority: from.int("priority").unwrap_or(0),
    }
}

pub(super) fn workload(from: Reader<'_>) -> Workload {
    Workload {
        name: owned(from.text("name")),
        namespace: namespace(from),
        netns: match (from.text("netns"), from.int("pid")) {
            (None, Some(pid)) => Netns::Pid(pid),
            (path, _) => Netns::Path(PathBuf::from(path.unwrap_or_default())),
        },
        cgroup: from.text("cgroup").map(PathBuf::from),
        tags: from.tags("tags"),
        identity: from.text("identity").map(str::to_owned),
        interception: interception(from),
        capture: from.bool("capture").unwrap_or(true),
    }
}

fn interception(from: Reader<'_>) -> Interception {
    Interception {
        mode: match from.text("mode") {
            Some("mark") => Mode::Mark,
            Some("loopback") => Mode::Loopback,
            _ => Mode::Auto,
        },
        failure: match from.text("failure") {
            Some("closed") => Failure::Closed,
            _ => Failure::Open,
        },
        inbound: match from.text("inbound") {
            Some("capture") => Inbound::Capture,
            Some("pass") => Inbound::Pass,
            _ => Inbound::Rules,
        },
        bypass_guard: from.text("bypass-guard") == Some("on"),
        second_pass: match from.text("second-pass") {
            Some("full") => SecondPass::Full,
            _ => SecondPass::Collapse,
        },
    }
}

pub(super) fn outbound(from: Reader<'_>) -> OutboundRule {
    OutboundRule {
        cidr: from
            .text("cidr")
            .and_then(text::cidr)
            .unwrap_or_else(|| IpNet::from(NO_ADDRESS)),
        ports: from
            .nodes("ports")
            .iter()
            .map(|node| reader::int(node).unwrap_or(0))
            .collect(),
        protocol: match from.text("protocol") {
            Some("udp") => Transport::Udp,
            Some("any") => Transport::Any,
            _ => Transport::Tcp,
        },
        action: match from.text("action") {
            Some("deny") => OutboundAction::Deny,
            _ => OutboundAction::Pass,
        },
    }
}
