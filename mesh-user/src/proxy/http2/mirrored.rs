//! What a stream gives to its mirrors.

use std::{future::Future, rc::Rc};

use bytes::Bytes;
use h2::client::SendRequest;

use super::{head::Head, settings, stream::Stream, wire::Wire};
use crate::{
    config::Limits,
    policy::action::MirrorPlan,
    proxy::{
        buffer::Buf,
        mirror::{self, Begun, Comparison, Original, Spoken, Tee},
        socket::Socket,
    },
};

/// Who else gets one direction of a stream.
#[derive(Debug)]
pub(super) enum Listener {
    /// Mirrors: the request.
    Mirrors(Tee),
    /// A comparison: the answer.
    Comparison(Rc<Comparison>),
}

impl Listener {
    /// Data that came.
    pub(super) fn data(&self, data: &[u8]) {
        match self {
            Self::Mirrors(tee) => tee.data(data),
            Self::Comparison(comparison) => comparison.data(data),
        }
    }

    /// The request has passed whole.
    pub(super) fn end(&self, trailers: Option<&http::HeaderMap>) {
        if let Self::Mirrors(tee) = self {
            tee.end(trailers);
        }
    }
}

impl Stream {
    /// Sends the head to the request's mirrors, if it has any. Who compares the answer, if somebody
    /// does.
    pub(super) fn mirror(&mut self, head: &Head, mirrors: &[MirrorPlan]) -> Option<Rc<Comparison>> {
        if mirrors.is_empty() {
            return None;
        }
        let original = Original {
            conn: &self.conn,
            snapshot: &self.log.snapshot,
            source: self.log.source,
            spoken: Spoken::Http2,
            upgrades: head.is_tunnel(),
            ends: self.kept.ended,
        };
        let Begun { tee, compare } =
            mirror::begin(&original, mirrors, || Some(head.request(false)))?;
        self.kept.listener = Some(Box::new(Listener::Mirrors(tee)));
        compare
    }
}

/// Begins to speak HTTP/2 on a connection of a mirror's, with the limits of an upstream one. What
/// drives it ends when the connection does.
pub(in crate::proxy) async fn shake(
    limits: &Limits,
    stream: Socket,
) -> Result<(SendRequest<Bytes>, impl Future<Output = ()> + use<>), h2::Error> {
    let wire = Wire::new(stream, Buf::default(), 0);
    let (sender, connection) = settings::client(limits).handshake(wire).await?;
    let driven = async move {
        if let Err(error) = connection.await {
            tracing::debug!(%error, "mirror's HTTP/2 connection ended");
        }
    };
    Ok((sender, driven))
}
