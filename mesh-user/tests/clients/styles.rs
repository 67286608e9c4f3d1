//! The ways of connecting. Each ends with a connected socket, on which the client says «ping», hears
//! the answer and asks the kernel for the names of both ends.

use std::{
    io::{self, Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6, TcpStream},
    os::{
        fd::{AsFd as _, AsRawFd as _, FromRawFd as _, OwnedFd},
        unix::net::UnixStream,
    },
    process::Stdio,
    time::Duration,
};

use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg},
};
use serde::{Deserialize, Serialize};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use super::process::{Family, Job, Seen, own_binary, tell};
use crate::support::options;

/// A way of connecting.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Style {
    Blocking,
    /// EINPROGRESS, then poll.
    NonBlocking,
    /// sendto with MSG_FASTOPEN.
    FastOpen,
    /// TCP_FASTOPEN_CONNECT: connect returns before there is a SYN.
    FastOpenConnect,
    Multipath,
    /// A connect by a ring.
    Ring,
    /// A connect by a ring that a kernel thread polls.
    PolledRing,
    BoundToAddress,
    BoundToPort,
    BoundToAnyAndPort,
    /// Connected once, dissolved with AF_UNSPEC, connected again.
    Dissolved,
    /// Connected after a refusal on the same socket.
    AfterRefusal,
    /// Connected through a copy of the descriptor.
    Duplicated,
    /// Made in one cgroup, connected in another.
    OtherCgroup,
    /// Connected by a child process that inherits the socket.
    Inherited,
    /// Made by a client in another pod and sent over a Unix socket.
    Passed,
    /// Sends its own socket to whoever listens at the path: the other half of [`Style::Passed`].
    Pass,
    /// Closes its socket before anybody can have accepted it: connect, write, close.
    FireAndForget,
    /// Bound to the interface that leads out.
    BoundToDevice,
    /// Connects (from `port`, where there is one) and keeps the connection.
    Hold,
    /// Asks the held connection for its names.
    AskHeld,
    /// Listens on `own` and `port` and keeps what comes.
    Serve,
    /// Connects `port` times, one after the other, and is the first to close each time.
    Many,
    /// Connects as soon as it can, and again for as long as it is refused.
    First,
}

pub(crate) fn run(job: &Job) -> Seen {
    match attempt(job) {
        Ok(seen) => seen,
        Err(error) => Seen {
            errno: error.raw_os_error().unwrap_or(-1),
            note: error.to_string(),
            ..Seen::default()
        },
    }
}

/// Connections that a client keeps.
static HELD: std::sync::Mutex<Vec<Socket>> = std::sync::Mutex::new(Vec::new());

