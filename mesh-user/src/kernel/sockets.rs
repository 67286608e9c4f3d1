//! Sockets in a workload's namespace, made by a process that lives outside it.
//!
//! A socket belongs for life to the network namespace in which it was made. So a thread enters the
//! namespace, makes the socket and comes back, in one synchronous step.

use std::{
    cell::OnceCell,
    fs::File,
    io,
    net::{IpAddr, SocketAddr, TcpListener},
    os::fd::{AsFd, AsRawFd, OwnedFd},
    sync::Arc,
};

use arc_swap::{ArcSwap, ArcSwapOption};
use nix::sched::{CloneFlags, setns};
use socket2::{Domain, Protocol, Socket, Type};

use crate::proxy::wire::SocketSource;

/// Bounds the connections that wait for `accept`; the kernel cuts it to `net.core.somaxconn`.
const BACKLOG: i32 = 4_096;

thread_local! {
    /// The namespace that this thread lives in.
    static HOME: OnceCell<OwnedFd> = const { OnceCell::new() };
}

/// Runs a short closure with the calling thread inside a namespace.
///
/// # Errors
/// The namespace can't be entered. A thread that can't come back aborts the process: it would make
/// sockets in the wrong place from then on.
pub(super) fn inside<T>(netns: impl AsFd, f: impl FnOnce() -> T) -> io::Result<T> {
    HOME.with(|home| {
        if home.get().is_none() {
            // Only this thread sets its own cell.
            let _ = home.set(File::open("/proc/thread-self/ns/net")?.into());
        }
        let home = home
            .get()
            .ok_or_else(|| io::Error::other("own network namespace"))?;
        setns(netns.as_fd(), CloneFlags::CLONE_NEWNET)?;
        // Also when `f` panics.
        let _back = Back(home);
        Ok(f())
    })
}

struct Back<'a>(&'a OwnedFd);

impl Drop for Back<'_> {
    fn drop(&mut self) {
        if let Err(error) = setns(self.0.as_fd(), CloneFlags::CLONE_NEWNET) {
            eprintln!("a thread is lost in a workload's network namespace ({error}): aborting");
            std::process::abort();
        }
    }
}

/// A fresh TCP socket in the calling thread's namespace.
fn tcp(domain: Domain, mark: u32) -> io::Result<Socket> {
    let kind = Type::STREAM.nonblocking().cloexec();
    let socket = Socket::new(domain, kind, Some(Protocol::TCP))?;
    socket.set_mark(mark)?;
    Ok(socket)
}

/// Sockets of one workload; closed for good at release, so that nothing here keeps a namespace
/// alive.
#[derive(Debug)]
pub(super) struct PodSockets {
    netns: ArcSwapOption<OwnedFd>,
    mark: u32,
    /// Of dials to the application, with somebody else's address: it turns the answers around.
    app_mark: u32,
    /// In the kernel's order.
    addresses: ArcSwap<Arc<[IpAddr]>>,
}

impl PodSockets {
    pub(super) fn new(netns: OwnedFd, mark: u32, app_mark: u32, addresses: &[IpAddr]) -> Self {
        Self {
            addresses: ArcSwap::from_pointee(addresses.into()),
            netns: ArcSwapOption::from_pointee(netns),
            mark,
            app_mark,
        }
    }

    fn make<T>(&self, f: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        let guard = self.netns.load();
        let netns = guard
            .as_deref()
            .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "the workload was released"))?;
        inside(netns, f)?
    }

    /// The namespace; `None` after [`PodSockets::close`]. Held for the time of a system call, never
    /// kept.
    pub(super) fn namespace(&self) -> Option<Arc<OwnedFd>> {
        self.netns.load_full()
    }

    /// They changed.
    pub(super) fn move_to(&self, addresses: &[IpAddr]) {
        self.addresses.store(Arc::new(addresses.into()));
    }

    /// Lets the namespace go.
    pub(super) fn close(&self) {
        self.netns.store(None);
    }
}

impl SocketSource for PodSockets {
    fn tcp_socket(&self, towards: SocketAddr) -> io::Result<OwnedFd> {
        self.make(|| dialling(towards, self.mark))
    }

    fn app_socket(&self, client: SocketAddr, towards: SocketAddr) -> io::Result<OwnedFd> {
        self.make(|| as_client(client, towards, self.app_mark))
    }

    fn addresses(&self) -> Arc<[IpAddr]> {
        Arc::clone(&self.addresses.load())
    }
}

/// Sockets of the agent's own namespace.
#[derive(Debug)]
pub(super) struct NodeSockets {
    mark: u32,
}

