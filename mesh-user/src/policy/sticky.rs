//! Sticky weighted splits: the same key goes to the same target while the weights stay.
//!
//! Weighted rendezvous: each target draws `-ln(u) / weight` with a `u` that the key and the target's
//! name make, the smallest draw wins. A target's share is exactly its weight of the sum, and a key
//! leaves target A for target B only when B's weight grew relative to A's: raising a weight moves
//! keys to that target alone, with any number of targets. (Cumulative shares, the other way to do
//! it, keep that promise for two targets only.) Everything is made from the configuration and the
//! request, so every node decides alike.

use std::hash::Hasher as _;

use twox_hash::XxHash64;

use super::{HeaderView, attribute::Asker, route::TargetPlan};
use crate::model::{Attribute, action::Sticky};

/// A compiled [`Sticky`].
#[derive(Debug)]
pub(super) struct StickyPlan {
    key: Vec<Attribute>,
    seed: u64,
    /// What names each target, whatever its place in the list and its weight.
    names: Vec<u64>,
}

impl StickyPlan {
    /// `names`: of the targets, in order. The second of the same name is another one.
    pub(super) fn new(from: &Sticky, names: &[String]) -> Self {
        let seed = XxHash64::oneshot(SALT, from.salt.as_bytes());
        let name = |(at, name): (usize, &String)| {
            let before = names[..at].iter().filter(|other| *other == name).count();
            XxHash64::oneshot(before as u64, name.as_bytes())
        };
        Self {
            key: from.key.clone(),
            seed,
            names: names.iter().enumerate().map(name).collect(),
        }
    }

    /// What makes the key, for people.
    pub(super) fn text(&self) -> String {
        let names: Vec<String> = self.key.iter().map(ToString::to_string).collect();
        names.join(" + ")
    }

    /// The hash of the key; none when the request has none of its attributes.
    fn key<H: HeaderView>(&self, asker: &Asker<'_, H>) -> Option<u64> {
        let mut hash = XxHash64::with_seed(self.seed);
        let mut any = false;
        for (at, attribute) in (0_u32..).zip(&self.key) {
            let mut length = 0_u64;
            if asker.attribute(attribute, |part| {
                length += part.len() as u64;
                hash.write(part);
            }) {
                any = true;
                // Keeps «a» + «bc» and «ab» + «c» apart.
                hash.write(&at.to_le_bytes());
                hash.write(&length.to_le_bytes());
            }
        }
        any.then(|| hash.finish())
    }

    /// The target of the request's key. None: it has no key, or no target has a weight.
    pub(super) fn choose<H: HeaderView>(
        &self,
        asker: &Asker<'_, H>,
        targets: &[TargetPlan],
    ) -> Option<usize> {
        let weights = targets.iter().map(|target| target.weight);
        rendezvous(self.key(asker)?, &self.names, weights)
    }
}

/// Keeps the hashes of salts apart from those of keys.
const SALT: u64 = 0x6d65_7368;

fn rendezvous(key: u64, names: &[u64], weights: impl Iterator<Item = u32>) -> Option<usize> {
    let mut best: Option<(usize, f64)> = None;
    for (at, (name, weight)) in names.iter().zip(weights).enumerate() {
        if weight == 0 {
            continue;
        }
        let draw = exponential(mix(key ^ name)) / f64::from(weight);
        if best.is_none_or(|(_, least)| draw < least) {
            best = Some((at, draw));
        }
    }
    best.map(|(at, _)| at)
}

/// splitmix64's finaliser.
const fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// `-ln(u)` of the `u` in (0, 1] that the upper 53 bits make.
fn exponential(bits: u64) -> f64 {
    let x = (bits >> 11) + 1;
    let exponent = 63 - x.leading_zeros();
    // In [1, 2), exactly: x has at most 54 bits, and the last one only for 2^53 itself.
    let m = x as f64 / (1_u64 << exponent) as f64;
    f64::from(53 - exponent) * std::f64::consts::LN_2 - ln(m)
}

/// ln of a number in [1, 2) by its atanh series: additions, products and quotients only, which are
/// the same on every machine, as a library's logarithm need not be.
fn ln(m: f64) -> f64 {
    let z = (m - 1.0) / (m + 1.0);
    let square = z * z;
    // z is at most 1/3: the first term left out is below 10^-17.
    let mut sum = 0.0;
    for n in (0..17_u32).rev() {
        sum = sum * square + 1.0 / f64::from(2 * n + 1);
    }
    2.0 * z * sum
}

#[cfg(test)]
mod tests;