fn attempt(job: &Job) -> io::Result<Seen> {
    let address = target(job.family, job.to);
    match job.style {
        Style::Multipath => {
            let protocol = Some(Protocol::MPTCP);
            let socket = Socket::new(domain(job.family), Type::STREAM, protocol)?;
            connect(&socket, &address)?;
            return talk(socket);
        }
        Style::Inherited => return inherited(job),
        Style::Passed => return passed(job),
        Style::Pass => return pass(job),
        Style::AskHeld => {
            let held = HELD.lock().expect("no panic");
            return names(held.last().ok_or_else(|| io::Error::other("none held"))?);
        }
        _ => {}
    }
    let socket = fresh(job.family)?;
    match job.style {
        Style::NonBlocking => non_blocking(&socket, &address)?,
        Style::FastOpen => {
            // As all that a client does in one call: the SYN may carry the data.
            socket.send_to_with_flags(b"ping", &address, libc::MSG_FASTOPEN)?;
            return listen_to(socket);
        }
        Style::FastOpenConnect => {
            let on = 1_i32.to_ne_bytes();
            options::set(&socket, libc::SOL_TCP, libc::TCP_FASTOPEN_CONNECT, &on)?;
            connect(&socket, &address)?;
        }
        Style::Ring => ring(&socket, &address, false)?,
        Style::PolledRing => ring(&socket, &address, true)?,
        Style::BoundToAddress => bound(&socket, &address, job, job.own, 0)?,
        Style::BoundToPort => bound(&socket, &address, job, job.own, job.port)?,
        Style::BoundToAnyAndPort => {
            bound(&socket, &address, job, any(job.family), job.port)?;
        }
        Style::Dissolved => {
            connect(&socket, &address)?;
            dissolve(&socket)?;
            connect(&socket, &address)?;
        }
        Style::AfterRefusal => {
            let closed = job.refused.ok_or_else(|| io::Error::other("no address"))?;
            let refused = connect(&socket, &target(job.family, closed));
            let errno = refused.err().and_then(|error| error.raw_os_error());
            assert_eq!(errno, Some(libc::ECONNREFUSED));
            connect(&socket, &address)?;
        }
        Style::Duplicated => {
            let copy = socket.try_clone()?;
            connect(&copy, &address)?;
        }
        Style::OtherCgroup => {
            let home = own_cgroup()?;
            std::fs::write(job.path.join("cgroup.procs"), "0")?;
            let connected = connect(&socket, &address);
            std::fs::write(home, "0")?;
            connected?;
        }
        Style::FireAndForget => {
            connect(&socket, &address)?;
            (&socket).write_all(b"ping")?;
            return Ok(Seen::default());
        }
        Style::BoundToDevice => {
            socket.bind_device(Some(b"eth0"))?;
            socket.set_nonblocking(true)?;
            non_blocking(&socket, &address)?;
            // No «ping»: who answers there does not listen first.
            return listen_to(socket);
        }
        Style::Hold if job.port != 0 => {
            let any = any(job.family);
            bound(&socket, &address, job, any, job.port)?;
            return hold(socket);
        }
        Style::Hold => {
            connect(&socket, &address)?;
            return hold(socket);
        }
        Style::Serve => return serve(socket, job),
        Style::Many => return many(job),
        Style::First => return first(job),
        _ => connect(&socket, &address)?,
    }
    talk(socket)
}

/// This process's `cgroup.procs` in the unified hierarchy.
fn own_cgroup() -> io::Result<std::path::PathBuf> {
    let mount =
        mesh_user::kernel::mounts::cgroup2()?.ok_or_else(|| io::Error::other("no mount"))?;
    let table = std::fs::read_to_string("/proc/self/cgroup")?;
    let path = table.lines().find_map(|line| line.strip_prefix("0::/"));
    let path = path.ok_or_else(|| io::Error::other("no cgroup"))?;
    Ok(mount.join(path).join("cgroup.procs"))
}

fn domain(family: Family) -> Domain {
    match family {
        Family::V4 => Domain::IPV4,
        Family::V6 | Family::Mapped => Domain::IPV6,
    }
}

fn fresh(family: Family) -> io::Result<Socket> {
    let socket = Socket::new(domain(family), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_only_v6(false).or_else(|error| match family {
        Family::V4 => Ok(()),
        Family::V6 | Family::Mapped => Err(error),
    })?;
    Ok(socket)
}

/// The address as the socket's family wants it.
fn target(family: Family, to: SocketAddr) -> SockAddr {
    match (family, to) {
        (Family::Mapped, SocketAddr::V4(v4)) => {
            SocketAddrV6::new(v4.ip().to_ipv6_mapped(), v4.port(), 0, 0).into()
        }
        _ => to.into(),
    }
}

fn any(family: Family) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::UNSPECIFIED.into(),
        Family::V6 | Family::Mapped => Ipv6Addr::UNSPECIFIED.into(),
    }
}

fn hold(socket: Socket) -> io::Result<Seen> {
    let seen = talk(socket.try_clone()?)?;
    HELD.lock().expect("no panic").push(socket);
    Ok(seen)
}

/// Its SO_REUSEADDR afterwards is in the note.
fn serve(socket: Socket, job: &Job) -> io::Result<Seen> {
    socket.set_reuse_address(job.reuse)?;
    socket.bind(&target(job.family, SocketAddr::new(job.own, job.port)))?;
    socket.listen(16)?;
    let note = format!("reuse {}", socket.reuse_address()?);
    std::thread::spawn(move || {
        while let Ok((stream, _)) = socket.accept() {
            let _ = (&stream).write_all(b"app");
            HELD.lock().expect("no panic").push(stream);
        }
    });
    Ok(Seen {
        note,
        ..Seen::default()
    })
}

