//! One connection of the load generator.

use std::{io, net::SocketAddr};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use super::decode::{self, Framing, Malformed};

/// Holds any head that servers send, and keeps the number of reads of a large body low.
const BUFFER_BYTES: usize = 64 << 10;
/// While a connection has only small answers.
const BUFFER_BYTES_FIRST: usize = 4 << 10;

/// An open connection.
#[derive(Debug)]
pub(super) struct Connection {
    stream: TcpStream,
    buffer: Vec<u8>,
    start: usize,
    end: usize,
}

/// A complete answer.
#[derive(Debug)]
pub(super) struct Answer {
    /// Its status.
    pub(super) status: u16,
    /// The server's version, when it is an echo server.
    pub(super) version: Option<Vec<u8>>,
    /// Bytes of its head and body.
    pub(super) bytes: u64,
    /// Whether another request may follow.
    pub(super) keep_alive: bool,
}

/// Why there is no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Failure {
    /// The connection was refused, or not made in time.
    Connect,
    /// The connection ended before the answer did.
    Closed,
    /// The connection was reset.
    Reset,
    /// What came is no HTTP, or longer than any head.
    Malformed,
    /// No answer when the time was up.
    Unfinished,
}

impl Failure {
    /// Its name in reports.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Connect => "connect",
            Self::Closed => "closed",
            Self::Reset => "reset",
            Self::Malformed => "malformed",
            Self::Unfinished => "unfinished",
        }
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => Self::Reset,
            _ => Self::Closed,
        }
    }
}

impl From<Malformed> for Failure {
    fn from(_: Malformed) -> Self {
        Self::Malformed
    }
}

impl Connection {
    pub(super) async fn open(address: SocketAddr) -> Result<Self, Failure> {
        let stream = TcpStream::connect(address)
            .await
            .map_err(|_| Failure::Connect)?;
        let _ = stream.set_nodelay(true);
        Ok(Self {
            stream,
            buffer: vec![0; BUFFER_BYTES_FIRST],
            start: 0,
            end: 0,
        })
    }

    /// Sends a request and reads its answer to the end.
    pub(super) async fn exchange(
        &mut self,
        request: &[u8],
        bodyless: bool,
    ) -> Result<Answer, Failure> {
        self.stream.write_all(request).await?;
        loop {
            let head = loop {
                if let Some(head) = decode::head(&self.buffer[self.start..self.end], bodyless)? {
                    break head;
                }
                self.fill().await?;
            };
            let version = head
                .version
                .map(|(from, to)| self.buffer[self.start + from..self.start + to].to_vec());
            self.start += head.length;
            // An interim answer: the final one follows. 101 is final.
            if head.status < 200 && head.status != 101 {
                continue;
            }
            let body = self.body(head.body).await?;
            let (status, keep_alive) = (head.status, head.keep_alive);
            return Ok(Answer {
                status,
                version,
                bytes: head.length as u64 + body,
                keep_alive,
            });
        }
    }

    /// Reads a body away; returns its length on the wire.
    async fn body(&mut self, mut framing: Framing) -> Result<u64, Failure> {
        let mut read = 0;
        loop {
            let here = &self.buffer[self.start..self.end];
            let (used, done) = match &mut framing {
                Framing::Length(left) => {
                    let used = usize::try_from(*left).unwrap_or(usize::MAX).min(here.len());
                    *left -= used as u64;
                    (used, *left == 0)
                }
                Framing::Chunked(chunked) => chunked.advance(here)?,
                Framing::Close => (here.len(), false),
            };
            self.start += used;
            read += used as u64;
            if done {
                return Ok(read);
            }
            match self.fill().await {
                Err(Failure::Closed) if framing == Framing::Close => return Ok(read),
                filled => filled?,
            }
        }
    }

    /// One byte there and back.
    pub(super) async fn ping(&mut self) -> Result<(), Failure> {
        self.stream.write_all(b"x").await?;
        self.fill().await?;
        self.start = self.end;
        // Our end first, then the peer's: nothing is lost, nothing is reset.
        self.stream.shutdown().await?;
        match self.fill().await {
            Err(Failure::Closed) => Ok(()),
            Err(failure) => Err(failure),
            Ok(()) => Err(Failure::Malformed),
        }
    }

    /// Waits for more bytes.
    async fn fill(&mut self) -> Result<(), Failure> {
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        }
        if self.start > 0 && self.end == self.buffer.len() {
            self.buffer.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        if self.end == self.buffer.len() {
            if self.buffer.len() >= BUFFER_BYTES {
                return Err(Failure::Malformed);
            }
            self.buffer.resize(BUFFER_BYTES, 0);
        }
        match self.stream.read(&mut self.buffer[self.end..]).await? {
            0 => Err(Failure::Closed),
            length => {
                self.end += length;
                // A full buffer: large answers, so read them in large pieces.
                if self.end == self.buffer.len() && self.buffer.len() < BUFFER_BYTES {
                    self.buffer.resize(BUFFER_BYTES, 0);
                }
                Ok(())
            }
        }
    }
}
