//! HTTP/2 floods and malformed frames, frame by frame: the connection ends, memory stays bounded,
//! others are served.

mod proxy_support;

use std::{
    io::Write,
    time::{Duration, Instant},
};

use mesh_user::model::Protocol;
use proxy_support::*;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const PRIORITY: u8 = 2;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

const PROTOCOL_ERROR: u32 = 1;
const ENHANCE_YOUR_CALM: u32 = 11;

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut frame = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    frame.extend_from_slice(&[kind, flags]);
    frame.extend_from_slice(&stream.to_be_bytes());
    frame.extend_from_slice(payload);
    frame
}

/// A literal field without indexing, name and value uncoded (RFC 7541, section 6.2.2).
fn field(name: &str, value: &str) -> Vec<u8> {
    assert!(name.len() < 127 && value.len() < 127);
    let mut field = vec![0, name.len() as u8];
    field.extend_from_slice(name.as_bytes());
    field.push(value.len() as u8);
    field.extend_from_slice(value.as_bytes());
    field
}

fn pseudo() -> Vec<u8> {
    [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", "/"),
        (":authority", "web"),
    ]
    .iter()
    .flat_map(|(name, value)| field(name, value))
    .collect()
}

/// A connection past its preface and settings.
fn opened(mesh: &Mesh) -> Reader {
    let mut client = Reader::new(mesh.connect());
    client
        .send(PREFACE)
        .send(frame(SETTINGS, 0, 0, &[]))
        .send(frame(SETTINGS, 1, 0, &[]));
    client
}

/// Reads frames up to a GOAWAY, RST_STREAM or the end: kind and error code.
fn verdict(client: &mut Reader) -> Option<(u8, u32)> {
    let mut header = [0; 9];
    loop {
        while client.rest.len() < 9 {
            if !client.more().unwrap_or(false) {
                return None;
            }
        }
        header.copy_from_slice(&client.bytes(9));
        let length = u32::from_be_bytes([0, header[0], header[1], header[2]]) as usize;
        let payload = client.at_most(length);
        let code = |at: usize| {
            payload
                .get(at..at + 4)
                .map(|code| u32::from_be_bytes(code.try_into().unwrap()))
        };
        match header[3] {
            GOAWAY => match code(4)? {
                // The announcement of a graceful end is no verdict.
                0 => {}
                error => return Some((GOAWAY, error)),
            },
            RST_STREAM => return Some((RST_STREAM, code(0)?)),
            _ => {}
        }
    }
}

/// Sends `unit` again and again until the connection ends; how many bytes that took.
fn flood(client: &mut Reader, mut unit: impl FnMut(u32) -> Vec<u8>) -> usize {
    let start = Instant::now();
    let mut sent = 0;
    for index in 0.. {
        let bytes = unit(index);
        if client.stream.write_all(&bytes).is_err() {
            break;
        }
        sent += bytes.len();
        assert!(start.elapsed() < PATIENCE, "{sent} bytes and still open");
    }
    sent
}

fn mesh() -> Mesh {
    let up = endpoint(|stream| {
        // Takes everything, answers nothing: streams stay open.
        let mut reader = Reader::new(stream);
        reader.send(frame(SETTINGS, 0, 0, &[]));
        while reader.more().unwrap_or(false) {
            reader.rest.clear();
        }
    });
    Mesh::start(Plan::new(Protocol::Http2).endpoint(up, "v1"))
}

fn headers(stream: u32, flags: u8) -> Vec<u8> {
    frame(HEADERS, flags | END_HEADERS, stream, &pseudo())
}

#[test]
fn floods_end_the_connection_within_bounds() {
    let mesh = mesh();
    let before = resident();
    type Unit = Box<dyn FnMut(u32) -> Vec<u8>>;
    let floods: Vec<(&str, Vec<u8>, Unit)> = vec![
        (
            "PING",
            vec![],
            Box::new(|_| frame(PING, 0, 0, &[0; 8]).repeat(10)),
        ),
        (
            "SETTINGS",
            vec![],
            Box::new(|_| frame(SETTINGS, 0, 0, &[]).repeat(10)),
        ),
        (
            "PRIORITY",
            vec![],
            Box::new(|_| frame(PRIORITY, 0, 1, &[0, 0, 0, 3, 16]).repeat(10)),
        ),
        (
            "WINDOW_UPDATE",
            headers(1, 0),
            Box::new(|_| frame(WINDOW_UPDATE, 0, 1, &[0, 0, 0, 1]).repeat(10)),
        ),
        (
            "empty DATA",
            headers(1, 0),
            Box::new(|_| frame(DATA, 0, 1, &[]).repeat(10)),
        ),
        (
            "unknown type",
            vec![],
            Box::new(|_| frame(0xbb, 0, 0, &[1, 2]).repeat(10)),
        ),
        (
            "rapid reset",
            vec![],
            Box::new(|index| {
                let stream = 2 * index + 1;
                [
                    headers(stream, 0),
                    frame(RST_STREAM, 0, stream, &[0, 0, 0, 8]),
                ]
                .concat()
            }),
        ),
        (
            "CONTINUATION",
            frame(HEADERS, 0, 1, &pseudo()),
            Box::new(|_| frame(CONTINUATION, 0, 1, &field("a", &"b".repeat(100)))),
        ),
        (
            "empty CONTINUATION",
            frame(HEADERS, 0, 1, &pseudo()),
            Box::new(|_| frame(CONTINUATION, 0, 1, &[]).repeat(10)),
        ),
        (
            "streams that break a rule each",
            vec![],
            Box::new(|index| {
                let stream = 2 * index + 1;
                let bad = [pseudo(), field("connection", "close")].concat();
                frame(HEADERS, END_HEADERS | END_STREAM, stream, &bad)
            }),
        ),
        (
            "streams above the limit",
            vec![],
            Box::new(|index| headers(2 * index + 1, END_STREAM)),
        ),
    ];
    for (name, first, unit) in floods {
        let mut client = opened(&mesh);
        client.send(first);
        let sent = flood(&mut client, unit);
        println!("{name}: ended after {sent} bytes");
        eventually(name, || {
            mesh.workload
                .connections
                .load(std::sync::atomic::Ordering::SeqCst)
                == 0
        });
    }
    let grown = resident().saturating_sub(before);
    assert!(grown < 32 << 20, "{grown} bytes more than before");
    eventually("every flood is in the log", || {
        mesh.records("connection").len() == 11
    });
}

