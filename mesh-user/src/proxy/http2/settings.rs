//! Every HTTP/2 limit, for both sides, in one place.

use crate::config::Limits;

/// Flow-control window of a stream, in bytes: what a stream can make us hold. Enough for 98 MB/s at
/// 0.5 ms. Below the protocol's default of 65,535 (RFC 9113, section 6.9.2) because frames, their
/// buffers and the stream's state count as well: together they stay under 64 KiB.
const STREAM_WINDOW_BYTES: u32 = 48 << 10;
/// Bytes that h2 holds for a stream that its peer does not take.
const SEND_BUFFER_BYTES: usize = 64 << 10;
/// Streams reset by us that are remembered, so that frames under way to them are no error.
const RESET_STREAMS_MAX: usize = 50;
/// Resets that a peer's protocol errors may make us send.
const ERROR_RESETS_MAX: usize = 100;
/// HPACK table in bytes: the protocol's default.
const HEADER_TABLE_BYTES: u32 = 4096;

/// The connection's window: all streams can fill theirs, so that one that is not read does not
/// stop the others.
fn connection_window(limits: &Limits) -> u32 {
    limits
        .h2_streams_max
        .max(1)
        .saturating_mul(STREAM_WINDOW_BYTES)
        .min(i32::MAX as u32)
}

/// HTTP/2 counts 32 bytes of overhead for each field (RFC 9113, section 6.5.2).
fn header_list(limits: &Limits) -> u32 {
    u32::try_from(limits.head_bytes_max).unwrap_or(u32::MAX)
}

/// Towards workloads.
pub(super) fn server(limits: &Limits) -> h2::server::Builder {
    let mut builder = h2::server::Builder::new();
    builder
        .initial_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(connection_window(limits))
        .max_frame_size(limits.h2_frame_bytes_max)
        .max_header_list_size(header_list(limits))
        .header_table_size(HEADER_TABLE_BYTES)
        .max_concurrent_streams(limits.h2_streams_max)
        // RFC 8441: WebSocket and others over a stream.
        .enable_connect_protocol()
        .max_concurrent_reset_streams(RESET_STREAMS_MAX)
        .max_local_error_reset_streams(Some(ERROR_RESETS_MAX))
        .max_pending_accept_reset_streams(limits.h2_reset_streams_max)
        .max_send_buffer_size(SEND_BUFFER_BYTES);
    builder
}

/// Towards endpoints.
pub(super) fn client(limits: &Limits) -> h2::client::Builder {
    let mut builder = h2::client::Builder::new();
    builder
        .enable_push(false)
        .initial_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(connection_window(limits))
        .max_frame_size(limits.h2_frame_bytes_max)
        .max_header_list_size(header_list(limits))
        .header_table_size(HEADER_TABLE_BYTES)
        .max_concurrent_reset_streams(RESET_STREAMS_MAX)
        .max_local_error_reset_streams(Some(ERROR_RESETS_MAX))
        .initial_max_send_streams(limits.h2_streams_max as usize)
        .max_send_buffer_size(SEND_BUFFER_BYTES);
    builder
}
