//! From lists to what stands in the trie. Pure.
//!
//! The trie answers by the longest prefix alone, and the allow list wins over the deny list
//! whatever the lengths. So ranges that an allowed range covers are left out of what is denied, and
//! one look-up answers both.

use mesh_common::{
    addr::Addr,
    shield::{Entry, Prefix},
};

use crate::model::shield::Net;

/// One entry of the trie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Line {
    pub(super) net: Net,
    pub(super) entry: Entry,
}

impl Line {
    pub(super) fn key(&self) -> Prefix {
        prefix(self.net)
    }
}

/// A range as the map's key.
pub(super) fn prefix(net: Net) -> Prefix {
    Prefix {
        bits: u32::from(net.bits()),
        addr: Addr::from_octets(net.address().to_be_bytes()),
    }
}

/// A map's key as a range.
pub(super) fn net(prefix: &Prefix) -> Net {
    let bits = u8::try_from(prefix.bits).unwrap_or(u8::MAX);
    Net::new(u128::from_be_bytes(prefix.addr.octets()), bits)
}

/// What must stand in the trie, sorted. Of equal ranges an allowed one wins, then the first.
pub(super) fn compile(lines: Vec<Line>) -> Vec<Line> {
    let mut lines = without_shadowed(lines);
    end_of_v6(&mut lines);
    lines
}

/// The same for a part: ranges inside one that no other allowed range holds.
pub(super) fn without_shadowed(mut lines: Vec<Line>) -> Vec<Line> {
    // Stable: the first of equals stays the first.
    lines.sort_by_key(|line| (line.net, line.entry.is_deny()));
    lines.dedup_by_key(|line| line.net);
    // Last address that is allowed, of IPv6 and of IPv4: ranges nest or are apart, and one stands
    // before all that it holds.
    let mut allowed: [Option<u128>; 2] = [None, None];
    lines.retain(|line| {
        let family = &mut allowed[usize::from(line.net.is_v4())];
        let covered = family.is_some_and(|last| line.net.address() <= last);
        if line.entry.is_allow() && !covered {
            *family = Some(line.net.last());
        }
        line.entry.is_allow() || !covered
    });
    lines
}

/// Where the lines inside a range stand, of its own family alone: `None` for a range of IPv6 that
/// has all of IPv4's numbers inside, and for all of IPv4.
pub(super) fn inside(lines: &[Line], net: Net) -> Option<std::ops::Range<usize>> {
    let over = net.address() <= Net::V4.address() && net.last() >= Net::V4.last();
    if over {
        return None;
    }
    let start = lines.partition_point(|line| line.net < net);
    let end = lines.partition_point(|line| line.net.address() <= net.last());
    Some(start..end.max(start))
}

/// IPv4 stands inside IPv6's numbers: without a rule for all of IPv4, one for `::/0` would be
/// IPv4's too.
fn end_of_v6(lines: &mut Vec<Line>) {
    if let Err(place) = lines.binary_search_by_key(&Net::V4, |line| line.net) {
        let entry = Entry::NONE;
        lines.insert(
            place,
            Line {
                net: Net::V4,
                entry,
            },
        );
    }
}

/// What leads from one content of the trie to another; both sorted.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Difference {
    /// New, or with another entry.
    pub(super) set: Vec<Line>,
    /// Not there any more, with what it said.
    pub(super) gone: Vec<Line>,
}

pub(super) fn difference(old: &[Line], new: &[Line]) -> Difference {
    let mut out = Difference::default();
    let (mut old, mut new) = (old.iter().peekable(), new.iter().peekable());
    loop {
        match (old.peek(), new.peek()) {
            (None, None) => return out,
            (Some(was), Some(is)) if was.net == is.net => {
                if was.entry != is.entry {
                    out.set.push(**is);
                }
                old.next();
                new.next();
            }
            (Some(was), is) if is.is_none_or(|is| was.net < is.net) => {
                out.gone.push(**was);
                old.next();
            }
            (_, Some(is)) => {
                out.set.push(**is);
                new.next();
            }
            // The arm before last takes it.
            (Some(_), None) => return out,
        }
    }
}

