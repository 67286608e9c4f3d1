//! Rate limits, of policies and rules, and their stores.

use std::time::Duration;

use super::{Reader, reader, rules::condition};
use crate::{
    config::{collect::Collector, path::FieldPath, report::Code, units},
    model::{
        Attribute, LimitUnit, RateLimitPolicy, RateLimitService,
        limit::{
            DescriptorEntry, DescriptorValue, GlobalLimit, Lease, LimitAnswer, LimitOverride,
            RedisStore, StoreAddress, StoreFailure, StoreKind,
        },
    },
};

/// How long a request waits for a store: as Envoy.
const STORE_TIMEOUT: Duration = Duration::from_millis(20);
/// What keys in Redis begin with.
const REDIS_PREFIX: &str = "mesh:";
/// `domain` of questions to a rate limit service.
const DOMAIN: &str = "mesh";

pub(super) fn rate_limits(from: Reader<'_>) -> Vec<RateLimitPolicy> {
    from.items("rate-limit")
        .enumerate()
        .map(|(at, from)| rate_limit(at, from))
        .collect()
}

fn rate_limit(at: usize, from: Reader<'_>) -> RateLimitPolicy {
    let values = values(from);
    let unit = match (values.concurrent, from.text("unit")) {
        (true, _) => LimitUnit::Concurrent,
        (false, Some("bytes")) => LimitUnit::Bytes,
        (false, _) => LimitUnit::Requests,
    };
    let name = from.text("name").map(str::to_owned);
    RateLimitPolicy {
        name: name.unwrap_or_else(|| format!("limit-{}", at + 1)),
        unit,
        key: attributes(from, "key"),
        requests: values.requests,
        per: values.per,
        burst: values.burst,
        matches: from.items("match").map(condition).collect(),
        overrides: from.items("overrides").map(other).collect(),
        dry_run: from.bool("dry-run").unwrap_or(false),
        answer: answer(from.object("answer")),
        global: from.has("global").then(|| global(from.object("global"))),
    }
}

/// Numbers of a limit or of an override.
struct Values {
    requests: u64,
    per: Duration,
    burst: u64,
    concurrent: bool,
}

fn values(from: Reader<'_>) -> Values {
    if let Some(max) = from.int("concurrent") {
        return Values {
            requests: max,
            per: Duration::ZERO,
            burst: max,
            concurrent: true,
        };
    }
    // The placeholder for what is not a rate is the smallest one.
    let rate = from.text("rate").and_then(units::rate);
    let (requests, per) = rate.unwrap_or((1, Duration::from_secs(1)));
    Values {
        requests,
        per,
        burst: from.int("burst").unwrap_or(requests),
        concurrent: false,
    }
}

fn attributes(from: Reader<'_>, name: &str) -> Vec<Attribute> {
    let texts = from.nodes(name).iter().filter_map(reader::text);
    texts.filter_map(|text| text.parse().ok()).collect()
}

fn other(from: Reader<'_>) -> LimitOverride {
    let values = values(from);
    let when = from
        .entries("when")
        .filter_map(|(key, node)| Some((key.parse().ok()?, reader::text(node)?.to_owned())));
    LimitOverride {
        when: when.collect(),
        requests: values.requests,
        per: values.per,
        burst: values.burst,
    }
}

fn answer(from: Reader<'_>) -> LimitAnswer {
    let default = LimitAnswer::default();
    LimitAnswer {
        status: from.int("status").unwrap_or(default.status),
        grpc_unavailable: from.text("grpc") == Some("unavailable"),
        draft_03: from.bool("x-ratelimit").unwrap_or(default.draft_03),
        envoy_ratelimited: from
            .bool("x-envoy-ratelimited")
            .unwrap_or(default.envoy_ratelimited),
    }
}

fn global(from: Reader<'_>) -> GlobalLimit {
    let lease = from.object("lease");
    let default = Lease::default();
    GlobalLimit {
        service: from.text("service").unwrap_or_default().to_owned(),
        failure: match from.text("failure") {
            Some("closed") => StoreFailure::Closed,
            _ => StoreFailure::Open,
        },
        lease: Lease {
            share_percent: lease.int("share-percent").unwrap_or(default.share_percent),
            time: lease.duration("time"),
        },
        descriptor: from.items("descriptor").filter_map(entry).collect(),
        hits: from.int("hits").unwrap_or(1),
    }
}

fn entry(from: Reader<'_>) -> Option<DescriptorEntry> {
    let value = match (from.text("value"), from.parsed("attribute")) {
        (Some(text), _) => DescriptorValue::Text(text.to_owned()),
        (None, attribute) => DescriptorValue::Attribute(attribute?),
    };
    Some(DescriptorEntry {
        key: from.text("key")?.to_owned(),
        value,
    })
}

/// Fields of stores that only one type has.
const OF_REDIS: [&str; 5] = ["database", "username", "password-file", "prefix", "tls"];
const OF_ENVOY: [&str; 1] = ["domain"];

/// The stores. Fields of another type than theirs are reported to `out`.
pub(super) fn services(root: Reader<'_>, out: &mut Collector) -> Vec<RateLimitService> {
    let mut services = Vec::new();
    for (i, from) in root.items("rate-limit-services").enumerate() {
        let (foreign, kind): (&[&str], _) = match from.text("type") {
            Some("envoy") => (&OF_REDIS, "envoy"),
            Some("redis") => (&OF_ENVOY, "redis"),
            _ => (&[], ""),
        };
        for field in foreign {
            if let Some(node) = from.get(field) {
                let path = FieldPath::item("rate-limit-services", i).key(field);
                let message = format!("`{field}` means nothing to a store of type {kind}");
                let expected = Some("no such field".to_owned());
                out.error(Code::Conflict, node.span, path, message, expected);
            }
        }
        services.push(service(from));
    }
    services
}

fn service(from: Reader<'_>) -> RateLimitService {
    let owned = |name: &str| from.text(name).map(str::to_owned);
    let kind = if from.text("type") == Some("envoy") {
        StoreKind::Envoy {
            domain: owned("domain").unwrap_or_else(|| DOMAIN.to_owned()),
        }
    } else {
        StoreKind::Redis(RedisStore {
            database: from.int("database").unwrap_or(0),
            username: owned("username"),
            password_file: from.text("password-file").map(Into::into),
            prefix: owned("prefix").unwrap_or_else(|| REDIS_PREFIX.to_owned()),
            tls: owned("tls"),
        })
    };
    RateLimitService {
        name: owned("name").unwrap_or_default(),
        address: address(from.text("address").unwrap_or_default()),
        kind,
        timeout: from.duration("timeout").unwrap_or(STORE_TIMEOUT),
    }
}

/// An address with port, or the path of a unix socket.
fn address(text: &str) -> StoreAddress {
    match text.parse() {
        Ok(address) => StoreAddress::Tcp(address),
        Err(_) => StoreAddress::Unix(text.into()),
    }
}
