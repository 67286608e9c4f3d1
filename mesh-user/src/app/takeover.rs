//! `mesh run --takeover`: one agent hands its instance to the next, without a gap.
//!
//! ```text
//! successor                                   running agent
//!   reads its configuration, asks ──────────>   POST /takeover on the admin socket
//!   Hello {abi, version, pid} ──────────────>   another ABI, stopping, busy: refused by name
//!                          <──────────────────  Offer {shards, live workloads} + both locks;
//!                                               writes no map any more, serves on
//!   loads, updates links in place,
//!   listens in every namespace, puts its
//!   listeners over the old ones, beats,
//!   binds port and socket
//!   Ready ──────────────────────────────────>   accepts for another moment what is half open,
//!                          <──────────────────  Bye; drains, exits 0
//! ```
//!
//! Until `Ready` everything that goes wrong on the successor's side ends the connection, and the
//! running agent takes back what it holds. When the running agent dies in the middle, the successor
//! goes on, as after a crash. Nothing of the policy's state (buckets, breakers, ejections) is handed
//! over (docs/decisions/0050).

use std::{
    fs::{self, File},
    io::{self, IoSlice, IoSliceMut, Read as _, Write as _},
    net::SocketAddr,
    os::{
        fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
        unix::net::UnixStream,
    },
    path::PathBuf,
    time::Duration,
};

use anyhow::{Context as _, bail};
use mesh_common::abi::ABI_VERSION;
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::agent::NodeAgent;
use crate::{admin::TAKEOVER_PROTOCOL, kernel::Instance};

/// How long an agent that lives may take to say a word.
const WORD: Duration = Duration::from_secs(5);

/// How long a successor may take from the offer to `Ready`: enrolment takes milliseconds for each
/// workload, and nothing is reloaded or enrolled meanwhile.
const START_LIMIT: Duration = Duration::from_secs(20);

/// Largest message in bytes: the names of 4,096 workloads.
const MESSAGE_BYTES_MAX: u32 = 4 << 20;

/// Largest head of the HTTP answer in bytes, and largest refusal.
const ANSWER_BYTES_MAX: usize = 16 << 10;

/// Who wants to take over.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Hello {
    abi: u32,
    version: String,
    pid: u32,
}

/// What it gets, beside the descriptors of both locks.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Offer {
    /// How many shards the listeners have.
    pub(super) shards: u32,
    /// Where metrics are served now.
    pub(super) metrics: Option<SocketAddr>,
    /// Workloads that are captured now.
    pub(super) live: Vec<String>,
}

#[derive(Debug, Serialize, Deserialize)]
enum Answer {
    Offered(Offer),
    /// By name; nothing was changed, or everything was taken back.
    Refused(String),
    /// After `Ready`: it is all yours.
    Bye,
}

#[derive(Debug, Serialize, Deserialize)]
struct Ready {}

/// Messages over a connected socket: length, then JSON; descriptors come with the length.
#[derive(Debug)]
struct Session(UnixStream);

impl Session {
    fn send(&self, message: &impl Serialize, files: &[&File]) -> io::Result<()> {
        let text = serde_json::to_vec(message)?;
        let length = u32::try_from(text.len()).map_err(io::Error::other)?;
        let fds: Vec<_> = files.iter().map(|file| file.as_raw_fd()).collect();
        let rights = [ControlMessage::ScmRights(&fds)];
        let rights = if fds.is_empty() { &[] } else { &rights[..] };
        let head = length.to_be_bytes();
        let sent = sendmsg::<()>(
            self.0.as_raw_fd(),
            &[IoSlice::new(&head)],
            rights,
            // A peer that is gone is an error here, not a signal.
            MsgFlags::MSG_NOSIGNAL,
            None,
        )?;
        if sent != head.len() {
            return Err(io::ErrorKind::WriteZero.into());
        }
        (&self.0).write_all(&text)
    }

