//! TLS that is passed on as it is: the ClientHello is read, and stays in the buffer.

use std::{future::poll_fn, task::Poll};

use super::hello::{ClientHello, NoHello, Scan, WIRE_BYTES_MAX};
use crate::{
    clock::MonoNanos,
    policy::Reject,
    proxy::{buffer::Buf, io::poll_fill, socket::Socket, timer::Timer},
};

/// What is known of a connection that speaks TLS.
#[derive(Debug, Default)]
pub(in crate::proxy) struct Seen {
    /// The host name that the client means.
    pub(in crate::proxy) server_name: Option<Box<str>>,
    /// TLS ends here: what the engines see is its content.
    pub(in crate::proxy) terminated: bool,
}

/// Whether the first bytes may begin a ClientHello.
pub(in crate::proxy) fn may_be_hello(bytes: &[u8]) -> bool {
    !bytes.is_empty() && Scan::default().advance(bytes) != Err(NoHello::NotTls)
}

/// Reads a ClientHello, which takes until `until` at most.
///
/// # Errors
/// [`Reject::NotTls`], [`Reject::TlsTimeout`], [`Reject::DownstreamClosed`].
pub(in crate::proxy) async fn read_hello(
    stream: &mut Socket,
    buf: &mut Buf,
    timer: &mut Timer,
    until: MonoNanos,
) -> Result<ClientHello, Reject> {
    // Boxed: rare, and not to be part of every connection's state.
    let mut scan = Box::<Scan>::default();
    poll_fn(|cx| {
        loop {
            match scan.advance(buf.bytes()) {
                Ok(Some(hello)) => return Poll::Ready(Ok(hello)),
                Ok(None) => {}
                Err(NoHello::NotTls | NoHello::Malformed) => {
                    return Poll::Ready(Err(Reject::NotTls));
                }
            }
            if !buf.has_room() {
                debug_assert!(buf.len() < WIRE_BYTES_MAX, "the scan bounds it");
                buf.grow();
            }
            match poll_fill(stream, cx, buf) {
                Poll::Ready(Ok(0) | Err(_)) => return Poll::Ready(Err(Reject::DownstreamClosed)),
                Poll::Ready(Ok(_)) => {}
                Poll::Pending => {
                    return timer.poll(cx, until).map(|()| Err(Reject::TlsTimeout));
                }
            }
        }
    })
    .await
}
