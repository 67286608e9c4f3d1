//! Ambiguous and malformed HTTP/1 messages: the table in `data/http1-framing.txt`.

mod proxy_support;

use std::{
    io::Write,
    sync::{Arc, Mutex},
};

use mesh_user::model::Protocol;
use proxy_support::*;

struct Row {
    side: String,
    expect: String,
    name: String,
    bytes: Vec<u8>,
    result: Vec<u8>,
}

/// `\r`, `\xNN` and the like, and `{N*text}`.
fn unescape(text: &str) -> Vec<u8> {
    let mut out = Vec::new();
    let mut chars = text.chars();
    while let Some(char) = chars.next() {
        match char {
            '\\' => match chars.next().expect("something behind a backslash") {
                'r' => out.push(b'\r'),
                'n' => out.push(b'\n'),
                't' => out.push(b'\t'),
                '0' => out.push(0),
                '\\' => out.push(b'\\'),
                'x' => {
                    let digits: String = chars.by_ref().take(2).collect();
                    out.push(u8::from_str_radix(&digits, 16).unwrap());
                }
                other => panic!("unknown escape \\{other} in {text}"),
            },
            '{' => {
                let inside: String = chars.by_ref().take_while(|char| *char != '}').collect();
                let (count, what) = inside.split_once('*').unwrap();
                out.extend(unescape(what).repeat(count.parse().unwrap()));
            }
            _ => out.extend(char.encode_utf8(&mut [0; 4]).as_bytes()),
        }
    }
    out
}

fn rows(side: &str) -> Vec<Row> {
    let rows: Vec<Row> = include_str!("data/http1-framing.txt")
        .lines()
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .map(|line| {
            let columns: Vec<&str> = line.splitn(4, " | ").collect();
            let [side, expect, name, bytes] = columns[..] else {
                panic!("columns: {line}")
            };
            let (bytes, result) = bytes.split_once(" => ").unwrap_or((bytes, ""));
            Row {
                side: side.into(),
                expect: expect.into(),
                name: name.into(),
                bytes: unescape(bytes),
                result: unescape(result),
            }
        })
        .filter(|row| row.side == side)
        .collect();
    assert!(
        rows.len() >= 30,
        "the table has been cut to {} rows of {side}",
        rows.len()
    );
    rows
}

fn without_request_id(bytes: &[u8]) -> Vec<u8> {
    let name = b"x-request-id: ";
    match bytes.windows(name.len()).position(|window| window == name) {
        Some(at) => {
            let end = at + bytes[at..].iter().position(|byte| *byte == b'\n').unwrap() + 1;
            [&bytes[..at], &bytes[end..]].concat()
        }
        None => bytes.to_vec(),
    }
}

#[test]
fn requests_of_the_table_are_handled_as_it_says() {
    let got = Arc::new(Mutex::new(Vec::<u8>::new()));
    let seen = Arc::clone(&got);
    // Answers as soon as the end of a message is there, whatever it is; keeps what it got.
    let up = endpoint(move |stream| {
        let mut reader = Reader::new(stream);
        let mut from = 0;
        while reader.more().unwrap_or(false) {
            seen.lock().unwrap().extend_from_slice(&reader.rest[from..]);
            from = reader.rest.len();
            let text = &reader.rest;
            let bodies: [&[u8]; 3] = [b"\r\n\r\nabc", b"\r\n0\r\n\r\n", b"\r\n\r\n0\r\n\r\n"];
            let framed = [&b"ontent-Length"[..], b"transfer-encoding"];
            let has = |what: &[u8]| text.windows(what.len()).any(|window| window == what);
            let ended = if framed.iter().any(|field| has(field)) {
                bodies.iter().any(|body| text.ends_with(body))
            } else {
                text.ends_with(b"\r\n\r\n")
            };
            if ended
                && reader
                    .stream
                    .write_all(b"HTTP/1.1 299 Ok\r\ncontent-length: 0\r\n\r\n")
                    .is_err()
            {
                return;
            }
            if ended {
                reader.rest.clear();
                from = 0;
            }
        }
    });
    let mesh = Mesh::start(Plan::new(Protocol::Http).endpoint(up, "v1"));
    let mut failures = Vec::new();
    for row in rows("request") {
        got.lock().unwrap().clear();
        let mut client = Reader::new(mesh.connect());
        client.send(&row.bytes);
        let answer = client.message().unwrap_or_default();
        let arrived = without_request_id(&got.lock().unwrap());
        let words: Vec<&str> = row.expect.split(' ').collect();
        let fine = match words[..] {
            ["forward"] => answer.status() == 299 && arrived == row.result,
            [status, "open"] => {
                answer.status().to_string() == status
                    && arrived.is_empty()
                    && client.send(GET).message().unwrap_or_default().status() == 299
            }
            [status, "close"] => {
                answer.status().to_string() == status
                    && answer.field("x-mesh-reject").is_some()
                    && answer.field("connection").as_deref() == Some("close")
                    && client.is_closed()
                    && arrived.is_empty()
            }
            [status, "broken"] => {
                answer.status().to_string() == status
                    && answer.field("connection").as_deref() == Some("close")
                    && client.is_closed()
            }
            _ => panic!("unknown expectation {}", row.expect),
        };
        if !fine {
            failures.push(format!(
                "{}: wanted {}, got {:?}, endpoint got {:?}",
                row.name,
                row.expect,
                answer.head,
                String::from_utf8_lossy(&arrived)
            ));
        }
    }
    assert!(
        failures.is_empty(),
        "{} rows:\n{}",
        failures.len(),
        failures.join("\n")
    );
}

