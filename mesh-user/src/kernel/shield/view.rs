//! What the shield says of itself.

use std::net::IpAddr;

use mesh_common::{
    addr::Addr,
    shield::{Entry, Reason, bucket_of},
};
use serde::Serialize;

use super::{Shield, lists::longest, tables::sum};
use crate::{
    clock::MonoNanos,
    model::shield::{Mode, Net},
};

/// An interface.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct InterfaceStatus {
    /// Its name.
    pub interface: String,
    /// Its number; 0: there is none.
    pub index: u32,
    /// `xdp`, `xdp-frags`, `tcx` or `clsact`; none: the shield does not stand there.
    pub attached: Option<&'static str>,
    /// Why not, or why not in the driver.
    pub why: Option<String>,
}

/// What happened to frames for one reason.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Count {
    /// The reason.
    pub reason: &'static str,
    /// Whether such frames are dropped.
    pub drops: bool,
    /// Frames.
    pub packets: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// Everything at a glance.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Overview {
    /// The mode that was asked for.
    pub mode: Mode,
    /// Interfaces.
    pub interfaces: Vec<InterfaceStatus>,
    /// Ranges in the kernel's map.
    pub prefixes: usize,
    /// Entries that operators added.
    pub manual: usize,
    /// Frames, by reason.
    pub counts: Vec<Count>,
}

/// A rule.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RuleRow {
    /// Its name.
    pub rule: String,
    /// `allow` or `deny`.
    pub action: &'static str,
    /// `cli`, `config` or `file`.
    pub origin: &'static str,
    /// Its ranges.
    pub prefixes: usize,
    /// Frames that it decided.
    pub packets: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Seconds until it ends; none: it does not by itself.
    pub expires_s: Option<u64>,
}

/// A source with its SYNs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SourceRow {
    /// An IPv4 address or an IPv6 /64.
    pub source: Net,
    /// SYNs that passed.
    pub passed: u64,
    /// SYNs that were dropped.
    pub dropped: u64,
}

/// One entry that holds an address.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Holder {
    /// Its range.
    pub cidr: Net,
    /// Its rule.
    pub rule: String,
    /// `allow` or `deny`.
    pub action: &'static str,
    /// `cli`, `config` or `file`.
    pub origin: &'static str,
    /// Whether it decides.
    pub decides: bool,
}

/// What the shield does with an address, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Check {
    /// The address.
    pub address: IpAddr,
    /// `deny`, `allow`, or `pass`: no list names it.
    pub decision: &'static str,
    /// The rule that decides.
    pub rule: Option<String>,
    /// Whether the kernel's own look-up says the same.
    pub kernel_agrees: bool,
    /// Entries that hold it.
    pub holders: Vec<Holder>,
    /// Its SYNs so far, where it has a bucket.
    pub source: Option<SourceRow>,
}

/// Most entries that [`Shield::check`] names.
const HOLDERS_MAX: usize = 32;

const fn action(allow: bool) -> &'static str {
    if allow { "allow" } else { "deny" }
}

impl Shield {
    /// Interfaces, sizes and counters.
    pub fn overview(&self) -> Overview {
        Overview {
            mode: self.wanted.mode,
            interfaces: self
                .stands
                .iter()
                .map(|(name, (index, stand))| InterfaceStatus {
                    interface: name.clone(),
                    index: *index,
                    attached: stand.how.map(super::How::label),
                    why: stand.why.clone(),
                })
                .collect(),
            // Without the entry that ends IPv6's rules for IPv4.
            prefixes: self
                .installed
                .iter()
                .flatten()
                .filter(|line| line.entry != Entry::NONE)
                .count(),
            manual: self.manual.len(),
            counts: self.counts(),
        }
    }

    /// Frames by reason.
    pub fn counts(&self) -> Vec<Count> {
        let count = |reason: &Reason| {
            let tally = sum(&self.tables.counts, *reason as u32);
            Count {
                reason: reason.label(),
                drops: reason.drops(),
                packets: tally.packets,
                bytes: tally.bytes,
            }
        };
        Reason::ALL.iter().map(count).collect()
    }

