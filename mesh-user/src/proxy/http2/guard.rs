//! Counts the frames that cost work and carry nothing: PING, SETTINGS, PRIORITY, WINDOW_UPDATE,
//! empty DATA, resets, unknown types. Each is harmless alone; a stream of them keeps a core busy
//! without ever breaking a limit on streams or bytes (CVE-2019-9512, -9515, -9518, 2023-44487).
//!
//! Pure: bytes and time come in. Reads frame headers only (RFC 9113, section 4.1).

use crate::clock::MonoNanos;

/// Bytes of a frame header.
const HEADER_BYTES: usize = 9;
/// Control frames that may come at once.
const CONTROL_MAX: u64 = 1000;
/// Control frames that are forgiven each second: keep-alive and bandwidth probes need a few.
const CONTROL_PER_S: u64 = 100;
/// Payload or answer bytes that earn one control frame: half of what a window update usually
/// acknowledges.
const BYTES_PER_CONTROL: u64 = 1024;
/// Control frames that a new stream earns.
const CONTROL_PER_STREAM: u64 = 8;
/// Streams that may be reset at once: two full sets of concurrent streams.
const RESETS_MAX: u64 = 200;
/// Resets that are forgiven each second: deadlines that run out do happen.
const RESETS_PER_S: u64 = 100;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

/// The peer sends more than it should.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Flood;

#[derive(Clone, Copy, Debug)]
struct Bucket {
    level: u64,
    max: u64,
    per_s: u64,
    at: MonoNanos,
}

impl Bucket {
    fn give(&mut self, count: u64) {
        self.level = self.level.saturating_add(count).min(self.max);
    }

    fn take(&mut self, now: MonoNanos) -> Result<(), Flood> {
        if self.level == 0 {
            // Time is looked at only when the level is down: whole steps, so none gets lost.
            let earned = now.since(self.at).as_millis() as u64 * self.per_s / 1000;
            if earned == 0 {
                return Err(Flood);
            }
            self.at = now;
            self.give(earned);
        }
        self.level -= 1;
        Ok(())
    }
}

/// The state of one connection.
#[derive(Debug)]
pub(super) struct Guard {
    /// Bytes of the client's preface that are still to come.
    preface: usize,
    header: [u8; HEADER_BYTES],
    header_len: usize,
    payload_left: usize,
    /// Payload bytes that have not earned a control frame yet.
    earning: u64,
    control: Bucket,
    resets: Bucket,
    /// Since when a header block has been incomplete.
    headers_since: Option<MonoNanos>,
}

impl Guard {
    /// `preface`: how many bytes come before the first frame.
    pub(super) fn new(preface: usize, now: MonoNanos) -> Self {
        let bucket = |max, per_s| Bucket {
            level: max,
            max,
            per_s,
            at: now,
        };
        Self {
            preface,
            header: [0; HEADER_BYTES],
            header_len: 0,
            payload_left: 0,
            earning: 0,
            control: bucket(CONTROL_MAX, CONTROL_PER_S),
            resets: bucket(RESETS_MAX, RESETS_PER_S),
            headers_since: None,
        }
    }

    /// Notes bytes that were sent to the peer: it may acknowledge them.
    pub(super) fn sent(&mut self, bytes: usize) {
        self.earn(bytes as u64);
    }

    /// Since when a header block has been incomplete.
    pub(super) const fn headers_since(&self) -> Option<MonoNanos> {
        self.headers_since
    }

    /// Whether what came ends with a whole frame.
    pub(super) const fn is_between_frames(&self) -> bool {
        self.preface == 0 && self.header_len == 0 && self.payload_left == 0
    }

    fn earn(&mut self, bytes: u64) {
        self.earning += bytes;
        self.control.give(self.earning / BYTES_PER_CONTROL);
        self.earning %= BYTES_PER_CONTROL;
    }

    /// Takes in bytes from the peer.
    ///
    /// # Errors
    /// [`Flood`]: the connection should end.
    pub(super) fn received(&mut self, mut bytes: &[u8], now: MonoNanos) -> Result<(), Flood> {
        let preface = self.preface.min(bytes.len());
        self.preface -= preface;
        bytes = &bytes[preface..];
        let mut verdict = Ok(());
        while !bytes.is_empty() {
            if self.payload_left > 0 {
                let skip = self.payload_left.min(bytes.len());
                self.payload_left -= skip;
                bytes = &bytes[skip..];
                continue;
            }
            let part = (HEADER_BYTES - self.header_len).min(bytes.len());
            self.header[self.header_len..self.header_len + part].copy_from_slice(&bytes[..part]);
            self.header_len += part;
            bytes = &bytes[part..];
            if self.header_len == HEADER_BYTES {
                self.header_len = 0;
                verdict = verdict.and(self.frame(now));
            }
        }
        verdict
    }