#[test]
fn answers_of_the_table_are_handled_as_it_says() {
    let reply = Arc::new(Mutex::new(Vec::<u8>::new()));
    let closes = Arc::new(Mutex::new((0, false)));
    let (script, state) = (Arc::clone(&reply), Arc::clone(&closes));
    let up = endpoint(move |stream| {
        let mut reader = Reader::new(stream);
        state.lock().unwrap().0 += 1;
        while let Some(request) = reader.head() {
            let cut = request.head.contains("/cut");
            let answer = script.lock().unwrap().clone();
            if reader.stream.write_all(&answer).is_err() {
                break;
            }
            if cut {
                break;
            }
        }
        state.lock().unwrap().1 = true;
    });
    let mut failures = Vec::new();
    for row in rows("response") {
        // A fresh mesh for each row: no connection is left over from another.
        let mesh = Mesh::start(Plan::new(Protocol::Http).endpoint(up, "v1"));
        reply.lock().unwrap().clone_from(&row.bytes);
        *closes.lock().unwrap() = (0, false);
        let mut client = Reader::new(mesh.connect());
        let method = if row.name.starts_with("HEAD") {
            "HEAD"
        } else {
            "GET"
        };
        let path = if row.expect == "cut" { "/cut" } else { "/" };
        let request = format!("{method} {path} HTTP/1.1\r\nhost: a\r\n\r\n");
        client.send(&request);
        let upstream_closed = || {
            let start = std::time::Instant::now();
            while !closes.lock().unwrap().1 && start.elapsed().as_secs() < 5 {
                std::thread::sleep(std::time::Duration::from_millis(1));
            }
            closes.lock().unwrap().1
        };
        let mut seen = String::new();
        let show = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let fine = match row.expect.as_str() {
            "502" => {
                let answer = client.head().unwrap_or_default();
                answer.status() == 502
                    && answer.field("x-mesh-reject").as_deref() == Some("upstream_malformed")
                    && upstream_closed()
            }
            "cut" => {
                let started = client.head().is_some_and(|head| head.status() == 200);
                started && client.is_reset()
            }
            "pass" => {
                let first = client.at_most(row.result.len());
                let second = client.send(&request).at_most(row.result.len());
                let connections = closes.lock().unwrap().0;
                seen = format!("{:?} {:?} {connections}", show(&first), show(&second));
                first == row.result && second == row.result && connections == 1
            }
            "pass-close" => {
                let first = client.at_most(row.result.len());
                // The next answer comes from a new connection, whatever was left of the first.
                let second = client.send(&request).at_most(row.result.len());
                let connections = closes.lock().unwrap().0;
                seen = format!("{:?} {:?} {connections}", show(&first), show(&second));
                first == row.result && second == row.result && connections == 2
            }
            other => panic!("unknown expectation {other}"),
        };
        if !fine {
            failures.push(format!("{}: wanted {}, got {seen}", row.name, row.expect));
        }
    }
    assert!(
        failures.is_empty(),
        "{} rows:\n{}",
        failures.len(),
        failures.join("\n")
    );
}

#[test]
fn chunks_that_break_after_their_end_hide_no_request() {
    let seen = Arc::new(Mutex::new(Vec::<u8>::new()));
    let kept = Arc::clone(&seen);
    let up = endpoint(move |stream| {
        let mut reader = Reader::new(stream);
        while reader.more().unwrap_or(false) {
            kept.lock().unwrap().append(&mut reader.rest);
        }
    });
    let mesh = Mesh::start(Plan::new(Protocol::Http).endpoint(up, "v1"));
    let mut client = Reader::new(mesh.connect());
    let data = "\r\nGET /evil HTTP/1.1\r\nhost: a\r\n\r\n";
    client.send(format!(
        "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n{:x}\r\n",
        data.len()
    ));
    // The size line is taken in before the rest comes.
    eventually("the first segment", || {
        seen.lock().unwrap().ends_with(b"\r\n\r\n21\r\n")
    });
    client.send(format!("{data}\r\n0\r\n "));
    assert_eq!(client.message().unwrap().status(), 400);
    assert!(client.is_closed(), "what follows is no request");
    eventually("the record", || mesh.records("connection").len() == 1);
    assert_eq!(mesh.records("request").len(), 1);
}