    /// The next message with its descriptors; `None`: the other side is gone.
    fn receive<T: DeserializeOwned>(
        &self,
        limit: Option<Duration>,
    ) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
        self.0.set_read_timeout(limit)?;
        let mut head = [0; 4];
        let (read, fds) = self.receive_head(&mut head)?;
        if read == 0 {
            return Ok(None);
        }
        (&self.0).read_exact(&mut head[read..])?;
        let length = u32::from_be_bytes(head);
        if length > MESSAGE_BYTES_MAX {
            return Err(io::Error::other(format!("a message of {length} bytes")));
        }
        let mut text = vec![0; length as usize];
        (&self.0).read_exact(&mut text)?;
        Ok(Some((serde_json::from_slice(&text)?, fds)))
    }

    fn receive_head(&self, head: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
        let mut space = nix::cmsg_space!([std::os::fd::RawFd; 2]);
        let mut slices = [IoSliceMut::new(head)];
        let message = loop {
            let flags = MsgFlags::MSG_CMSG_CLOEXEC;
            match recvmsg::<()>(self.0.as_raw_fd(), &mut slices, Some(&mut space), flags) {
                Err(nix::errno::Errno::EINTR) => {}
                other => break other?,
            }
        };
        let mut fds = Vec::new();
        for control in message.cmsgs()? {
            if let ControlMessageOwned::ScmRights(raw) = control {
                #[expect(unsafe_code, reason = "takes ownership of received descriptors")]
                // SAFETY: the kernel has just made these descriptors for this process; nobody else
                // knows them.
                fds.extend(
                    raw.into_iter()
                        .map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }),
                );
            }
        }
        Ok((message.bytes, fds))
    }
}

/// The running agent, which waits for us.
#[derive(Debug)]
pub(super) struct Predecessor {
    session: Session,
    pub(super) offer: Offer,
    pub(super) lock: File,
    pub(super) admin_lock: File,
}

impl Predecessor {
    /// Asks the running agent to hand over; `None`: there is none. From here on it changes nothing
    /// until this value is dropped or [`finish`](Self::finish)ed.
    pub(super) fn ask(instance: &Instance) -> anyhow::Result<Option<Self>> {
        let path = instance.admin_socket();
        let stream = match UnixStream::connect(&path) {
            Ok(stream) => stream,
            Err(error) if is_nobody(&error) => return Ok(None),
            Err(error) => return Err(error).with_context(|| path.display().to_string()),
        };
        let silent = || {
            format!(
                "the agent of instance {} did not hand over on {}: if it hangs, kill it and start \
                 again (its failure modes hold meanwhile)",
                instance.name(),
                path.display()
            )
        };
        stream.set_read_timeout(Some(WORD)).with_context(silent)?;
        if let Err(error) = upgrade(&stream) {
            return ended(error).with_context(silent);
        }
        let session = Session(stream);
        let hello = Hello {
            abi: ABI_VERSION,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
        };
        let answer = session
            .send(&hello, &[])
            .and_then(|()| session.receive(Some(WORD)));
        let answer = match answer {
            Ok(answer) => answer,
            Err(error) => return ended(error.into()).with_context(silent),
        };
        let (offer, fds) = match answer {
            Some((Answer::Offered(offer), fds)) => (offer, fds),
            Some((Answer::Refused(why), _)) => bail!("the running agent does not hand over: {why}"),
            Some((Answer::Bye, _)) => bail!(silent()),
            // Killed a moment ago. One that lives still holds the instance, and says so.
            None => return Ok(None),
        };
        let Ok([lock, admin_lock]) = <[OwnedFd; 2]>::try_from(fds) else {
            bail!("the running agent handed over no locks");
        };
        Ok(Some(Self {
            session,
            offer,
            lock: lock.into(),
            admin_lock: admin_lock.into(),
        }))
    }

    /// Whether it still waits; asked before anything of it is changed. One that died meanwhile
    /// counts as waiting: it holds nothing any more.
    ///
    /// # Errors
    /// It has given us up, after a pause of ours that was too long.
    pub(super) fn waits(&self) -> anyhow::Result<()> {
        let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT;
        let said = nix::sys::socket::recv(self.session.0.as_raw_fd(), &mut [0], flags);
        if said.is_ok_and(|bytes| bytes > 0)
            && let Ok(Some((Answer::Refused(why), _))) = self.session.receive(Some(WORD))
        {
            bail!("the running agent goes on: {why}");
        }
        Ok(())
    }