    /// Every rule with its counters, by name.
    pub fn rules(&self, now: MonoNanos) -> Vec<RuleRow> {
        let mut rows: Vec<RuleRow> = self
            .described
            .iter()
            .map(|(number, (origin, allow, prefixes))| {
                let hits = self.tables.hits(*number);
                let rule = self.rules.name(*number).to_owned();
                RuleRow {
                    expires_s: self.expires(&rule, now),
                    rule,
                    action: action(*allow),
                    origin: origin.label(),
                    prefixes: *prefixes,
                    packets: hits.packets,
                    bytes: hits.bytes,
                }
            })
            .collect();
        rows.sort_by(|a, b| a.rule.cmp(&b.rule));
        rows
    }

    /// Seconds until an operator's entry ends.
    fn expires(&self, rule: &str, now: MonoNanos) -> Option<u64> {
        let (_, cidr) = rule.strip_prefix("cli ").map(|rest| {
            rest.strip_prefix("allow ")
                .map_or((false, rest), |cidr| (true, cidr))
        })?;
        let manual = self.manual.get(&cidr.parse().ok()?)?;
        (manual.expires_ns != 0)
            .then(|| MonoNanos(manual.expires_ns).since(now).as_secs_f64().ceil() as u64)
    }

    /// Interfaces where it does not stand, each with the reason.
    pub fn bare(&self) -> Vec<String> {
        let bare = self.stands.iter();
        bare.filter(|(_, (_, stand))| stand.how.is_none())
            .map(|(name, (_, stand))| {
                format!("{name}: {}", stand.why.as_deref().unwrap_or_default())
            })
            .collect()
    }

    /// The sources with the most SYNs dropped, then passed.
    pub fn sources(&self, limit: usize) -> Vec<SourceRow> {
        let mut rows: Vec<SourceRow> = self
            .tables
            .sources
            .iter()
            .flatten()
            .map(|(key, source)| SourceRow {
                source: shown(key),
                passed: source.passed,
                dropped: source.dropped,
            })
            .collect();
        rows.sort_by_key(|row| std::cmp::Reverse((row.dropped, row.passed)));
        rows.truncate(limit);
        rows
    }

    /// What happens to frames of an address, by the lists.
    pub fn check(&self, address: IpAddr) -> Check {
        let net = Net::from(address);
        let installed: &[_] = self.installed.as_deref().unwrap_or_default();
        let line = longest(installed, net).filter(|line| line.entry != Entry::NONE);
        let entry = line.map_or(Entry::NONE, |line| line.entry);
        let rule = entry.rule().map(|number| self.rules.name(number));
        let kernel = self.tables.lookup(Addr::from_ip(address));
        let holders = self.said().filter(|said| said.net.holds(net));
        let holders = holders.take(HOLDERS_MAX).map(|said| Holder {
            decides: line.is_some_and(|line| line.net == said.net)
                && said.allow == entry.is_allow()
                && rule == Some(&*said.rule),
            cidr: said.net,
            action: action(said.allow),
            origin: said.origin.label(),
            rule: said.rule.into_owned(),
        });
        let key = bucket_of(&Addr::from_ip(address));
        Check {
            address,
            decision: match rule {
                None => "pass",
                Some(_) => action(entry.is_allow()),
            },
            holders: holders.collect(),
            rule: rule.map(str::to_owned),
            kernel_agrees: kernel.is_ok_and(|found| found.unwrap_or(Entry::NONE) == entry),
            source: self
                .tables
                .sources
                .get(&key, 0)
                .ok()
                .map(|source| SourceRow {
                    source: shown(key),
                    passed: source.passed,
                    dropped: source.dropped,
                }),
        }
    }
}

fn shown(key: Addr) -> Net {
    let bits = if key.is_v4() { 128 } else { 64 };
    Net::new(u128::from_be_bytes(key.octets()), bits)
}
