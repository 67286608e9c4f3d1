//! Balancing and locality.

use super::{Reader, reader};
use crate::model::{
    Balance, BalancePolicy, LocalityPolicy,
    balance::{Level, SlowStart},
};

/// `balance`: a word, or a mapping.
pub(super) fn balance(policy: Reader<'_>) -> Option<BalancePolicy> {
    if !policy.has("balance") {
        return None;
    }
    if let Some(word) = policy.text("balance") {
        return algorithm(word).map(BalancePolicy::from);
    }
    let from = policy.object("balance");
    let plain = BalancePolicy::from(from.text("algorithm").and_then(algorithm)?);
    let keys = from.nodes("hash").iter().filter_map(reader::text);
    let slow = from.object("slow-start");
    Some(BalancePolicy {
        algorithm: plain.algorithm,
        bias_percent: from.int("bias-percent").unwrap_or(plain.bias_percent),
        hash: keys.filter_map(|text| text.parse().ok()).collect(),
        seed: from.int("seed").unwrap_or(plain.seed),
        ring_min: from.int("ring-min").unwrap_or(plain.ring_min),
        ring_max: from.int("ring-max").unwrap_or(plain.ring_max),
        table_size: from.int("table-size").unwrap_or(plain.table_size),
        bounded_load: from.int("bounded-load"),
        decay: from.duration("decay").unwrap_or(plain.decay),
        start: from.duration("start").unwrap_or(plain.start),
        penalty: from.duration("penalty").unwrap_or(plain.penalty),
        slow_start: from.has("slow-start").then(|| slow_start(slow)),
        panic_threshold: from.int("panic-threshold"),
    })
}

fn algorithm(word: &str) -> Option<Balance> {
    Some(match word {
        "least-request" => Balance::LeastRequest,
        "round-robin" => Balance::RoundRobin,
        "random" => Balance::Random,
        "peak-ewma" => Balance::PeakEwma,
        "ring-hash" => Balance::RingHash,
        "maglev" => Balance::Maglev,
        _ => return None,
    })
}

fn slow_start(from: Reader<'_>) -> SlowStart {
    let default = SlowStart::default();
    SlowStart {
        window: from.duration("window").unwrap_or(default.window),
        aggression_percent: from
            .int("aggression-percent")
            .unwrap_or(default.aggression_percent),
        min_percent: from.int("min-percent").unwrap_or(default.min_percent),
    }
}

pub(super) fn locality(policy: Reader<'_>) -> Option<LocalityPolicy> {
    let from = policy.object("locality");
    policy.has("locality").then(|| LocalityPolicy {
        prefer: from.text("prefer").and_then(level),
        failover: from
            .nodes("failover")
            .iter()
            .filter_map(reader::text)
            .map(str::to_owned)
            .collect(),
        over_provisioning: from
            .int("over-provisioning")
            .unwrap_or(LocalityPolicy::default().over_provisioning),
    })
}

fn level(word: &str) -> Option<Level> {
    Some(match word {
        "region" => Level::Region,
        "zone" => Level::Zone,
        "subzone" => Level::Subzone,
        _ => return None,
    })
}
