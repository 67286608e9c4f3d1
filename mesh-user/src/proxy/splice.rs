//! Bytes from socket to socket through a pipe (splice(2)): they never enter user space.
//!
//! A pipe is borrowed only while bytes flow, and is filled only when it is empty. So EAGAIN of a
//! fill always speaks of the socket, never of a full pipe, and EAGAIN of a drain always of the
//! other socket; and a pipe that goes back to the store carries nobody's bytes.
//!
//! What stands in a pipe are references to the pages of the receive queue, no copies. Bytes are
//! bounded by [`PIPE_BYTES`] a pipe, pipes by [`PIPES_MAX`] a worker, descriptors by twice that.

use std::{
    cell::RefCell,
    io,
    os::fd::{AsFd, OwnedFd},
};

use nix::fcntl::{OFlag, SpliceFFlags, splice};

/// Bytes that a pipe is filled with at most: its size by default, 16 slots of a page.
pub(super) const PIPE_BYTES: usize = 64 << 10;
/// Pipes that a worker has at one time, so that slow readers can't take all descriptors. Who comes
/// later copies.
const PIPES_MAX: usize = 256;
/// Empty pipes that a worker keeps: streams that flow take turns, more were a burst.
const PIPES_KEPT_MAX: usize = 16;

#[derive(Debug)]
struct Ends {
    read: OwnedFd,
    write: OwnedFd,
}

#[derive(Debug)]
struct Store {
    empty: Vec<Ends>,
    borrowed: usize,
}

thread_local! {
    static STORE: RefCell<Store> = const { RefCell::new(Store { empty: Vec::new(), borrowed: 0 }) };
}

fn borrow_ends() -> Option<Ends> {
    STORE
        .try_with(|store| {
            let mut store = store.borrow_mut();
            if store.borrowed >= PIPES_MAX {
                return None;
            }
            let ends = match store.empty.pop() {
                Some(ends) => ends,
                // Out of descriptors: copying needs none.
                None => nix::unistd::pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)
                    .map(|(read, write)| Ends { read, write })
                    .ok()?,
            };
            store.borrowed += 1;
            Some(ends)
        })
        .ok()
        .flatten()
}

fn give_back(ends: Option<Ends>) {
    // At thread exit the store may be gone already: then the pipe is simply closed.
    let _gone = STORE.try_with(|store| {
        let mut store = store.borrow_mut();
        store.borrowed -= 1;
        if let Some(ends) = ends
            && store.empty.len() < PIPES_KEPT_MAX
        {
            store.empty.push(ends);
        }
    });
}

/// A borrowed pipe and how many bytes stand in it.
#[derive(Debug)]
pub(super) struct Pipe {
    /// None only while it is dropped.
    ends: Option<Ends>,
    held: usize,
}

impl Pipe {
    /// Borrows an empty pipe. None when the worker has lent [`PIPES_MAX`] or no descriptor is left.
    pub(super) fn borrow() -> Option<Self> {
        borrow_ends().map(|ends| Self {
            ends: Some(ends),
            held: 0,
        })
    }

    /// How many bytes stand in it.
    pub(super) const fn held(&self) -> usize {
        self.held
    }

    /// Takes bytes out of a socket's receive queue, once; only when empty.
    ///
    /// `Ok(0)` and [`io::ErrorKind::WouldBlock`] both mean «nothing more this way», and neither
    /// means that the queue is empty or the stream has ended: splice never passes an urgent mark.
    /// Only a read tells.
    pub(super) fn fill(&mut self, source: impl AsFd) -> io::Result<usize> {
        debug_assert_eq!(
            self.held, 0,
            "a fill of a pipe that is not empty is ambiguous"
        );
        let Some(ends) = &self.ends else { return Ok(0) };
        let flags = SpliceFFlags::SPLICE_F_MOVE | SpliceFFlags::SPLICE_F_NONBLOCK;
        self.held = splice(source, None, &ends.write, None, PIPE_BYTES, flags)?;
        Ok(self.held)
    }

