//! Buffers that are borrowed only while bytes flow.
//!
//! A [`Buf`] holds no memory until bytes are about to be read into it, and gives its block back to
//! the worker's store when it runs empty. An idle connection therefore costs no buffer, and a busy
//! worker touches the same few blocks again and again.

use std::cell::RefCell;

/// Bytes in a block: one TLS record or HTTP/2 frame, and what HAProxy uses (`tune.bufsize`).
pub(super) const BLOCK_BYTES: usize = 16 << 10;
/// Blocks that a worker keeps for reuse: 4 MiB at most. More were a burst and go back to the
/// allocator.
const BLOCKS_KEPT_MAX: usize = 256;
/// Head buffers that a worker keeps.
const HEADS_KEPT_MAX: usize = 256;
/// A head buffer that grew larger than this is not kept.
const HEAD_KEPT_BYTES_MAX: usize = 8 << 10;

thread_local! {
    static BLOCKS: RefCell<Vec<Box<[u8]>>> = const { RefCell::new(Vec::new()) };
    static HEADS: RefCell<Vec<Vec<u8>>> = const { RefCell::new(Vec::new()) };
}

fn take_block() -> Box<[u8]> {
    BLOCKS
        .try_with(|blocks| blocks.borrow_mut().pop())
        .ok()
        .flatten()
        .unwrap_or_else(|| vec![0; BLOCK_BYTES].into_boxed_slice())
}

fn give_block(block: Box<[u8]>) {
    if block.len() != BLOCK_BYTES {
        return;
    }
    // At thread exit the store may be gone already: then the block is simply freed.
    let _gone = BLOCKS.try_with(|blocks| {
        let mut blocks = blocks.borrow_mut();
        if blocks.len() < BLOCKS_KEPT_MAX {
            blocks.push(block);
        }
    });
}

/// Bytes that were read and not yet consumed: a window in a borrowed block.
#[derive(Debug, Default)]
pub(super) struct Buf {
    block: Box<[u8]>,
    start: usize,
    end: usize,
}

impl Buf {
    /// A buffer that starts with `bytes`.
    #[cfg(test)]
    pub(super) fn from_bytes(bytes: &[u8]) -> Self {
        let mut buf = Self::default();
        buf.reserve(bytes.len());
        buf.spare()[..bytes.len()].copy_from_slice(bytes);
        buf.filled(bytes.len());
        buf
    }

    /// The bytes at hand.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.block[self.start..self.end]
    }

    /// How many bytes are at hand.
    pub(super) const fn len(&self) -> usize {
        self.end - self.start
    }

    /// Whether no byte is at hand.
    pub(super) const fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// Whether a block is held.
    pub(super) const fn holds_block(&self) -> bool {
        !self.block.is_empty()
    }

    /// Room for reading; takes a block when none is held, moves the bytes to the front when the
    /// end is reached.
    pub(super) fn spare(&mut self) -> &mut [u8] {
        if self.block.is_empty() {
            self.block = take_block();
        } else if self.end == self.block.len() && self.start > 0 {
            self.block.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        &mut self.block[self.end..]
    }

    /// Whether there is room for another byte without growing.
    pub(super) fn has_room(&self) -> bool {
        self.block.is_empty() || self.len() < self.block.len()
    }

    /// Grows so that at least one more byte fits, for a head that is larger than a block. The
    /// caller bounds it.
    pub(super) fn grow(&mut self) {
        let mut larger = vec![0; (self.block.len() * 2).max(BLOCK_BYTES)].into_boxed_slice();
        let len = self.len();
        larger[..len].copy_from_slice(self.bytes());
        give_block(std::mem::replace(&mut self.block, larger));
        (self.start, self.end) = (0, len);
    }

    #[cfg(test)]
    fn reserve(&mut self, bytes: usize) {
        while self.spare().len() < bytes {
            self.grow();
        }
    }

    /// Notes that `count` bytes were read into [`Self::spare`].
    pub(super) fn filled(&mut self, count: usize) {
        self.end += count;
        debug_assert!(self.end <= self.block.len(), "read no more than the room");
    }

    /// Drops `count` bytes from the front; gives the block back when none is left.
    pub(super) fn consume(&mut self, count: usize) {
        debug_assert!(count <= self.len(), "consume no more than is at hand");
        self.start += count;
        if self.start >= self.end {
            self.release();
        }
    }

    /// Drops everything and gives the block back.
    pub(super) fn release(&mut self) {
        if !self.block.is_empty() {
            give_block(std::mem::take(&mut self.block));
        }
        (self.start, self.end) = (0, 0);
    }
}

impl Drop for Buf {
    fn drop(&mut self) {
        self.release();
    }
}

/// A growing buffer for a head that is written; goes back to the worker's store.
#[derive(Debug, Default)]
pub(super) struct HeadBuf(Vec<u8>);

impl HeadBuf {
    /// An empty one, with room when the store has one.
    pub(super) fn take() -> Self {
        Self(
            HEADS
                .try_with(|heads| heads.borrow_mut().pop())
                .ok()
                .flatten()
                .unwrap_or_else(|| Vec::with_capacity(1024)),
        )
    }
}

impl std::ops::Deref for HeadBuf {
    type Target = Vec<u8>;
    fn deref(&self) -> &Vec<u8> {
        &self.0
    }
}

impl std::ops::DerefMut for HeadBuf {
    fn deref_mut(&mut self) -> &mut Vec<u8> {
        &mut self.0
    }
}

impl Drop for HeadBuf {
    fn drop(&mut self) {
        let mut head = std::mem::take(&mut self.0);
        if head.capacity() == 0 || head.capacity() > HEAD_KEPT_BYTES_MAX {
            return;
        }
        head.clear();
        let _gone = HEADS.try_with(|heads| {
            let mut heads = heads.borrow_mut();
            if heads.len() < HEADS_KEPT_MAX {
                heads.push(head);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buf_empty_holds_no_block() {
        let mut buf = Buf::default();
        assert!(!buf.holds_block());
        buf.spare()[..3].copy_from_slice(b"abc");
        buf.filled(3);
        assert_eq!(buf.bytes(), b"abc");
        buf.consume(3);
        assert!(!buf.holds_block());
    }

    #[test]
    fn buf_full_at_its_end_moves_bytes_to_the_front() {
        let mut buf = Buf::from_bytes(&[7; BLOCK_BYTES]);
        buf.consume(BLOCK_BYTES - 2);
        assert!(buf.has_room());
        assert_eq!(buf.spare().len(), BLOCK_BYTES - 2);
        assert_eq!(buf.bytes(), [7, 7]);
    }

    #[test]
    fn buf_grown_keeps_its_bytes() {
        let bytes: Vec<u8> = (0..BLOCK_BYTES).map(|i| i as u8).collect();
        let mut buf = Buf::from_bytes(&bytes);
        assert!(!buf.has_room());
        buf.grow();
        assert_eq!(buf.bytes(), bytes);
        assert_eq!(buf.spare().len(), BLOCK_BYTES);
    }

    #[test]
    fn block_given_back_is_taken_again() {
        let before = BLOCKS.with(|blocks| blocks.borrow().len());
        drop(Buf::from_bytes(b"x"));
        let after = BLOCKS.with(|blocks| blocks.borrow().len());
        assert_eq!(after, before.max(1));
    }
}
