//! A check by TCP: a connection, and what is said on it.

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::{Ask, connect};
use crate::{model::health::TcpProbe, policy::health::CheckResult, proxy::wire::SocketSource};

/// What is read of an answer.
const ANSWER_BYTES_MAX: usize = 4 << 10;

pub(super) async fn check(probe: &TcpProbe, ask: &Ask, sockets: &dyn SocketSource) -> CheckResult {
    let mut stream = match connect(ask, sockets).await {
        Ok(stream) => stream,
        Err(result) => return result,
    };
    if !probe.send.is_empty() && stream.write_all(probe.send.as_bytes()).await.is_err() {
        return CheckResult::Broken;
    }
    if probe.expect.is_empty() {
        return CheckResult::Ok;
    }
    let expected = memchr::memmem::Finder::new(probe.expect.as_bytes());
    let mut answer = Vec::with_capacity(256);
    while answer.len() < ANSWER_BYTES_MAX {
        let room = (ANSWER_BYTES_MAX - answer.len()) as u64;
        match (&mut stream).take(room).read_buf(&mut answer).await {
            Ok(0) | Err(_) => return CheckResult::Broken,
            Ok(_) if expected.find(&answer).is_some() => return CheckResult::Ok,
            Ok(_) => {}
        }
    }
    CheckResult::Broken
}
