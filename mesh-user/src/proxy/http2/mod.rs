//! HTTP/2 with prior knowledge, and gRPC.
//!
//! On the h2 crate directly rather than through hyper: a proxy has to see reset reasons, trailers,
//! interim answers and window updates as they are, and pays for no second layer. Flow control runs
//! end to end: the window that a sender gets back is what the other side has taken.
//!
//! Floods are stopped twice: by h2's own limits, all set explicitly in [`settings`], and by
//! [`guard`], which counts frames that cost work and carry nothing.

mod actions;
pub(super) mod client;
mod exchange;
mod flow;
mod grpc;
mod guard;
mod head;
mod hedge;
mod mirrored;
mod refuse;
mod serve;
mod settings;
mod stream;
mod tunnel;
mod wire;

pub(super) use grpc::status as grpc_status;
pub(super) use mirrored::shake;
pub(super) use serve::serve;