/// The entry that decides for an address, as the trie finds it: the longest range.
pub(super) fn longest(lines: &[Line], address: Net) -> Option<&Line> {
    // Every range that holds it stands before or at it; the last of those is the longest.
    let end = lines.partition_point(|line| line.net <= address);
    let holds = |line: &&Line| {
        line.net.address() <= address.address() && line.net.last() >= address.address()
    };
    lines[..end].iter().rev().find(holds)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn at(text: &str) -> Net {
        text.parse().expect(text)
    }

    fn deny(text: &str, rule: u32) -> Line {
        Line {
            net: at(text),
            entry: Entry::deny(rule),
        }
    }

    fn allow(text: &str, rule: u32) -> Line {
        Line {
            net: at(text),
            entry: Entry::allow(rule),
        }
    }

    fn rule(lines: &[Line], address: &str) -> Option<(bool, u32)> {
        let line = longest(lines, at(address))?;
        Some((line.entry.is_deny(), line.entry.rule()?))
    }

    /// Without it: an allowed partner is cut off by a longer range of a blocklist.
    #[test]
    fn allow_wins_over_deny_whatever_the_lengths() {
        let lines = compile(vec![
            deny("10.0.0.0/8", 1),
            deny("10.1.2.0/24", 2),
            deny("10.1.2.3", 3),
            allow("10.1.0.0/16", 4),
            allow("10.1.2.3", 5),
            deny("2001:db8::/32", 6),
        ]);
        assert_eq!(rule(&lines, "10.1.2.4"), Some((false, 4)));
        assert_eq!(rule(&lines, "10.1.2.3"), Some((false, 5)));
        assert_eq!(rule(&lines, "10.2.0.1"), Some((true, 1)));
        assert_eq!(rule(&lines, "2001:db8::1"), Some((true, 6)));
        assert_eq!(rule(&lines, "11.0.0.1"), None);
    }

    /// Without it: `::/0` means all of IPv4 too.
    #[test]
    fn ranges_of_ipv6_never_mean_ipv4() {
        let lines = compile(vec![deny("::/0", 1), allow("10.0.0.0/8", 2)]);
        assert_eq!(rule(&lines, "192.0.2.1"), None);
        assert_eq!(rule(&lines, "2001:db8::1"), Some((true, 1)));
        let lines = compile(vec![allow("::/0", 1), deny("0.0.0.0/0", 2)]);
        assert_eq!(rule(&lines, "192.0.2.1"), Some((true, 2)));
    }

    #[test]
    fn first_of_equal_ranges_wins() {
        let lines = compile(vec![deny("10.0.0.0/8", 7), deny("10.0.0.0/8", 1)]);
        assert_eq!(rule(&lines, "10.0.0.1"), Some((true, 7)));
    }

    fn line() -> impl Strategy<Value = Line> {
        // Few bits, so that ranges meet.
        (
            0_u32..64,
            24_u8..=32,
            any::<bool>(),
            any::<bool>(),
            0_u32..8,
        )
            .prop_map(|(host, bits, v6, allow, rule)| {
                let net = if v6 {
                    Net::new(u128::from(host) << 96, bits)
                } else {
                    Net::new(0xffff_0000_0000 | u128::from(host << 2), 96 + bits)
                };
                let entry = if allow {
                    Entry::allow(rule)
                } else {
                    Entry::deny(rule)
                };
                Line { net, entry }
            })
    }

    proptest! {
        /// Against the sentence itself: allowed if any allowed range holds it, else denied if any
        /// denied one does.
        #[test]
        fn compiled_lists_decide_as_the_sentence_says(
            lines in proptest::collection::vec(line(), 0..40),
            host in 0_u32..256,
            v6: bool,
        ) {
            let address = if v6 {
                Net::new(u128::from(host) << 94, 128)
            } else {
                Net::new(0xffff_0000_0000 | u128::from(host), 128)
            };
            let holding = |wanted: fn(Entry) -> bool| {
                lines.iter().any(|line| wanted(line.entry) && line.net.holds(address))
            };
            let expected = if holding(Entry::is_allow) {
                Some(false)
            } else {
                holding(Entry::is_deny).then_some(true)
            };
            let compiled = compile(lines.clone());
            let found = longest(&compiled, address).filter(|line| line.entry.rule().is_some());
            prop_assert_eq!(found.map(|line| line.entry.is_deny()), expected);
        }

        /// Without it: an entry that is added alone leaves another trie than all entries together.
        #[test]
        fn part_that_is_compiled_alone_is_that_part_of_the_whole(
            lines in proptest::collection::vec(line(), 0..40),
            one in line(),
        ) {
            let net = one.net;
            let whole = compile(lines.iter().copied().chain([one]).collect());
            let part = lines.iter().copied().chain([one]);
            let mut part = without_shadowed(part.filter(|line| net.holds(line.net)).collect());
            let covered = lines
                .iter()
                .any(|line| line.entry.is_allow() && line.net != net && line.net.holds(net));
            if covered {
                part.retain(|line| line.entry.is_allow());
            }
            let Some(place) = inside(&whole, net) else {
                // All of IPv4 stands inside: everything is compiled then.
                return Ok(());
            };
            prop_assert_eq!(&whole[place], &part[..]);
        }

        /// Without it: a list that was replaced is not the new one.
        #[test]
        fn difference_leads_from_one_to_the_other(
            old in proptest::collection::vec(line(), 0..30),
            new in proptest::collection::vec(line(), 0..30),
        ) {
            let (old, new) = (compile(old), compile(new));
            let mut map: BTreeMap<Net, Entry> = old.iter().map(|l| (l.net, l.entry)).collect();
            let difference = difference(&old, &new);
            map.extend(difference.set.iter().map(|line| (line.net, line.entry)));
            for line in &difference.gone {
                prop_assert_eq!(map.remove(&line.net), Some(line.entry));
            }
            let expected: BTreeMap<Net, Entry> = new.iter().map(|l| (l.net, l.entry)).collect();
            prop_assert_eq!(map, expected);
        }
    }
}