fn many(job: &Job) -> io::Result<Seen> {
    let address = target(job.family, job.to);
    for number in 0..job.port {
        let socket = fresh(job.family)?;
        let connected = connect(&socket, &address);
        connected.map_err(|error| numbered(&error, number))?;
        // Its end is the first to say so, so its port is the one that waits. With bytes unread a
        // close would be a reset, after which nothing waits.
        socket.shutdown(std::net::Shutdown::Write)?;
        socket.set_read_timeout(Some(Duration::from_secs(5)))?;
        let mut answer = Vec::new();
        let read = (&socket).read_to_end(&mut answer);
        read.map_err(|error| numbered(&error, number))?;
        if answer.is_empty() {
            return Err(io::Error::other(format!("no answer to {number}")));
        }
    }
    Ok(Seen::default())
}

/// Keeps the error's number, and says at which connection.
fn numbered(error: &io::Error, number: u16) -> io::Error {
    let errno = error.raw_os_error().unwrap_or(-1);
    eprintln!("connection {number}: {error}");
    io::Error::from_raw_os_error(errno)
}

fn first(job: &Job) -> io::Result<Seen> {
    let address = target(job.family, job.to);
    let end = std::time::Instant::now() + Duration::from_secs(20);
    let mut refused = 0;
    loop {
        let socket = fresh(job.family)?;
        match connect(&socket, &address) {
            Ok(()) => {
                let seen = talk(socket)?;
                let note = format!("{refused}");
                return Ok(Seen { note, ..seen });
            }
            Err(error)
                if error.raw_os_error() == Some(libc::ECONNREFUSED)
                    && std::time::Instant::now() < end =>
            {
                refused += 1;
            }
            Err(error) => return Err(error),
        }
    }
}

fn bound(socket: &Socket, address: &SockAddr, job: &Job, ip: IpAddr, port: u16) -> io::Result<()> {
    socket.bind(&target(job.family, SocketAddr::new(ip, port)))?;
    connect(socket, address)
}

/// A blocking connect. One that is interrupted goes on by itself (connect(2)).
fn connect(socket: &Socket, address: &SockAddr) -> io::Result<()> {
    match socket.connect(address) {
        Err(error) if error.raw_os_error() == Some(libc::EINTR) => established(socket),
        other => other,
    }
}

fn non_blocking(socket: &Socket, address: &SockAddr) -> io::Result<()> {
    socket.set_nonblocking(true)?;
    match socket.connect(address) {
        Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => {}
        Err(error) => return Err(error),
        Ok(()) => return Err(io::Error::other("connected at once")),
    }
    established(socket)?;
    socket.set_nonblocking(false)
}

/// Waits for a connect that goes on by itself.
fn established(socket: &Socket) -> io::Result<()> {
    let mut fds = [PollFd::new(socket.as_fd(), PollFlags::POLLOUT)];
    if poll(&mut fds, PollTimeout::from(3_000_u16))? == 0 {
        return Err(io::Error::from_raw_os_error(libc::ETIMEDOUT));
    }
    match socket.take_error()? {
        Some(error) => Err(error),
        None => Ok(()),
    }
}

/// On a thread of its own: the end of a ring interrupts system calls of the thread that made it.
fn ring(socket: &Socket, address: &SockAddr, polled: bool) -> io::Result<()> {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| on_ring(socket, address, polled));
        thread.join().expect("no panic")
    })
}

fn on_ring(socket: &Socket, address: &SockAddr, polled: bool) -> io::Result<()> {
    let mut builder = io_uring::IoUring::builder();
    if polled {
        builder.setup_sqpoll(1_000);
    }
    let mut ring: io_uring::IoUring = builder.build(8)?;
    let fd = io_uring::types::Fd(socket.as_raw_fd());
    let connect = io_uring::opcode::Connect::new(fd, address.as_ptr().cast(), address.len());
    #[expect(unsafe_code, reason = "the ring reads the address later")]
    // SAFETY: the address outlives the wait for the completion below.
    let pushed = unsafe { ring.submission().push(&connect.build()) };
    pushed.map_err(io::Error::other)?;
    ring.submit_and_wait(1)?;
    let done = ring.completion().next();
    match done.map(|entry| entry.result()) {
        Some(0) => Ok(()),
        Some(code) => Err(io::Error::from_raw_os_error(-code)),
        None => Err(io::Error::other("no completion")),
    }
}

