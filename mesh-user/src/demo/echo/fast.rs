//! HTTP/1.1 with one fixed answer and next to no cost, so that a measurement shows the path and not
//! the server.
//!
//! Takes requests without a body only: it looks for the end of the head and for `/bytes/N`.

use std::time::Duration;

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use super::service::Identity;

/// Longest head. Also the memory of an idle connection.
const HEAD_BYTES_MAX: usize = 4096;

/// How much, and how long, is read from a peer that was refused.
const LINGER_BYTES_MAX: u64 = 1 << 20;
const LINGER_MAX: Duration = Duration::from_secs(1);

/// What `/bytes/N` sends at once.
static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

/// Serves one connection until the peer closes it, asks for that, or sends what is not for us.
pub(super) async fn serve(mut stream: TcpStream, identity: &Identity) {
    // The peer is told by its connection's end: there is nobody else to tell.
    let _ = requests(&mut stream, identity).await;
}

async fn requests(stream: &mut TcpStream, identity: &Identity) -> std::io::Result<()> {
    let fixed = answer(
        identity.version(),
        b"hello, mesh\n".len() as u64,
        b"hello, mesh\n",
    );
    let mut buffer = [0; HEAD_BYTES_MAX];
    let mut filled = 0;
    loop {
        let length = loop {
            if let Some(length) = head_length(&buffer[..filled]) {
                break length;
            }
            if filled == buffer.len() {
                return refuse(stream).await;
            }
            let length = stream.read(&mut buffer[filled..]).await?;
            if length == 0 {
                return Ok(());
            }
            filled += length;
        };
        match read(&buffer[..length]) {
            Ask::Fixed => stream.write_all(&fixed).await?,
            Ask::Bytes(count) => zeros(stream, identity, count).await?,
            Ask::Last => {
                stream.write_all(&fixed).await?;
                return stream.shutdown().await;
            }
            Ask::Refused => return refuse(stream).await,
        }
        buffer.copy_within(length..filled, 0);
        filled -= length;
    }
}

const REFUSED: &[u8] =
    b"HTTP/1.1 400 Bad Request\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";

/// Reads away what is under way, for closing with unread bytes would reset the connection, and the
/// answer with it.
async fn refuse(stream: &mut TcpStream) -> std::io::Result<()> {
    stream.write_all(REFUSED).await?;
    stream.shutdown().await?;
    let mut rest = stream.take(LINGER_BYTES_MAX);
    let mut nowhere = tokio::io::sink();
    let all = tokio::io::copy(&mut rest, &mut nowhere);
    // A peer that neither sends nor closes has had its answer.
    tokio::time::timeout(LINGER_MAX, all)
        .await
        .map_or(Ok(()), |copied| copied.map(|_| ()))
}

fn answer(version: &[u8], length: u64, body: &[u8]) -> Vec<u8> {
    let mut answer = b"HTTP/1.1 200 OK\r\nx-echo-version: ".to_vec();
    answer.extend_from_slice(version);
    answer.extend_from_slice(format!("\r\ncontent-length: {length}\r\n\r\n").as_bytes());
    answer.extend_from_slice(body);
    answer
}

async fn zeros(stream: &mut TcpStream, identity: &Identity, count: u64) -> std::io::Result<()> {
    stream
        .write_all(&answer(identity.version(), count, b""))
        .await?;
    let mut left = count;
    while left > 0 {
        let length = left.min(ZEROS.len() as u64);
        stream
            .write_all(&ZEROS[..usize::try_from(length).unwrap_or(0)])
            .await?;
        left -= length;
    }
    Ok(())
}

/// Length of the head, its empty line included.
fn head_length(bytes: &[u8]) -> Option<usize> {
    bytes
        .windows(4)
        .position(|four| four == b"\r\n\r\n")
        .map(|at| at + 4)
}

/// What a head asks for.
#[derive(Debug, PartialEq, Eq)]
enum Ask {
    Fixed,
    /// So many bytes.
    Bytes(u64),
    /// The fixed answer, then close.
    Last,
    /// It has a body, or is no GET.
    Refused,
}

fn read(head: &[u8]) -> Ask {
    let Some(target) = head.strip_prefix(b"GET ") else {
        return Ask::Refused;
    };
    if let Some(digits) = target.strip_prefix(b"/bytes/") {
        let end = digits
            .iter()
            .position(|b| !b.is_ascii_digit())
            .unwrap_or(digits.len());
        let number = std::str::from_utf8(&digits[..end])
            .ok()
            .and_then(|text| text.parse().ok());
        return number.map_or(Ask::Refused, Ask::Bytes);
    }
    let mut ask = Ask::Fixed;
    for line in head.split(|b| *b == b'\n').skip(1) {
        // By the first byte: most fields of most requests are none of these.
        match line.first().map(u8::to_ascii_lowercase) {
            Some(b'c') if field(line, b"connection:", b"close") => ask = Ask::Last,
            Some(b'c')
                if field(line, b"content-length:", b"")
                    && !field(line, b"content-length:", b"0") =>
            {
                return Ask::Refused;
            }
            Some(b't') if field(line, b"transfer-encoding:", b"") => return Ask::Refused,
            _ => {}
        }
    }
    ask
}

/// Whether a line is this field with a value that starts so.
fn field(line: &[u8], name: &[u8], value: &[u8]) -> bool {
    let Some((start, rest)) = line.split_at_checked(name.len()) else {
        return false;
    };
    let rest = rest.trim_ascii_start();
    start.eq_ignore_ascii_case(name)
        && rest.len() >= value.len()
        && rest[..value.len()].eq_ignore_ascii_case(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn head_is_complete_with_its_empty_line_only() {
        let head = b"GET / HTTP/1.1\r\nhost: a\r\n\r\nGET";
        for end in 0..head.len() - 3 {
            assert_eq!(head_length(&head[..end]), None, "{end}");
        }
        assert_eq!(head_length(head), Some(head.len() - 3));
    }

    #[test]
    fn heads_are_told_apart() {
        for (head, ask) in [
            ("GET / HTTP/1.1\r\nhost: a\r\n\r\n", Ask::Fixed),
            ("GET /bytes/17 HTTP/1.1\r\nhost: a\r\n\r\n", Ask::Bytes(17)),
            ("GET /bytes/x HTTP/1.1\r\n\r\n", Ask::Refused),
            ("GET / HTTP/1.1\r\nConnection: close\r\n\r\n", Ask::Last),
            ("GET / HTTP/1.1\r\ncontent-length: 0\r\n\r\n", Ask::Fixed),
            (
                "GET / HTTP/1.1\r\nContent-Length: 5\r\n\r\nhello",
                Ask::Refused,
            ),
            (
                "GET / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n",
                Ask::Refused,
            ),
            ("POST / HTTP/1.1\r\n\r\n", Ask::Refused),
            ("\r\n\r\n", Ask::Refused),
        ] {
            assert_eq!(read(head.as_bytes()), ask, "{head:?}");
        }
    }
}
