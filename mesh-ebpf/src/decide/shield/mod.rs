//! What the shield does with a frame that arrives at one of the node's interfaces.
//!
//! Order: lists, flags, SYN bucket, connection bucket. Whatever is not understood passes and is
//! counted: the kernel behind us decides, and ARP or neighbour discovery never breaks. (Neighbour
//! discovery is IPv6 like any other: a deny list that names link-local addresses cuts it.)
//!
//! User space drops what the allow list covers from the deny list before it fills the trie, so one
//! look-up of the longest prefix answers both.

pub mod flags;
pub mod parse;
#[cfg(test)]
mod tests;

use mesh_common::{
    abi::ABI_VERSION,
    addr::Addr,
    flow::Tuple,
    shield::{Entry, Reason, Settings, bucket_of},
};

use parse::{Frame, Network, NoNetwork, Transport};

/// One of a source's two buckets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bucket {
    /// SYNs.
    Syn,
    /// New connections.
    Connection,
}

/// What the decision looks up.
pub trait World {
    /// The buckets of one source, found or made.
    type Source: Copy;

    /// The settings.
    fn settings(&self) -> Option<Settings>;
    /// What the longest prefix says of an address.
    fn entry(&self, source: &Addr) -> Entry;
    /// CLOCK_MONOTONIC in nanoseconds.
    fn now(&self) -> u64;
    /// The buckets of a source; `None`: there is no room.
    fn source(&self, key: &Addr) -> Option<Self::Source>;
    /// When a bucket is full again.
    fn full_ns(&self, source: Self::Source, bucket: Bucket) -> u64;
    /// Carries a [`Spend`] out.
    fn spend(&self, source: Self::Source, bucket: Bucket, spend: Spend);
    /// Counts a SYN of a source that passed or was dropped.
    fn note(&self, source: Self::Source, passed: bool);
    /// When a SYN of this connection passed last; `None`: never, or it is forgotten.
    fn seen(&self, connection: &Tuple) -> Option<u64>;
    /// Remembers that one passed now.
    fn remember(&self, connection: &Tuple, now: u64);
}

/// What happens to a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// Why.
    pub reason: Reason,
    /// The rule that decided, if one did.
    pub rule: Option<u32>,
}

const fn verdict(reason: Reason) -> Verdict {
    Verdict { reason, rule: None }
}

/// Decides.
#[inline(always)]
pub fn decide<W: World>(frame: &impl Frame, world: &W) -> Verdict {
    let Some(settings) = world.settings() else {
        return verdict(Reason::PassNoSettings);
    };
    if settings.abi != ABI_VERSION {
        return verdict(Reason::PassNoSettings);
    }
    let network = match parse::network(frame) {
        Ok(network) => network,
        Err(NoNetwork::NotIp) => return verdict(Reason::PassNotIp),
        Err(NoNetwork::Unparsed) => return verdict(Reason::PassUnparsed),
    };
    let entry = world.entry(&network.source);
    if let Some(rule) = entry.rule() {
        return Verdict {
            reason: if entry.is_allow() {
                Reason::PassAllow
            } else {
                Reason::DropDeny
            },
            rule: Some(rule),
        };
    }
    verdict(match parse::transport(frame, &network) {
        Transport::Tcp {
            sport,
            dport,
            flags,
        } => {
            let connection = Tuple {
                src: network.source,
                dst: network.destination,
                sport,
                dport,
            };
            tcp(&connection, flags, &settings, &network, world)
        }
        Transport::Other => Reason::Pass,
        Transport::Split if settings.drop_bogus != 0 => Reason::DropFragment,
        Transport::Fragment | Transport::Split => Reason::PassFragment,
        Transport::Unparsed => Reason::PassUnparsed,
    })
}

#[inline(always)]
fn tcp<W: World>(
    connection: &Tuple,
    flags: u8,
    settings: &Settings,
    network: &Network,
    world: &W,
) -> Reason {
    if settings.drop_bogus != 0 && flags::bogus(flags) {
        return Reason::DropFlags;
    }
    let limited = settings.syn_interval_ns | settings.connection_interval_ns != 0;
    if !flags::opens(flags) || !limited {
        return Reason::Pass;
    }
    let Some(source) = world.source(&bucket_of(&network.source)) else {
        return Reason::PassNoRoom;
    };
    let now = world.now();
    let reason = buckets(connection, settings, source, now, world);
    world.note(source, !reason.drops());
    reason
}

#[inline(always)]
fn buckets<W: World>(
    connection: &Tuple,
    settings: &Settings,
    source: W::Source,
    now: u64,
    world: &W,
) -> Reason {
    if settings.syn_interval_ns != 0 {
        let full = world.full_ns(source, Bucket::Syn);
        let spend = take(
            full,
            now,
            settings.syn_interval_ns,
            settings.syn_tolerance_ns,
        );
        if spend == Spend::Refused {
            return Reason::DropSyn;
        }
        world.spend(source, Bucket::Syn, spend);
    }
    if settings.connection_interval_ns != 0 {
        let known = world
            .seen(connection)
            .is_some_and(|then| now.saturating_sub(then) < SYN_AGAIN_NS);
        if !known {
            let full = world.full_ns(source, Bucket::Connection);
            let spend = take(
                full,
                now,
                settings.connection_interval_ns,
                settings.connection_tolerance_ns,
            );
            if spend == Spend::Refused {
                return Reason::DropConnection;
            }
            world.spend(source, Bucket::Connection, spend);
            world.remember(connection, now);
        }
    }
    Reason::Pass
}

/// A SYN of the same four-tuple within this time is the same connection, sent again: the six that
/// Linux sends follow the first after 1, 3, 7, 15, 31 and 63 s (`tcp_syn_retries`, RFC 6298 §5).
pub const SYN_AGAIN_NS: u64 = 64_000_000_000;

/// What a bucket of one number does with one event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spend {
    /// It was full: it is written anew.
    Start(u64),
    /// It had room: so much is added, atomically.
    Add(u64),
    /// It is empty.
    Refused,
}

/// The bucket: full at `full_ns`, each event costs `interval`, and the sum may be ahead of the clock
/// by `tolerance` (the generic cell rate algorithm, ITU-T I.371 annex A).
///
/// Several CPUs may take from one bucket at once. Additions are atomic, so nothing that was spent is
/// lost while the bucket is in use; but a CPU decides by what it read before the others added, and
/// a bucket that was full is started anew by a plain store. So each time that a bucket runs empty,
/// and each time that it was full, at most (CPUs - 1) events more pass than rate and burst allow:
/// over a span of `t` seconds in which the source never pauses, at most
/// `burst + rate * t + 2 * (CPUs - 1)`. Never fewer.
#[inline(always)]
pub const fn take(full_ns: u64, now: u64, interval: u64, tolerance: u64) -> Spend {
    if full_ns <= now {
        Spend::Start(now.wrapping_add(interval))
    } else if full_ns - now <= tolerance {
        Spend::Add(interval)
    } else {
        Spend::Refused
    }
}