#[test]
fn flood_is_answered_with_enhance_your_calm() {
    let mesh = mesh();
    let mut client = opened(&mesh);
    // Exactly one more than is allowed, so that no unread byte turns the close into a reset.
    for _ in 0..1100 {
        if client
            .stream
            .write_all(&frame(PING, 0, 0, &[0; 8]))
            .is_err()
        {
            break;
        }
    }
    let code = verdict(&mut client);
    assert!(
        matches!(code, None | Some((GOAWAY, ENHANCE_YOUR_CALM))),
        "{code:?}"
    );
}

#[test]
fn malformed_requests_are_stream_errors() {
    let mesh = mesh();
    let with = |more: &[Vec<u8>]| [pseudo(), more.concat()].concat();
    for (name, block) in [
        ("connection", with(&[field("connection", "close")])),
        ("keep-alive", with(&[field("keep-alive", "5")])),
        (
            "proxy-connection",
            with(&[field("proxy-connection", "close")]),
        ),
        (
            "transfer-encoding",
            with(&[field("transfer-encoding", "chunked")]),
        ),
        ("upgrade", with(&[field("upgrade", "x")])),
        ("te other than trailers", with(&[field("te", "gzip")])),
        ("upper-case name", with(&[field("X-Upper", "1")])),
        ("NUL in a value", with(&[field("x", "a\0b")])),
        ("CR in a value", with(&[field("x", "a\rb")])),
        ("LF in a value", with(&[field("x", "a\nb")])),
        ("colon in a name", with(&[field("x:y", "1")])),
        ("space in a name", with(&[field("x y", "1")])),
        ("empty name", with(&[field("", "1")])),
        (
            "pseudo-field after a field",
            [pseudo(), field("x", "1"), field(":path", "/")].concat(),
        ),
        ("repeated pseudo-field", with(&[field(":path", "/b")])),
        ("unknown pseudo-field", with(&[field(":odd", "1")])),
        ("response pseudo-field", with(&[field(":status", "200")])),
        ("no method", field(":path", "/")),
        ("empty path", {
            let fields = [
                (":method", "GET"),
                (":scheme", "http"),
                (":path", ""),
                (":authority", "w"),
            ];
            fields
                .iter()
                .flat_map(|(name, value)| field(name, value))
                .collect()
        }),
    ] {
        let mut client = opened(&mesh);
        client.send(frame(HEADERS, END_HEADERS | END_STREAM, 1, &block));
        let got = verdict(&mut client);
        assert_eq!(
            got.map(|(_, code)| code),
            Some(PROTOCOL_ERROR),
            "{name}: {got:?}"
        );
    }
}

#[test]
fn body_that_differs_from_its_content_length_is_malformed() {
    let mesh = mesh();
    let block = [pseudo(), field("content-length", "5")].concat();
    for body in ["123", "1234567"] {
        let mut client = opened(&mesh);
        client.send(frame(HEADERS, END_HEADERS, 1, &block));
        client.send(frame(DATA, END_STREAM, 1, body.as_bytes()));
        assert_eq!(
            verdict(&mut client).map(|(_, code)| code),
            Some(PROTOCOL_ERROR),
            "{body}"
        );
    }
}

#[test]
fn frame_larger_than_its_limit_ends_the_connection() {
    let mesh = mesh();
    let mut client = opened(&mesh);
    client.send(headers(1, 0));
    client.send(frame(DATA, 0, 1, &vec![0; 16_385]));
    let (kind, code) = verdict(&mut client).expect("a GOAWAY");
    assert_eq!((kind, code), (GOAWAY, 6), "FRAME_SIZE_ERROR");
}

#[test]
fn head_that_never_ends_is_cut_after_the_header_time_out() {
    let up = endpoint(|stream| drop(stream));
    let plan = Plan::new(Protocol::Http2).endpoint(up, "v1");
    let mesh = Mesh::with(plan, 1, |limits| {
        limits.header_timeout = Duration::from_millis(300)
    });
    let start = Instant::now();
    let mut client = opened(&mesh);
    client.send(frame(HEADERS, 0, 1, &pseudo()));
    let _goaway = client.all();
    assert!(start.elapsed() >= Duration::from_millis(300));
    assert!(
        start.elapsed() < Duration::from_secs(5),
        "{:?}",
        start.elapsed()
    );
    // The same for a preface that never comes.
    let mut silent = Reader::new(mesh.connect());
    let _end = silent.all();
}

#[test]
fn client_without_the_preface_is_refused_on_an_http2_port() {
    let mesh = mesh();
    let mut client = Reader::new(mesh.connect());
    client.send(GET);
    let _goaway = client.all();
    eventually("the record", || mesh.records("connection").len() == 1);
    let line = mesh.records("connection")[0].to_string();
    assert!(line.contains("bad_request"), "{line}");
}
