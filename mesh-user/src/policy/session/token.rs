//! What a client carries: endpoint, beginning and last sight, with a check over them, in hex.

use super::siphash::SipKey;

const ENDPOINT: usize = 8;
/// Endpoint, since, seen: the last two in seconds since the epoch, 32 bits each (good until 2106).
const CLAIM: usize = ENDPOINT + 4 + 4;
const CHECK: usize = 8;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Token {
    pub(super) endpoint: u64,
    pub(super) since: u64,
    pub(super) seen: u64,
}

impl Token {
    pub(super) fn write(&self, key: &SipKey) -> String {
        let mut bytes = [0; CLAIM + CHECK];
        bytes[..ENDPOINT].copy_from_slice(&self.endpoint.to_be_bytes());
        let seconds = |time: u64| u32::try_from(time).unwrap_or(u32::MAX).to_be_bytes();
        bytes[ENDPOINT..ENDPOINT + 4].copy_from_slice(&seconds(self.since));
        bytes[ENDPOINT + 4..CLAIM].copy_from_slice(&seconds(self.seen));
        let check = key.hash(&bytes[..CLAIM]);
        bytes[CLAIM..].copy_from_slice(&check.to_be_bytes());
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// None for anything that no token of this key is.
    pub(super) fn read(text: &[u8], key: &SipKey) -> Option<Self> {
        let (pairs, []) = text.as_chunks::<2>() else {
            return None;
        };
        let mut bytes = [0; CLAIM + CHECK];
        if pairs.len() != bytes.len() {
            return None;
        }
        for (byte, [high, low]) in bytes.iter_mut().zip(pairs) {
            let digit = |hex: u8| char::from(hex).to_digit(16);
            *byte = (digit(*high)? << 4 | digit(*low)?) as u8;
        }
        let (claim, check) = bytes.split_at(CLAIM);
        if key.hash(claim).to_be_bytes() != *check {
            return None;
        }
        let seconds = |at: usize| {
            Some(u64::from(u32::from_be_bytes(
                claim[at..at + 4].try_into().ok()?,
            )))
        };
        Some(Self {
            endpoint: u64::from_be_bytes(claim[..ENDPOINT].try_into().ok()?),
            since: seconds(ENDPOINT)?,
            seen: seconds(ENDPOINT + 4)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn token_reads_back_and_any_changed_digit_is_none() {
        let key = SipKey::new("salt", "a/b/c");
        let token = Token {
            endpoint: 0x0123_4567_89ab_cdef,
            since: 1_700_000_000,
            seen: 1_700_000_123,
        };
        let text = token.write(&key);
        assert_eq!(text.len(), 48);
        assert_eq!(Token::read(text.as_bytes(), &key), Some(token));
        for at in 0..text.len() {
            let mut other = text.clone().into_bytes();
            other[at] = if other[at] == b'0' { b'1' } else { b'0' };
            assert_eq!(Token::read(&other, &key), None, "digit {at}");
        }
        for other in [SipKey::new("salt", "a/b/d"), SipKey::new("tlas", "a/b/c")] {
            assert_eq!(Token::read(text.as_bytes(), &other), None);
        }
        for bad in [
            "",
            "0",
            &text[2..],
            &format!("{text}00"),
            &text.replace('0', "é"),
        ] {
            assert_eq!(Token::read(bad.as_bytes(), &key), None, "{bad}");
        }
    }
}
