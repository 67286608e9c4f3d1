//! The HTTP/1.1 engine: one task for each connection, requests one after the other.
//!
//! A request head is parsed where it was read, rewritten into one buffer and sent together with
//! the body bytes that came with it: one read and one write on each side for a request that fits.
//! Bodies pass through one buffer, validated, not re-framed. httparse splits heads; everything
//! that it is lenient about is decided here ([`scan`], [`framing`], [`chunked`]).

mod act;
mod answer;
mod body;
mod chunked;
mod copy;
mod exchange;
mod fields;
mod forward;
mod framing;
mod handshake;
mod hedge;
mod mirrored;
mod next_head;
mod payload;
mod raw_head;
mod request;
mod response;
mod scan;
mod sending;
mod serve;

pub(super) use answer::DRAFT_03;
pub(super) use fields::{is_authority, upgrade_passes};
pub(super) use handshake::{Answered, Handshake, NoAnswer, Offer, Rest};
pub(super) use serve::serve;
