//! What the proxy needs from outside, as traits: `app` wires the kernel side to them.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    os::fd::{BorrowedFd, OwnedFd},
    sync::Arc,
};

/// Makes sockets that leave from the right place: a workload's network namespace, with the
/// agent's mark. One for each workload, and one for the agent's own namespace.
pub trait SocketSource: Send + Sync + std::fmt::Debug {
    /// A fresh non-blocking, close-on-exec TCP socket of the family of `towards`, not connected.
    /// Synchronous and short: enters the namespace, makes the socket, comes back.
    ///
    /// # Errors
    /// The namespace is gone, or no file descriptor is left.
    fn tcp_socket(&self, towards: SocketAddr) -> io::Result<OwnedFd>;

    /// Like [`SocketSource::tcp_socket`], for a dial to the workload's own application: bound to
    /// the address of somebody else, so that the application sees its client.
    ///
    /// # Errors
    /// EADDRINUSE: the port is taken, another one may do. Others: not here at all.
    fn app_socket(&self, client: SocketAddr, towards: SocketAddr) -> io::Result<OwnedFd> {
        let _nowhere = (client, towards);
        Err(io::ErrorKind::Unsupported.into())
    }

    /// The addresses of the workload, of either family the one first that its connections leave
    /// with. None: nobody knows.
    fn addresses(&self) -> Arc<[IpAddr]> {
        Arc::default()
    }
}

/// Where a captured connection was really going, when its own address doesn't say (a foreign
/// socket load balancer rewrote it after our hook).
pub trait OriginLookup: Send + Sync + std::fmt::Debug {
    /// The address that the application asked for, from the kernel's flow table. `peer` and
    /// `local` are the accepted socket's.
    fn asked(&self, pod_id: u32, peer: SocketAddr, local: SocketAddr) -> Option<SocketAddr>;

    /// The address that the application asked for, where the kernel side sent its connection to the
    /// workload's own loopback (mode `loopback`). `socket` is the accepted one. `None`: nothing says
    /// so, and the connection is refused.
    fn sent_to_loopback(&self, _socket: BorrowedFd<'_>) -> Option<SocketAddr> {
        None
    }

    /// The workload of this node that has an address, `namespace/name`: one that is enrolled, or
    /// that was and will be again.
    fn workload_at(&self, address: IpAddr) -> Option<Arc<str>> {
        let _nobody = address;
        None
    }
}

/// A workload as the proxy sees it. Shared by its listeners on all cores.
#[derive(Debug)]
pub struct WorkloadHandle {
    /// Number in the kernel's maps.
    pub pod_id: u32,
    /// `namespace/name`, the key into `Snapshot::source`.
    pub key: Arc<str>,
    /// Makes sockets in its namespace.
    pub sockets: Arc<dyn SocketSource>,
    /// Open connections, over all cores: bounded by `Limits::workload_connections_max`.
    pub connections: std::sync::atomic::AtomicU32,
}
