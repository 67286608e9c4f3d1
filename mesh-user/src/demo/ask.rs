//! `mesh demo ask`: a plain client that says exactly what it saw. Knows nothing of the mesh: blocking
//! sockets of the standard library, one request after the other.
//!
//! The demo and the traffic tests run it inside pods, so that what it prints is what an unmodified
//! program sees: the peer's address by `getpeername()`, every status, every version.

use std::{
    collections::BTreeMap,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use clap::Args;
use serde::{Deserialize, Serialize};

/// Longest answer head that it reads, in bytes.
const HEAD_MAX: usize = 64 << 10;

/// Asks an HTTP/1.1 server N times and prints what came back, as one JSON object.
#[derive(Args, Clone, Debug)]
pub struct AskArgs {
    /// Where to connect: ADDRESS:PORT.
    pub to: SocketAddr,
    /// How many requests.
    #[arg(long, short, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub count: u32,
    /// Request target.
    #[arg(long, default_value = "/")]
    pub path: String,
    /// Request method.
    #[arg(long, default_value = "GET")]
    pub method: String,
    /// Header field, `NAME: VALUE`; may be repeated.
    #[arg(long, short = 'H')]
    pub header: Vec<String>,
    /// `Host` field; default: the address.
    #[arg(long)]
    pub host: Option<String>,
    /// Request body.
    #[arg(long, default_value = "")]
    pub body: String,
    /// A new connection for each request instead of one for all.
    #[arg(long)]
    pub close: bool,
    /// A new connection after so many requests; 0: never.
    #[arg(long, default_value_t = 0, conflicts_with = "close")]
    pub requests_per_connection: u32,
    /// Pause between requests, in milliseconds.
    #[arg(long, default_value_t = 0)]
    pub pause_ms: u64,
    /// Time-out of each connect, read and write, in milliseconds.
    #[arg(long, default_value_t = 5000, value_parser = clap::value_parser!(u64).range(1..=600_000))]
    pub timeout_ms: u64,
    /// Print the answers of each such span as one line, in milliseconds, instead of one for all.
    #[arg(long, value_parser = clap::value_parser!(u64).range(10..=60_000))]
    pub report_ms: Option<u64>,
}

/// What came back.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct Answers {
    /// `getpeername()` of the first connection.
    pub peer: Option<SocketAddr>,
    /// `getsockname()` of the first connection.
    pub local: Option<SocketAddr>,
    /// How many answers of each status.
    pub statuses: BTreeMap<u16, u32>,
    /// How many answers from each version, by the server's `x-echo-version`.
    pub versions: BTreeMap<String, u32>,
    /// How many answers from each server, by its `x-echo-name`.
    pub servers: BTreeMap<String, u32>,
    /// How many refusals of each name, by `x-mesh-reject`.
    pub rejects: BTreeMap<String, u32>,
    /// Requests that got no answer, by what happened.
    pub errors: BTreeMap<String, u32>,
    /// Header fields of the last answer, names in lower case.
    pub headers: BTreeMap<String, String>,
    /// Body of the last answer, lossy UTF-8, at most 64 KiB.
    pub body: String,
    /// Connections that were made.
    pub connections: u32,
    /// Median time of a request, in milliseconds.
    pub p50_ms: f64,
    /// 99th percentile, in milliseconds.
    pub p99_ms: f64,
    /// Longest time of one request, in milliseconds.
    pub slowest_ms: f64,
}

impl Answers {
    /// Answers with this status.
    pub fn status(&self, status: u16) -> u32 {
        self.statuses.get(&status).copied().unwrap_or(0)
    }

    /// Answers from this version.
    pub fn version(&self, version: &str) -> u32 {
        self.versions.get(version).copied().unwrap_or(0)
    }

    /// Requests that were made.
    pub fn asked(&self) -> u32 {
        self.statuses.values().sum::<u32>() + self.failed()
    }

    /// Requests without an answer.
    pub fn failed(&self) -> u32 {
        self.errors.values().sum()
    }
}

/// Runs the verb: prints the answers to standard output.
///
/// # Errors
/// Only for arguments that make no request possible, and for a closed standard output; failed
/// requests are part of the answers.
pub fn run_ask(args: &AskArgs) -> anyhow::Result<()> {
    let mut asker = Asker::new(args)?;
    let mut left = args.count;
    loop {
        let answers = asker.span(left, args.report_ms.map(Duration::from_millis));
        left -= answers.asked();
        let mut out = std::io::stdout().lock();
        serde_json::to_writer(&mut out, &answers)?;
        writeln!(out)?;
        out.flush()?;
        if left == 0 {
            return Ok(());
        }
    }
}

/// Asks `args.count` times.
///
/// # Errors
/// As [`run_ask`].
pub fn ask(args: &AskArgs) -> anyhow::Result<Answers> {
    Ok(Asker::new(args)?.span(args.count, None))
}

struct Asker<'a> {
    args: &'a AskArgs,
    request: Vec<u8>,
    connection: Option<Connection>,
    /// Requests since the last deliberate new connection.
    carried: u32,
}

