//! The dial to the application, with the client's address.

use std::{io, rc::Rc, time::Duration};

use tokio::net::{TcpSocket, TcpStream};

use super::{
    super::{
        core::Core,
        upstream::{NoConnection, local_fault},
        wire::WorkloadHandle,
    },
    App, Held, Ports,
};

/// Ports that are tried: the others are in TIME_WAIT, or an application listens on them.
const TRIES: u32 = 16;
/// Over `lo` a handshake takes microseconds, and needs nobody to run but the kernel. One that takes
/// so long has met a connection that we don't know (one that was there before its port was
/// captured), or the application's backlog is full.
const SPOOF_LIMIT: Duration = Duration::from_millis(40);

/// Connects. Where no port of the client's is to be had the application sees the workload's own
/// address, which is counted.
///
/// # Errors
/// See [`NoConnection`].
pub(in crate::proxy) async fn connect(
    core: &Rc<Core>,
    workload: &WorkloadHandle,
    app: App,
    limit: Duration,
) -> Result<(TcpStream, Option<Held>), NoConnection> {
    for _try in 0..TRIES {
        let Some(held) = Ports::choose(core, app) else {
            break;
        };
        let client = std::net::SocketAddr::new(app.client, held.port());
        let fd = match workload.sockets.app_socket(client, app.to) {
            Ok(fd) => fd,
            Err(error) if is_taken(&error) => continue,
            Err(error) => match local_fault(&error) {
                Some(reject) => return Err(NoConnection::Local(reject)),
                None => break,
            },
        };
        let socket = TcpSocket::from_std_stream(std::net::TcpStream::from(fd));
        let spoof = SPOOF_LIMIT.min(limit);
        match tokio::time::timeout(spoof, socket.connect(app.to)).await {
            Ok(Ok(stream)) => return Ok((stream, Some(held))),
            Ok(Err(error)) if is_taken(&error) => {}
            // The application does not listen: another address would not change that.
            Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused => {
                return Err(NoConnection::Failed);
            }
            Ok(Err(_)) | Err(_) => break,
        }
    }
    core.shared.telemetry.source_lost();
    let fd = workload
        .sockets
        .tcp_socket(app.to)
        .map_err(|error| NoConnection::Local(super::super::upstream::local(&error)))?;
    let socket = TcpSocket::from_std_stream(std::net::TcpStream::from(fd));
    match tokio::time::timeout(limit, socket.connect(app.to)).await {
        Ok(Ok(stream)) => Ok((stream, None)),
        Ok(Err(_)) => Err(NoConnection::Failed),
        Err(_elapsed) => Err(NoConnection::TimedOut),
    }
}

fn is_taken(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::AddrInUse | io::ErrorKind::AddrNotAvailable
    )
}
