//! Request ids.

use crate::policy::rng::Rng;

/// Appends a random UUID (RFC 9562, version 4).
pub(super) fn push_request_id(out: &mut Vec<u8>, rng: &mut Rng) -> std::ops::Range<usize> {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    let from = out.len();
    let high = (rng.next_u64() & !0xf000) | 0x4000;
    let low = (rng.next_u64() & !(0b11 << 62)) | (0b10 << 62);
    for (index, byte) in high
        .to_be_bytes()
        .iter()
        .chain(&low.to_be_bytes())
        .enumerate()
    {
        if matches!(index, 4 | 6 | 8 | 10) {
            out.push(b'-');
        }
        out.push(HEX[usize::from(byte >> 4)]);
        out.push(HEX[usize::from(byte & 15)]);
    }
    from..out.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn request_id_is_a_version_4_uuid() {
        let mut out = b"before".to_vec();
        let span = push_request_id(&mut out, &mut Rng::new(1));
        let id = str::from_utf8(&out[span]).unwrap();
        assert_eq!(id.len(), 36);
        assert_eq!(id.as_bytes()[14], b'4', "version: {id}");
        assert!(
            matches!(id.as_bytes()[19], b'8' | b'9' | b'a' | b'b'),
            "variant: {id}"
        );
        assert_eq!(
            id.split('-').map(str::len).collect::<Vec<_>>(),
            [8, 4, 4, 4, 12]
        );
    }
}
