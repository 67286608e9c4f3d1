//! A small hash for tables whose keys come from the configuration.
//!
//! Not keyed, so not for tables that clients can fill: those use std's keyed hash (see
//! `rate_limit`). Here a request can only look up; a collision merely gives one candidate more,
//! which is then checked in full.

use std::hash::{BuildHasherDefault, Hasher};

/// Folds bytes, eight at a time. The result doesn't depend on how the bytes are cut into writes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Fold {
    state: u64,
    pending: u64,
    filled: u32,
}

const MULTIPLIER: u64 = 0x9e37_79b9_7f4a_7c15;

const fn mix(state: u64, word: u64) -> u64 {
    let folded = ((state ^ word) as u128).wrapping_mul(MULTIPLIER as u128);
    // Both halves of the product, so that high input bits reach low output bits.
    (folded as u64 ^ (folded >> 64) as u64)
        .rotate_left(23)
        .wrapping_add(word)
}

impl Fold {
    pub(super) const fn new(seed: u64) -> Self {
        Self {
            state: mix(MULTIPLIER, seed),
            pending: 0,
            filled: 0,
        }
    }

    pub(super) fn byte(&mut self, byte: u8) {
        self.pending |= u64::from(byte) << (8 * self.filled);
        self.filled += 1;
        if self.filled == 8 {
            self.state = mix(self.state, self.pending);
            (self.pending, self.filled) = (0, 0);
        }
    }

    pub(super) fn write(&mut self, mut bytes: &[u8]) {
        while self.filled != 0 {
            let Some((first, rest)) = bytes.split_first() else {
                return;
            };
            self.byte(*first);
            bytes = rest;
        }
        let (words, rest) = bytes.as_chunks::<8>();
        for word in words {
            self.state = mix(self.state, u64::from_le_bytes(*word));
        }
        for byte in rest {
            self.byte(*byte);
        }
    }

    pub(super) const fn finish(self) -> u64 {
        // The count keeps «a» and «a\0» apart.
        mix(
            self.state,
            self.pending ^ (((self.filled as u64) + 1) << 56),
        )
    }
}

/// The hash of one string of bytes.
pub(super) fn of(seed: u64, bytes: &[u8]) -> u64 {
    let mut fold = Fold::new(seed);
    fold.write(bytes);
    fold.finish()
}

/// Two hashes in one, order kept.
pub(super) const fn join(first: u64, second: u64) -> u64 {
    mix(first.rotate_left(5), second)
}

/// For maps whose keys are hashes, or ids that count up.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Identity(u64);

impl Hasher for Identity {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        // Only integers are ever hashed with it; right, if slow, for anything else.
        self.0 = of(self.0, bytes);
    }

    fn write_u64(&mut self, value: u64) {
        // hashbrown takes its control bytes from the top: ids that count up need spreading.
        self.0 = value.wrapping_mul(MULTIPLIER);
    }
}

/// A map with hashes or ids as keys.
pub(super) type IdMap<V> = std::collections::HashMap<u64, V, BuildHasherDefault<Identity>>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fold_cut_anywhere_gives_one_result() {
        let text = b"/api/v1/users/0123456789abcdef";
        for cut in 0..=text.len() {
            for second in cut..=text.len() {
                let mut fold = Fold::new(7);
                fold.write(&text[..cut]);
                fold.write(&text[cut..second]);
                fold.write(&text[second..]);
                assert_eq!(fold.finish(), of(7, text), "cut at {cut}, {second}");
            }
        }
    }

    #[test]
    fn fold_of_similar_strings_differs() {
        let mut seen = std::collections::HashSet::new();
        for n in 0..200_000_u32 {
            assert!(
                seen.insert(of(1, format!("/svc/item/{n}").as_bytes())),
                "{n}"
            );
        }
        assert_ne!(of(1, b"a"), of(1, b"a\0"));
        assert_ne!(of(1, b""), of(1, b"\0"));
        assert_ne!(of(1, b"12345678"), of(1, b"12345678\0"));
        assert_ne!(of(1, b"a"), of(2, b"a"));
    }
}
