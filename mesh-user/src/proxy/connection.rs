//! One accepted connection from its first byte to the engine that serves it.

use std::{
    future::poll_fn, net::SocketAddr, os::fd::AsFd as _, pin::Pin, rc::Rc, sync::Arc, task::Poll,
};

use tokio::net::TcpStream;

use super::{
    accept::From,
    buffer::Buf,
    core::{Conn, Core, Place, canonical},
    detect::{self, Guess},
    http1, http2,
    inbound::Inbound,
    io::{poll_fill, reset_on_close, set_nodelay, set_opaque},
    live::{Told, Watched},
    record::ConnectionLog,
    socket::Socket,
    tcp,
    timer::{Timer, deadline},
    tls::{self, Accepted},
    wire::WorkloadHandle,
};
use crate::{
    clock,
    model::{
        Protocol,
        tls::{Alpn, Terminate},
    },
    policy::Reject,
    telemetry::{Direction, Spoken},
};

/// Where a connection was going: the accepted socket's own address, or what the kernel recorded.
///
/// # Errors
/// [`Reject::UnknownDestination`], [`Reject::Loop`]: never a guess.
fn destination(
    core: &Core,
    workload: &WorkloadHandle,
    listener: SocketAddr,
    peer: SocketAddr,
    local: SocketAddr,
    stream: &TcpStream,
) -> Result<SocketAddr, (Reject, SocketAddr)> {
    let known = |at: SocketAddr| core.snapshot().0.port_at(at.ip(), at.port()).is_some();
    if known(local) {
        return Ok(local);
    }
    let itself = local.port() == listener.port()
        && (listener.ip().is_unspecified() || listener.ip() == local.ip());
    let origins = &core.shared.origins;
    let asked = if local.ip().is_loopback() {
        // Never by the tuple, which may be that of a connection before this one.
        origins.sent_to_loopback(stream.as_fd())
    } else {
        origins.asked(workload.pod_id, peer, local)
    };
    let asked = asked.map(canonical);
    match asked {
        Some(at) if known(at) => Ok(at),
        Some(at) => Err((Reject::UnknownDestination, at)),
        None if itself => Err((Reject::Loop, local)),
        None => Err((Reject::UnknownDestination, local)),
    }
}

/// What serves one connection from here to its end; none: it was refused.
pub(super) type Engine = Pin<Box<dyn Future<Output = ()>>>;

/// Finds out who connects where and what is spoken. Its own state is gone when the engine runs.
pub(super) async fn begin(
    core: Rc<Core>,
    from: From,
    stream: TcpStream,
    peer: SocketAddr,
    idle: Rc<Watched>,
) -> Option<Engine> {
    let opened = clock::now();
    // A socket without a local address was reset before it was accepted.
    let Ok(local) = stream.local_addr().map(canonical) else {
        return None;
    };
    let From {
        workload,
        address,
        direction,
    } = from;
    let (found, inbound) = match direction {
        Direction::Outbound => {
            let found = destination(&core, &workload, address, peer, local, &stream);
            (found, None)
        }
        // No address is rewritten on the way in.
        Direction::Inbound => match Inbound::new(&core, address, peer, local) {
            Ok(inbound) => (Ok(local), Some(inbound)),
            Err(reject) => (Err((reject, local)), None),
        },
    };
    let conn = Rc::new(Conn {
        core,
        workload,
        peer,
        destination: found.unwrap_or_else(|(_, at)| at),
        opened,
        direction,
        inbound,
        idle,
        told: Told::default(),
        tls: std::cell::OnceCell::new(),
    });
    let (place, protocol) = {
        let (snapshot, swaps) = conn.core.snapshot();
        let place = Place::find(&snapshot, swaps, &conn);
        let protocol = match direction {
            Direction::Outbound => place.port.map(|port| snapshot.port(port).protocol),
            Direction::Inbound => Some(snapshot.inbound_protocol(conn.destination)),
        };
        (place, protocol)
    };
    if let Err((reject, _)) = found {
        refuse(conn, &stream, reject);
        return None;
    }
    set_nodelay(&stream);
    let mut timer = Timer::new(opened);
    let ends_here = place.port.and_then(|port| {
        let (snapshot, _) = conn.core.snapshot();
        snapshot.port(port).tls.clone()
    });
    if let (Some(settings), Direction::Outbound) = (ends_here, direction) {
        return Box::pin(terminate(conn, place, protocol, &settings, stream, timer)).await;
    }
    let (mut stream, mut buf) = (Socket::from(stream), Buf::default());
    let guess = match detect(&conn, &place, protocol, &mut stream, &mut buf, &mut timer).await {
        Ok(guess) => guess,
        Err(reject) => {
            refuse(conn, stream.tcp(), reject);
            return None;
        }
    };
    Some(engine(guess, conn, place, stream, buf, timer))
}