    fn frame(&mut self, now: MonoNanos) -> Result<(), Flood> {
        let [a, b, c, kind, flags, ..] = self.header;
        let length = usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c);
        self.payload_left = length;
        match kind {
            HEADERS if flags & END_HEADERS == 0 => self.headers_since = Some(now),
            HEADERS | CONTINUATION if flags & END_HEADERS != 0 => self.headers_since = None,
            _ => {}
        }
        match kind {
            DATA if length > 0 => {
                self.earn(length as u64);
                Ok(())
            }
            DATA if flags & END_STREAM != 0 => Ok(()),
            HEADERS => {
                self.control.give(CONTROL_PER_STREAM);
                Ok(())
            }
            // h2 bounds how many may follow one HEADERS; an empty one carries nothing.
            CONTINUATION if length > 0 => Ok(()),
            RST_STREAM => self.resets.take(now),
            _ => self.control.take(now),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const T0: MonoNanos = MonoNanos(1_000_000_000);

    fn frame(kind: u8, flags: u8, length: usize) -> Vec<u8> {
        let length_bytes = (length as u32).to_be_bytes();
        let mut frame = length_bytes[1..].to_vec();
        frame.extend_from_slice(&[kind, flags, 0, 0, 0, 1]);
        frame.resize(HEADER_BYTES + length, 0);
        frame
    }

    fn allowed(guard: &mut Guard, frame: &[u8], now: MonoNanos) -> u64 {
        (0..100_000)
            .take_while(|_| guard.received(frame, now).is_ok())
            .count() as u64
    }

    #[test]
    fn control_frames_at_their_limit_and_above() {
        for (kind, length) in [(4, 0), (6, 8), (2, 5), (8, 4), (0, 0), (0xbb, 3), (9, 0)] {
            let mut guard = Guard::new(0, T0);
            assert_eq!(
                allowed(&mut guard, &frame(kind, 0, length), T0),
                CONTROL_MAX,
                "{kind}"
            );
        }
        let mut guard = Guard::new(0, T0);
        assert_eq!(allowed(&mut guard, &frame(3, 0, 4), T0), RESETS_MAX);
    }

    #[test]
    fn time_streams_and_bytes_earn_control_frames() {
        let ping = frame(6, 0, 8);
        let mut guard = Guard::new(0, T0);
        allowed(&mut guard, &ping, T0);
        let later = T0.after(Duration::from_millis(500));
        assert_eq!(allowed(&mut guard, &ping, later), CONTROL_PER_S / 2);
        guard.received(&frame(1, 4, 10), later).unwrap();
        assert_eq!(allowed(&mut guard, &ping, later), CONTROL_PER_STREAM);
        guard.received(&frame(0, 0, 2048), later).unwrap();
        assert_eq!(allowed(&mut guard, &ping, later), 2);
        guard.sent(3 * 1024);
        assert_eq!(allowed(&mut guard, &ping, later), 3);
    }

    #[test]
    fn frames_in_pieces_count_once() {
        let mut bytes = b"PREFACE!".to_vec();
        for _ in 0..CONTROL_MAX {
            bytes.extend_from_slice(&frame(6, 0, 8));
        }
        let mut guard = Guard::new(8, T0);
        for byte in &bytes {
            guard.received(&[*byte], T0).unwrap();
        }
        assert_eq!(guard.received(&frame(6, 0, 8), T0), Err(Flood));
    }

    #[test]
    fn header_block_is_timed_from_its_start_to_its_end() {
        let mut guard = Guard::new(0, T0);
        guard.received(&frame(1, 0, 10), T0).unwrap();
        let later = T0.after(Duration::from_secs(1));
        guard.received(&frame(9, 0, 10), later).unwrap();
        assert_eq!(guard.headers_since(), Some(T0));
        guard.received(&frame(9, END_HEADERS, 10), later).unwrap();
        assert_eq!(guard.headers_since(), None);
    }

    #[test]
    fn requests_and_bodies_are_never_a_flood() {
        let mut guard = Guard::new(0, T0);
        for _ in 0..10_000 {
            guard.received(&frame(1, 4, 30), T0).unwrap();
            guard.received(&frame(0, 0, 16_384), T0).unwrap();
            guard.received(&frame(8, 0, 4), T0).unwrap();
            guard.received(&frame(0, END_STREAM, 0), T0).unwrap();
        }
    }
}
