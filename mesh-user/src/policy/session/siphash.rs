//! SipHash-2-4 (Aumasson, Bernstein, 2012): a keyed hash whose key can't be found from its results.
//! The standard library's has no way to set the key.

use std::{fmt::Write as _, net::SocketAddr};

/// A key of 128 bits.
#[derive(Clone, Copy)]
pub(super) struct SipKey(u64, u64);

// The key stays out of logs.
impl std::fmt::Debug for SipKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SipKey")
    }
}

impl SipKey {
    /// From a salt of any length, for one scope.
    pub(super) fn new(salt: &str, scope: &str) -> Self {
        let text = format!("{}:{salt}{scope}", salt.len());
        let half = |n: u64| Self(n, !n).hash(text.as_bytes());
        Self(half(0x6d65_7368_0000_0001), half(0x6d65_7368_0000_0002))
    }

    /// What names an endpoint in tokens.
    pub(super) fn endpoint(self, port: &str, version: &str, address: SocketAddr) -> u64 {
        let mut text = String::with_capacity(64);
        // Writing to a String can't fail. A line break is in none of the parts.
        let _ = write!(text, "{port}\n{version}\n{address}");
        self.hash(text.as_bytes())
    }

    pub(super) fn hash(self, bytes: &[u8]) -> u64 {
        let mut state = State {
            v0: self.0 ^ 0x736f_6d65_7073_6575,
            v1: self.1 ^ 0x646f_7261_6e64_6f6d,
            v2: self.0 ^ 0x6c79_6765_6e65_7261,
            v3: self.1 ^ 0x7465_6462_7974_6573,
        };
        let (words, rest) = bytes.as_chunks::<8>();
        for word in words {
            state.word(u64::from_le_bytes(*word));
        }
        let mut last = [0; 8];
        last[..rest.len()].copy_from_slice(rest);
        last[7] = bytes.len() as u8;
        state.word(u64::from_le_bytes(last));
        state.v2 ^= 0xff;
        for _ in 0..4 {
            state.round();
        }
        state.v0 ^ state.v1 ^ state.v2 ^ state.v3
    }
}

struct State {
    v0: u64,
    v1: u64,
    v2: u64,
    v3: u64,
}

impl State {
    fn word(&mut self, word: u64) {
        self.v3 ^= word;
        self.round();
        self.round();
        self.v0 ^= word;
    }

    const fn round(&mut self) {
        self.v0 = self.v0.wrapping_add(self.v1);
        self.v1 = self.v1.rotate_left(13) ^ self.v0;
        self.v0 = self.v0.rotate_left(32);
        self.v2 = self.v2.wrapping_add(self.v3);
        self.v3 = self.v3.rotate_left(16) ^ self.v2;
        self.v0 = self.v0.wrapping_add(self.v3);
        self.v3 = self.v3.rotate_left(21) ^ self.v0;
        self.v2 = self.v2.wrapping_add(self.v1);
        self.v1 = self.v1.rotate_left(17) ^ self.v2;
        self.v2 = self.v2.rotate_left(32);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn siphash_gives_the_vectors_of_its_authors() {
        // Key 00..0f, messages 00, 00 01, ... (siphash reference, vectors_sip64).
        let key = SipKey(0x0706_0504_0302_0100, 0x0f0e_0d0c_0b0a_0908);
        let message: Vec<u8> = (0..15).collect();
        assert_eq!(key.hash(&[]), 0x726f_db47_dd0e_0e31);
        assert_eq!(key.hash(&message[..1]), 0x74f8_39c5_93dc_67fd);
        assert_eq!(key.hash(&message), 0xa129_ca61_49be_45e5);
    }
}