/// Ends the client's TLS, then serves what is inside: as the two sides agreed, else as the port's
/// protocol says.
async fn terminate(
    conn: Rc<Conn>,
    place: Place,
    protocol: Option<Protocol>,
    settings: &Arc<Terminate>,
    stream: TcpStream,
    mut timer: Timer,
) -> Option<Engine> {
    let shared = &conn.core.shared;
    let Some(config) = shared.tls.server(settings) else {
        refuse(conn, &stream, Reject::NoCertificate);
        return None;
    };
    // No request can be further than a request head.
    let limit = conn.core.limits().header_timeout;
    let accepted = match tls::accept(stream, config, limit, &shared.telemetry).await {
        Ok(accepted) => accepted,
        Err(reject) => {
            // Closed by now, behind the alert that says why.
            ConnectionLog::open(conn, Spoken::Tcp).reject = Some(reject);
            return None;
        }
    };
    let Accepted {
        socket: mut stream,
        server_name,
        alpn,
    } = accepted;
    let seen = tls::Seen {
        server_name,
        terminated: true,
    };
    // Said once for each connection.
    let _first = conn.tls.set(Box::new(seen));
    let mut buf = Buf::default();
    let guess = match (alpn, protocol) {
        (_, Some(Protocol::Tcp | Protocol::Tls) | None) => Ok(Guess::Opaque),
        (Some(Alpn::Http2), _) => Ok(Guess::Http2),
        (Some(Alpn::Http1), _) => Ok(Guess::Http1),
        (None, _) => detect(&conn, &place, protocol, &mut stream, &mut buf, &mut timer).await,
    };
    match guess {
        Ok(guess) => Some(engine(guess, conn, place, stream, buf, timer)),
        Err(reject) => {
            refuse(conn, stream.tcp(), reject);
            None
        }
    }
}

/// What serves the connection from here on. Boxed each, and made outside of any future: a connection
/// holds the state of its own engine and no room for another.
fn engine(
    guess: Guess,
    conn: Rc<Conn>,
    place: Place,
    stream: Socket,
    buf: Buf,
    timer: Timer,
) -> Engine {
    match guess {
        Guess::Http1 => Box::pin(http1::serve(conn, place, stream, buf, timer)),
        Guess::Http2 => Box::pin(http2::serve(conn, place, stream, buf, timer)),
        Guess::Opaque | Guess::More => Box::pin(tcp::serve(conn, place, stream, buf, timer)),
    }
}

async fn detect(
    conn: &Conn,
    place: &Place,
    protocol: Option<Protocol>,
    stream: &mut Socket,
    buf: &mut Buf,
    timer: &mut Timer,
) -> Result<Guess, Reject> {
    Ok(match protocol {
        // The HTTP/1 engine waits for the first bytes anyway, and hands over when they are the
        // preface of HTTP/2.
        Some(Protocol::Http) => Guess::Http1,
        Some(Protocol::Http2 | Protocol::Grpc) => Guess::Http2,
        Some(Protocol::Auto) => {
            // The first byte may be an urgent one.
            set_opaque(&*stream);
            let guess = first_bytes(conn, stream, buf, timer).await;
            if guess == Guess::Opaque && tls::may_be_hello(buf.bytes()) && by_name(conn, place) {
                // Whoever begins so speaks TLS, or is passed on as what nobody knows.
                let read = Box::pin(hello(conn, stream, buf, timer)).await;
                if read == Err(Reject::DownstreamClosed) {
                    return Err(Reject::DownstreamClosed);
                }
            }
            guess
        }
        Some(Protocol::Tls) if conn.direction == Direction::Outbound => {
            set_opaque(&*stream);
            Box::pin(hello(conn, stream, buf, timer)).await?;
            Guess::Opaque
        }
        Some(Protocol::Tcp | Protocol::Tls) | None => Guess::Opaque,
    })
}

/// Whether a rule of the port asks for a server name.
fn by_name(conn: &Conn, place: &Place) -> bool {
    let (snapshot, _) = conn.core.snapshot();
    let rules = |port| snapshot.port(port).routes.by_server_name();
    conn.direction == Direction::Outbound && place.port.is_some_and(rules)
}

/// Reads the ClientHello of TLS that is passed on: as long as a request head may take.
async fn hello(
    conn: &Conn,
    stream: &mut Socket,
    buf: &mut Buf,
    timer: &mut Timer,
) -> Result<(), Reject> {
    let until = deadline(conn.opened, conn.core.limits().header_timeout);
    let hello = tls::read_hello(stream, buf, timer, until).await?;
    tracing::debug!(
        workload = %conn.workload.key,
        server_name = hello.server_name.as_deref(),
        protocols = ?hello.alpn,
        versions = ?hello.versions,
        "ClientHello"
    );
    let seen = tls::Seen {
        server_name: hello.server_name,
        terminated: false,
    };
    // Said once for each connection.
    let _first = conn.tls.set(Box::new(seen));
    Ok(())
}

/// Ends a connection that can't be served, with a reset and its record.
pub(super) fn refuse(conn: Rc<Conn>, stream: &TcpStream, reject: Reject) {
    let mut log = ConnectionLog::open(conn, Spoken::Tcp);
    log.reject = Some(reject);
    reset_on_close(stream);
}

/// Reads until the protocol of an unknown port is told, at most for the detection time-out: the
/// other side may be the one that speaks first.
async fn first_bytes(conn: &Conn, stream: &mut Socket, buf: &mut Buf, timer: &mut Timer) -> Guess {
    let limits = conn.core.limits();
    let until = conn.opened.after(limits.detect_timeout);
    poll_fn(|cx| {
        loop {
            let guess = detect::sniff(buf.bytes(), limits.target_bytes_max);
            if guess != Guess::More {
                return Poll::Ready(guess);
            }
            if !buf.has_room() {
                return Poll::Ready(Guess::Opaque);
            }
            match poll_fill(stream, cx, buf) {
                // A client that half-closed may still want to listen. The copy sees the end, or
                // the error, again.
                Poll::Ready(Ok(0) | Err(_)) => return Poll::Ready(Guess::Opaque),
                Poll::Ready(Ok(_)) => {}
                Poll::Pending => return timer.poll(cx, until).map(|()| Guess::More),
            }
        }
    })
    .await
}