impl<'a> Asker<'a> {
    fn new(args: &'a AskArgs) -> anyhow::Result<Self> {
        Ok(Self {
            args,
            request: request_bytes(args)?,
            connection: None,
            carried: 0,
        })
    }

    /// Asks at most `count` times, and for at most `limit` (but at least once).
    fn span(&mut self, count: u32, limit: Option<Duration>) -> Answers {
        let mut answers = Answers::default();
        let mut times = hdrhistogram::Histogram::<u64>::new(3).expect("3 digits are allowed");
        let begun = Instant::now();
        for _ in 0..count {
            let start = Instant::now();
            match one(self.args, &self.request, &mut self.connection, &mut answers) {
                Ok(answer) => note(&mut answers, answer),
                Err(error) => {
                    self.connection = None;
                    *answers.errors.entry(short(&error)).or_default() += 1;
                }
            }
            times.saturating_record(start.elapsed().as_micros() as u64);
            self.carried += 1;
            let enough = self.args.requests_per_connection;
            if self.args.close || (enough > 0 && self.carried >= enough) {
                self.connection = None;
                self.carried = 0;
            }
            if self.args.pause_ms > 0 {
                std::thread::sleep(Duration::from_millis(self.args.pause_ms));
            }
            if limit.is_some_and(|limit| begun.elapsed() >= limit) {
                break;
            }
        }
        answers.p50_ms = times.value_at_quantile(0.5) as f64 / 1e3;
        answers.p99_ms = times.value_at_quantile(0.99) as f64 / 1e3;
        answers.slowest_ms = times.max() as f64 / 1e3;
        answers
    }
}

struct Answer {
    status: u16,
    headers: BTreeMap<String, String>,
    body: Vec<u8>,
}

struct Connection {
    stream: TcpStream,
    /// Bytes read but not used.
    rest: Vec<u8>,
}

fn request_bytes(args: &AskArgs) -> anyhow::Result<Vec<u8>> {
    let host = args.host.clone().unwrap_or_else(|| args.to.to_string());
    let mut text = format!("{} {} HTTP/1.1\r\nhost: {host}\r\n", args.method, args.path);
    for field in &args.header {
        ensure!(
            field.contains(':'),
            "header {field:?}: expected NAME: VALUE"
        );
        text.push_str(field);
        text.push_str("\r\n");
    }
    if !args.body.is_empty() {
        text.push_str(&format!("content-length: {}\r\n", args.body.len()));
    }
    if args.close {
        text.push_str("connection: close\r\n");
    }
    text.push_str("\r\n");
    text.push_str(&args.body);
    Ok(text.into_bytes())
}

fn one(
    args: &AskArgs,
    request: &[u8],
    slot: &mut Option<Connection>,
    answers: &mut Answers,
) -> anyhow::Result<Answer> {
    let timeout = Duration::from_millis(args.timeout_ms);
    let connection = match slot {
        Some(connection) => connection,
        None => {
            let stream = TcpStream::connect_timeout(&args.to, timeout)?;
            stream.set_nodelay(true)?;
            stream.set_read_timeout(Some(timeout))?;
            stream.set_write_timeout(Some(timeout))?;
            answers.connections += 1;
            answers.peer = answers.peer.or(stream.peer_addr().ok());
            answers.local = answers.local.or(stream.local_addr().ok());
            slot.insert(Connection {
                stream,
                rest: Vec::new(),
            })
        }
    };
    connection.stream.write_all(request)?;
    let (answer, keep) = read_answer(connection, args.method == "HEAD")?;
    if !keep {
        *slot = None;
    }
    Ok(answer)
}

fn read_answer(connection: &mut Connection, head_only: bool) -> anyhow::Result<(Answer, bool)> {
    let (head_len, status, headers) = read_head(connection)?;
    connection.rest.drain(..head_len);
    if (100..200).contains(&status) && status != 101 {
        return read_answer(connection, head_only);
    }
    let closes = headers
        .get("connection")
        .is_some_and(|v| v.eq_ignore_ascii_case("close"));
    let length = headers
        .get("content-length")
        .map(|v| v.parse::<usize>())
        .transpose()?;
    let chunked = headers
        .get("transfer-encoding")
        .is_some_and(|v| v.contains("chunked"));
    let (body, keep) = if head_only || matches!(status, 204 | 304) {
        (Vec::new(), true)
    } else if chunked {
        (read_chunks(connection)?, true)
    } else if let Some(length) = length {
        (read_exact(connection, length)?, true)
    } else {
        connection.stream.read_to_end(&mut connection.rest)?;
        (std::mem::take(&mut connection.rest), false)
    };
    Ok((
        Answer {
            status,
            headers,
            body,
        },
        keep && !closes,
    ))
}

type Head = (usize, u16, BTreeMap<String, String>);