impl NodeSockets {
    pub(super) fn source(mark: u32) -> Arc<dyn SocketSource> {
        Arc::new(Self { mark })
    }
}

impl SocketSource for NodeSockets {
    fn tcp_socket(&self, towards: SocketAddr) -> io::Result<OwnedFd> {
        dialling(towards, self.mark)
    }
}

fn dialling(towards: SocketAddr, mark: u32) -> io::Result<OwnedFd> {
    let socket = tcp(Domain::for_address(towards), mark)?;
    Ok(socket.into())
}

/// A socket that will dial with an address that is not of its namespace.
///
/// The application's answer goes to that address: the accepted socket has the SYN's mark
/// (`tcp_fwmark_accept`), and the rule for it leads back over `lo`. REUSEADDR: a port that another
/// such socket uses towards another application, or an application listens on, is no obstacle.
fn as_client(client: SocketAddr, towards: SocketAddr, mark: u32) -> io::Result<OwnedFd> {
    let socket = tcp(Domain::for_address(towards), mark)?;
    if towards.is_ipv6() {
        socket.set_ip_transparent_v6(true)?;
    } else {
        socket.set_ip_transparent_v4(true)?;
    }
    socket.set_reuse_address(true)?;
    socket.bind(&client.into())?;
    Ok(socket.into())
}

/// Listens for captured connections, in the calling thread's namespace: both families on one
/// socket, any destination address, a port chosen by the kernel.
///
/// REUSEADDR besides REUSEPORT: accepted sockets inherit it, and without it an application could
/// not bind a port that a live captured connection uses as its destination port.
pub(super) fn listen(mark: u32) -> io::Result<TcpListener> {
    let (socket, any): (_, IpAddr) = match tcp(Domain::IPV6, mark) {
        Ok(socket) => {
            socket.set_only_v6(false)?;
            socket.set_ip_transparent_v6(true)?;
            (socket, std::net::Ipv6Addr::UNSPECIFIED.into())
        }
        // A kernel without IPv6.
        Err(error) if error.raw_os_error() == Some(libc::EAFNOSUPPORT) => (
            tcp(Domain::IPV4, mark)?,
            std::net::Ipv4Addr::UNSPECIFIED.into(),
        ),
        Err(error) => return Err(error),
    };
    socket.set_ip_transparent_v4(true)?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    // Data in a SYN, where the workload's own sysctl allows servers that: without it the client
    // sends its data after the handshake, so a kernel that refuses changes nothing.
    let _ = set_fast_open(&socket, BACKLOG);
    socket.bind(&SocketAddr::new(any, 0).into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

fn set_fast_open(socket: &Socket, pending: i32) -> io::Result<()> {
    #[expect(unsafe_code, reason = "neither socket2 nor nix knows TCP_FASTOPEN")]
    // SAFETY: the kernel reads the four bytes of `pending`, which lives for the call.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_TCP,
            libc::TCP_FASTOPEN,
            (&raw const pending).cast(),
            size_of::<i32>() as libc::socklen_t,
        )
    };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// A socket of the calling thread's namespace that is already on its way to `towards`, with a mark.
pub(super) fn connecting(towards: SocketAddr, mark: u32) -> io::Result<Socket> {
    let socket = tcp(Domain::for_address(towards), mark)?;
    match socket.connect(&towards.into()) {
        Ok(()) => Ok(socket),
        Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => Ok(socket),
        Err(error) => Err(error),
    }
}

/// Cookie of the network namespace of a socket (Linux 5.14).
pub(super) fn netns_cookie(socket: impl AsFd) -> io::Result<u64> {
    option_u64(socket, SO_NETNS_COOKIE)
}

/// A socket option of 8 bytes.
pub(super) fn option_u64(socket: impl AsFd, option: libc::c_int) -> io::Result<u64> {
    let mut cookie = 0_u64;
    let mut length = size_of::<u64>() as libc::socklen_t;
    #[expect(unsafe_code, reason = "neither socket2 nor nix knows the cookies")]
    // SAFETY: `cookie` is writable memory of `length` bytes, both live for the call.
    let result = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            option,
            (&raw mut cookie).cast(),
            &raw mut length,
        )
    };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(cookie)
    }
}

const SO_NETNS_COOKIE: libc::c_int = 71;

/// Cookie of the calling thread's network namespace (Linux 5.14; see `cookie` for older ones).
pub(super) fn own_netns_cookie() -> io::Result<u64> {
    // A Unix socket: namespaces have those whatever address families the kernel lacks.
    netns_cookie(Socket::new(Domain::UNIX, Type::STREAM.cloexec(), None)?)
}