fn dissolve(socket: &Socket) -> io::Result<()> {
    let nothing = libc::sockaddr {
        sa_family: libc::AF_UNSPEC as libc::sa_family_t,
        sa_data: [0; 14],
    };
    #[expect(unsafe_code, reason = "no safe call takes such an address")]
    // SAFETY: the kernel reads the 16 bytes of `nothing`, which lives for the call.
    let result = unsafe {
        libc::connect(
            socket.as_raw_fd(),
            &raw const nothing,
            size_of::<libc::sockaddr>() as libc::socklen_t,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// A child connects the socket that it inherits as its standard input.
fn inherited(job: &Job) -> io::Result<Seen> {
    let socket = fresh(job.family)?;
    let mut child = own_binary("styles::inherited_process");
    child.env(INHERITED, serde_json::to_string(job)?);
    child.stdin(Stdio::from(OwnedFd::from(socket.try_clone()?)));
    let output = child.output()?;
    if !output.status.success() {
        return Err(io::Error::other("the child failed"));
    }
    talk(socket)
}

const INHERITED: &str = "MESH_TEST_INHERITED";

/// Not a test: the child of [`inherited`].
#[test]
fn inherited_process() {
    let Some(job) = std::env::var_os(INHERITED) else {
        return;
    };
    let job: Job = serde_json::from_str(&job.to_string_lossy()).expect("a job");
    let socket = io::stdin().as_fd().try_clone_to_owned();
    let socket = Socket::from(socket.expect("a descriptor"));
    socket
        .connect(&target(job.family, job.to))
        .expect("it connects");
}

/// Waits for a socket from another pod, and connects it.
fn passed(job: &Job) -> io::Result<Seen> {
    let listener = std::os::unix::net::UnixListener::bind(&job.path)?;
    tell(&Seen::default());
    let (stream, _) = listener.accept()?;
    let socket = Socket::from(receive(&stream)?);
    connect(&socket, &target(job.family, job.to))?;
    talk(socket)
}

fn receive(stream: &UnixStream) -> io::Result<OwnedFd> {
    let mut space = nix::cmsg_space!([i32; 1]);
    let mut byte = [0];
    let mut parts = [io::IoSliceMut::new(&mut byte)];
    let fd = stream.as_raw_fd();
    let message = recvmsg::<()>(fd, &mut parts, Some(&mut space), MsgFlags::empty())?;
    for control in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(fds) = control
            && let Some(fd) = fds.first()
        {
            #[expect(unsafe_code, reason = "a descriptor comes as a number")]
            // SAFETY: the kernel has just made it for us; nobody else knows it.
            return Ok(unsafe { OwnedFd::from_raw_fd(*fd) });
        }
    }
    Err(io::Error::other("no descriptor came"))
}

fn pass(job: &Job) -> io::Result<Seen> {
    let socket = fresh(job.family)?;
    let stream = UnixStream::connect(&job.path)?;
    let fds = [socket.as_raw_fd()];
    let rights = [ControlMessage::ScmRights(&fds)];
    let parts = [io::IoSlice::new(b"s")];
    let fd = stream.as_raw_fd();
    sendmsg::<()>(fd, &parts, &rights, MsgFlags::empty(), None)?;
    Ok(Seen::default())
}

/// Says «ping» and hears the answer.
fn talk(socket: Socket) -> io::Result<Seen> {
    (&socket).write_all(b"ping")?;
    listen_to(socket)
}

fn listen_to(socket: Socket) -> io::Result<Seen> {
    socket.set_read_timeout(Some(Duration::from_secs(5)))?;
    let mut stream = TcpStream::from(socket);
    let mut answer = [0; 256];
    let length = loop {
        match stream.read(&mut answer) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            other => break other?,
        }
    };
    let seen = names(&Socket::from(stream))?;
    Ok(Seen {
        data: String::from_utf8_lossy(&answer[..length]).into_owned(),
        ..seen
    })
}

fn names(socket: &Socket) -> io::Result<Seen> {
    let plain = |address: SockAddr| {
        let address = address.as_socket();
        address.map(|it| SocketAddr::new(it.ip().to_canonical(), it.port()))
    };
    Ok(Seen {
        peer: plain(socket.peer_addr()?),
        own: plain(socket.local_addr()?),
        ..Seen::default()
    })
}
