//! The payload in bytes that pass with their framing.

use super::{body::Body, chunked::Chunked};

/// Takes the framing off.
#[derive(Clone, Copy, Debug)]
pub(super) struct Payload(Option<Chunked>);

impl Payload {
    /// Of a body that is forwarded as it stands; `data_only`: its framing is taken off before.
    pub(super) const fn of(body: &Body, data_only: bool) -> Self {
        match body {
            Body::Chunked(_) if !data_only => Self(Some(Chunked::new(true))),
            _ => Self(None),
        }
    }

    /// Calls `with` for each run of payload in `bytes`, which were validated already.
    pub(super) fn each(&mut self, mut bytes: &[u8], mut with: impl FnMut(&[u8])) {
        let Some(chunked) = &mut self.0 else {
            return with(bytes);
        };
        while !bytes.is_empty() {
            let Ok(step) = chunked.step(bytes) else {
                return;
            };
            let taken = step.skip + step.forward;
            if step.forward > 0 {
                with(&bytes[step.skip..taken]);
            }
            if taken == 0 {
                return;
            }
            bytes = &bytes[taken..];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn payload_of_chunks_in_any_pieces_is_the_data() {
        let bytes = b"5;a=b\r\nhello\r\n6\r\n world\r\n0\r\nx-sum: 1\r\n\r\n";
        for piece in 1..bytes.len() {
            let mut payload = Payload::of(&Body::Chunked(Chunked::new(false)), false);
            let mut out = Vec::new();
            for part in bytes.chunks(piece) {
                payload.each(part, |data| out.extend_from_slice(data));
            }
            assert_eq!(out, b"hello world", "{piece}");
        }
    }
}