    /// Sends what stands in it, once. Without `SPLICE_F_MORE`, which would hold back the last
    /// segment for 200 ms.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`]: the send buffer is full. Others: the sink is broken.
    pub(super) fn drain(&mut self, sink: impl AsFd) -> io::Result<usize> {
        let Some(ends) = &self.ends else { return Ok(0) };
        let flags = SpliceFFlags::SPLICE_F_MOVE | SpliceFFlags::SPLICE_F_NONBLOCK;
        let count = splice(&ends.read, None, sink, None, self.held, flags)?;
        self.held -= count;
        Ok(count)
    }
}

impl Drop for Pipe {
    fn drop(&mut self) {
        // One that still holds bytes is closed.
        let ends = self.ends.take().filter(|_| self.held == 0);
        give_back(ends);
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read, Write},
        net::{TcpListener, TcpStream},
    };

    use super::*;

    /// Both ends of a connection, neither blocks.
    fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (server, _) = listener.accept().unwrap();
        client.set_nonblocking(true).unwrap();
        server.set_nonblocking(true).unwrap();
        (client, server)
    }

    fn kept() -> (usize, usize) {
        STORE.with(|store| {
            let store = store.borrow();
            (store.empty.len(), store.borrowed)
        })
    }

    #[test]
    fn pipe_carries_bytes_and_says_when_there_are_none() {
        let ((mut client, source), (sink, mut server)) = (pair(), pair());
        let mut pipe = Pipe::borrow().unwrap();
        let error = pipe.fill(&source).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
        client.write_all(b"through").unwrap();
        assert_eq!(pipe.fill(&source).unwrap(), 7);
        assert_eq!(pipe.held(), 7);
        assert_eq!(pipe.drain(&sink).unwrap(), 7);
        assert_eq!(pipe.held(), 0);
        let mut bytes = [0; 9];
        assert_eq!(server.read(&mut bytes).unwrap(), 7);
        assert_eq!(&bytes[..7], b"through");
        drop(client);
        assert_eq!(pipe.fill(&source).unwrap(), 0, "the end");
    }

    #[test]
    fn pipe_that_holds_bytes_is_never_lent_again() {
        let (mut client, source) = pair();
        let mut pipe = Pipe::borrow().unwrap();
        client.write_all(b"secret").unwrap();
        assert_eq!(pipe.fill(&source).unwrap(), 6);
        drop(pipe);
        assert_eq!(kept(), (0, 0));
        drop(Pipe::borrow().unwrap());
        assert_eq!(kept(), (1, 0));
    }

    #[test]
    fn pipes_at_their_limit_and_above() {
        let mut lent: Vec<_> = (0..PIPES_MAX).map(|_| Pipe::borrow().unwrap()).collect();
        assert!(Pipe::borrow().is_none());
        lent.pop();
        assert!(Pipe::borrow().is_some());
        drop(lent);
        assert_eq!(kept(), (PIPES_KEPT_MAX, 0));
    }

    #[test]
    fn drain_into_a_full_socket_would_block_and_loses_nothing() {
        let ((mut client, source), (sink, mut server)) = (pair(), pair());
        let mut pipe = Pipe::borrow().unwrap();
        let (mut sent, block) = (0, [7; 16 << 10]);
        let full = loop {
            if let Ok(count) = client.write(&block) {
                sent += count;
            }
            if pipe.held() == 0 {
                pipe.fill(&source).unwrap();
            }
            match pipe.drain(&sink) {
                Ok(_) => {}
                Err(error) => break error,
            }
        };
        assert_eq!(full.kind(), io::ErrorKind::WouldBlock);
        assert!(pipe.held() > 0);
        drop(client);
        let (mut got, mut room) = (0, vec![0; 1 << 20]);
        while got < sent {
            match server.read(&mut room) {
                Ok(count) => got += count,
                Err(error) => assert_eq!(error.kind(), io::ErrorKind::WouldBlock),
            }
            if pipe.held() > 0 {
                // The sink may still be full.
                let _count = pipe.drain(&sink);
            } else {
                // The source may be empty for a moment.
                let _count = pipe.fill(&source);
            }
        }
        assert_eq!(got, sent);
    }
}