    /// Everything of it is ours: from here on it drains.
    ///
    /// # Errors
    /// It has taken everything back in the meantime.
    pub(super) fn finish(&self) -> anyhow::Result<()> {
        let said = self.session.send(&Ready {}, &[]);
        let answer = said.and_then(|()| self.session.receive(Some(WORD)));
        match answer {
            Ok(Some((Answer::Refused(why), _))) => bail!("the running agent goes on: {why}"),
            Ok(Some(_)) => tracing::info!("taken over"),
            // It holds nothing any more that we don't.
            Ok(None) | Err(_) => tracing::warn!("the agent before us ended in the takeover"),
        }
        Ok(())
    }
}

/// A connection that broke before anything was offered: the agent was killed a moment ago, and there
/// is none. One that lives still holds the instance's lock, which the start then names.
fn ended(error: anyhow::Error) -> anyhow::Result<Option<Predecessor>> {
    let broke = error.downcast_ref::<io::Error>().is_some_and(|error| {
        matches!(
            error.kind(),
            io::ErrorKind::ConnectionReset
                | io::ErrorKind::BrokenPipe
                | io::ErrorKind::UnexpectedEof
        )
    });
    if broke { Ok(None) } else { Err(error) }
}

fn is_nobody(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused
    )
}

/// Asks for the protocol by HTTP; on success what follows is ours.
fn upgrade(mut stream: &UnixStream) -> anyhow::Result<()> {
    write!(
        stream,
        "POST /takeover HTTP/1.1\r\nhost: mesh\r\nconnection: upgrade\r\n\
         upgrade: {TAKEOVER_PROTOCOL}\r\n\r\n"
    )?;
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        if head.len() == ANSWER_BYTES_MAX {
            bail!("its answer is no HTTP");
        }
        let mut byte = [0];
        // Byte by byte: what follows the head is not HTTP any more.
        stream.read_exact(&mut byte)?;
        head.extend(byte);
    }
    let head = String::from_utf8_lossy(&head).to_ascii_lowercase();
    match head.split(' ').nth(1) {
        Some("101") => Ok(()),
        Some("404") => bail!("it is of a version that can't: stop it, then start this one"),
        status => {
            let length = head
                .lines()
                .find_map(|line| line.strip_prefix("content-length:")?.trim().parse().ok())
                .unwrap_or(0);
            let mut body = vec![0; ANSWER_BYTES_MAX.min(length)];
            stream.read_exact(&mut body)?;
            bail!(
                "it answered {}: {}",
                status.unwrap_or("?"),
                String::from_utf8_lossy(&body)
            )
        }
    }
}

/// The running agent's side, from the first word to the end of the connection.
pub(super) fn serve(agent: &NodeAgent, stream: UnixStream) {
    let session = Session(stream);
    let hello: Hello = match session.receive(Some(WORD)) {
        Ok(Some((hello, _))) => hello,
        Ok(None) => return,
        Err(error) => {
            tracing::warn!(%error, "a successor can't be understood");
            return;
        }
    };
    let pid = hello.pid;
    let offered = agree(&hello).and_then(|()| agent.freeze());
    let (offer, locks) = match offered {
        Ok(offered) => offered,
        Err(why) => {
            tracing::warn!(pid, version = hello.version, why, "not handed over");
            // It is told, or it is gone.
            let _gone = session.send(&Answer::Refused(why), &[]);
            return;
        }
    };
    tracing::info!(pid, version = hello.version, "a successor starts");
    let ready = session
        .send(&Answer::Offered(offer), &[&locks.0, &locks.1])
        .and_then(|()| session.receive::<Ready>(Some(START_LIMIT)));
    match ready {
        Ok(Some(_)) => {
            tracing::info!(pid, "handed over");
            agent.handed_over();
            // It goes on without it too.
            let _gone = session.send(&Answer::Bye, &[]);
        }
        Ok(None) => {
            tracing::warn!(pid, "the successor failed: this agent goes on");
            agent.take_back(false);
        }
        Err(error) => {
            tracing::error!(pid, %error, "the successor does not get ready: this agent goes on");
            agent.take_back(true);
            let why = format!("not ready within {} s", START_LIMIT.as_secs());
            let _gone = session.send(&Answer::Refused(why), &[]);
            outlive(agent, &session);
        }
    }
}