fn read_head(connection: &mut Connection) -> anyhow::Result<Head> {
    loop {
        let mut fields = [httparse::EMPTY_HEADER; 128];
        let mut response = httparse::Response::new(&mut fields);
        if let httparse::Status::Complete(length) = response
            .parse(&connection.rest)
            .context("the answer is not HTTP/1.1")?
        {
            let headers = response
                .headers
                .iter()
                .map(|field| {
                    let value = String::from_utf8_lossy(field.value).into_owned();
                    (field.name.to_ascii_lowercase(), value)
                })
                .collect();
            return Ok((length, response.code.context("no status")?, headers));
        }
        ensure!(connection.rest.len() < HEAD_MAX, "answer head above 64 KiB");
        more(connection)?;
    }
}

fn more(connection: &mut Connection) -> anyhow::Result<()> {
    let mut buffer = [0; 16 << 10];
    let count = connection.stream.read(&mut buffer)?;
    if count == 0 {
        bail!("closed");
    }
    connection.rest.extend_from_slice(&buffer[..count]);
    Ok(())
}

fn read_exact(connection: &mut Connection, length: usize) -> anyhow::Result<Vec<u8>> {
    while connection.rest.len() < length {
        more(connection)?;
    }
    let tail = connection.rest.split_off(length);
    Ok(std::mem::replace(&mut connection.rest, tail))
}

fn read_chunks(connection: &mut Connection) -> anyhow::Result<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let line = read_line(connection)?;
        let size = line.split(';').next().unwrap_or_default().trim();
        let size = usize::from_str_radix(size, 16).context("chunk size")?;
        if size == 0 {
            // Trailers, up to the empty line.
            while !read_line(connection)?.is_empty() {}
            return Ok(body);
        }
        body.extend(read_exact(connection, size)?);
        ensure!(
            read_exact(connection, 2)? == b"\r\n",
            "chunk without its end"
        );
    }
}

fn read_line(connection: &mut Connection) -> anyhow::Result<String> {
    loop {
        if let Some(end) = connection.rest.windows(2).position(|pair| pair == b"\r\n") {
            let line = read_exact(connection, end + 2)?;
            return Ok(String::from_utf8_lossy(&line[..end]).into_owned());
        }
        ensure!(connection.rest.len() < HEAD_MAX, "line above 64 KiB");
        more(connection)?;
    }
}

fn note(answers: &mut Answers, answer: Answer) {
    let count = |map: &mut BTreeMap<String, u32>, field: &str| {
        if let Some(value) = answer.headers.get(field) {
            *map.entry(value.clone()).or_default() += 1;
        }
    };
    count(&mut answers.versions, "x-echo-version");
    count(&mut answers.servers, "x-echo-name");
    count(&mut answers.rejects, "x-mesh-reject");
    *answers.statuses.entry(answer.status).or_default() += 1;
    answers.headers = answer.headers;
    let end = answer.body.len().min(HEAD_MAX);
    answers.body = String::from_utf8_lossy(&answer.body[..end]).into_owned();
}

/// The kind of an error, as a key that counts.
fn short(error: &anyhow::Error) -> String {
    match error.downcast_ref::<std::io::Error>() {
        Some(io) => match io.raw_os_error() {
            Some(number) => format!("{:?}", nix::errno::Errno::from_raw(number)),
            None => format!("{:?}", io.kind()),
        },
        None => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    fn args(to: SocketAddr, count: u32) -> AskArgs {
        AskArgs {
            to,
            count,
            path: "/".into(),
            method: "GET".into(),
            header: Vec::new(),
            host: None,
            body: String::new(),
            close: false,
            requests_per_connection: 0,
            pause_ms: 0,
            timeout_ms: 2000,
            report_ms: None,
        }
    }

    #[test]
    fn answers_of_every_framing_are_counted_on_one_connection() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let to = listener.local_addr().unwrap();
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            for answer in [
                "HTTP/1.1 200 OK\r\nx-echo-version: v1\r\ncontent-length: 2\r\n\r\nok",
                "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nx-echo-version: v2\r\n\
                 transfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nt: 1\r\n\r\n",
                "HTTP/1.1 204 No Content\r\nx-mesh-reject: none\r\n\r\n",
            ] {
                let mut buffer = [0; 4096];
                let count = stream.read(&mut buffer).unwrap();
                assert!(buffer[..count].starts_with(b"GET / HTTP/1.1\r\n"));
                stream.write_all(answer.as_bytes()).unwrap();
            }
        });
        let answers = ask(&args(to, 3)).unwrap();
        server.join().unwrap();
        assert_eq!((answers.version("v1"), answers.version("v2")), (1, 1));
        assert_eq!((answers.status(200), answers.status(204)), (2, 1));
        assert_eq!(answers.rejects["none"], 1);
        assert_eq!((answers.connections, answers.failed()), (1, 0));
        assert_eq!(answers.peer, Some(to));
    }

    #[test]
    fn refused_connection_is_an_error_by_its_errno() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let to = listener.local_addr().unwrap();
        drop(listener);
        let answers = ask(&args(to, 2)).unwrap();
        assert_eq!(answers.errors["ECONNREFUSED"], 2);
    }
}