/// A successor that was given up may wake and write before it notices: what it wrote is put right
/// when it is gone for certain. Until then no other may come.
fn outlive(agent: &NodeAgent, session: &Session) {
    while let Ok(Some(_)) = session.receive::<Ready>(None) {}
    agent.take_back(false);
}

fn agree(hello: &Hello) -> Result<(), String> {
    if hello.abi == ABI_VERSION {
        return Ok(());
    }
    Err(format!(
        "it has kernel layout {ABI_VERSION}, version {} has {}, and maps of another layout can't be \
         handed over: stop it, run mesh cleanup, then start the other",
        hello.version, hello.abi
    ))
}

/// The admin socket of the running agent, kept beside its place while a successor may put its own
/// there: bound sockets can't be bound again.
#[derive(Debug)]
pub(super) struct KeptSocket {
    place: PathBuf,
    beside: PathBuf,
}

impl KeptSocket {
    pub(super) fn keep(instance: &Instance) -> io::Result<Self> {
        let place = instance.admin_socket();
        let beside = place.with_extension("sock.kept");
        // What an agent left that died in a takeover.
        let _none = fs::remove_file(&beside);
        fs::hard_link(&place, &beside)?;
        Ok(Self { place, beside })
    }

    /// Puts it back in its place, whatever stands there. Both may be the same socket still: then
    /// rename(2) does nothing, and the second name goes.
    pub(super) fn put_back(&self) -> io::Result<()> {
        fs::rename(&self.beside, &self.place)
    }
}

impl Drop for KeptSocket {
    fn drop(&mut self) {
        let _gone = fs::remove_file(&self.beside);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_arrive_whole_with_their_descriptors() {
        let (a, b) = UnixStream::pair().expect("sockets");
        let (a, b) = (Session(a), Session(b));
        let file = File::open("/proc/self/status").expect("a file");
        let offer = Offer {
            shards: 2,
            metrics: None,
            live: (0..4_096).map(|n| format!("default/pod-{n}")).collect(),
        };
        std::thread::scope(|scope| {
            scope.spawn(|| a.send(&Answer::Offered(offer), &[&file, &file]));
            let received = b.receive::<Answer>(Some(WORD)).expect("a message");
            let Some((Answer::Offered(offer), fds)) = received else {
                panic!("not an offer");
            };
            assert_eq!((offer.live.len(), fds.len()), (4_096, 2));
            let mut text = String::new();
            File::from(fds.into_iter().next().expect("two"))
                .read_to_string(&mut text)
                .expect("it is open");
            assert!(text.starts_with("Name:"));
        });
        drop(a);
        assert!(b.receive::<Answer>(Some(WORD)).expect("an end").is_none());
    }

    #[test]
    fn message_of_absurd_length_or_no_json_is_refused() {
        for bytes in [&[0xff; 8][..], &[0, 0, 0, 2, b'x', b'y'], &[0, 0]] {
            let (a, b) = UnixStream::pair().expect("sockets");
            (&a).write_all(bytes).expect("room");
            drop(a);
            assert!(
                Session(b).receive::<Ready>(Some(WORD)).is_err(),
                "{bytes:?}"
            );
        }
    }

    #[test]
    fn other_kernel_layout_is_refused_with_what_to_do() {
        let hello = |abi| Hello {
            abi,
            version: "9.9.9".into(),
            pid: 1,
        };
        assert_eq!(agree(&hello(ABI_VERSION)), Ok(()));
        let why = agree(&hello(ABI_VERSION + 1)).expect_err("another layout");
        assert!(
            why.contains("9.9.9") && why.contains("mesh cleanup"),
            "{why}"
        );
    }
}
