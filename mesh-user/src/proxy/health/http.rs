//! A check by HTTP/1.1: one request, whose status says how the endpoint is.

use bytes::Bytes;
use http::{HeaderValue, Request, header};
use http_body_util::{BodyExt as _, Empty};
use hyper::{body::Incoming, client::conn::http1};
use hyper_util::rt::TokioIo;

use super::{Ask, connect};
use crate::{model::health::HttpProbe, policy::health::CheckResult, proxy::wire::SocketSource};

/// A connection that is kept; its driver runs as a task, which ends with it.
pub(super) type Connection = http1::SendRequest<Empty<Bytes>>;

/// The longest body that is read for the sake of the connection.
const BODY_BYTES_MAX: usize = 64 << 10;

/// The largest head that hyper reads.
const HEAD_BYTES_MAX: usize = 64 << 10;

pub(super) async fn check(
    probe: &HttpProbe,
    ask: &Ask,
    kept: Option<Connection>,
    sockets: &dyn SocketSource,
) -> (CheckResult, Option<Connection>) {
    let mut connection = match kept.filter(|kept| !kept.is_closed()) {
        Some(connection) => connection,
        None => match open(ask, sockets).await {
            Ok(connection) => connection,
            Err(result) => return (result, None),
        },
    };
    let Some(request) = request(probe, ask) else {
        return (CheckResult::Broken, None);
    };
    if connection.ready().await.is_err() {
        return (CheckResult::Broken, None);
    }
    let Ok(response) = connection.send_request(request).await else {
        return (CheckResult::Broken, None);
    };
    let result = judge(probe, response.status().as_u16());
    let whole = drain(response.into_body()).await;
    (result, whole.then_some(connection))
}

/// What a status means.
fn judge(probe: &HttpProbe, status: u16) -> CheckResult {
    let among = |ranges: &[(u16, u16)]| {
        let hit = |(first, last): &(u16, u16)| (*first..=*last).contains(&status);
        ranges.iter().any(hit)
    };
    let well = match probe.statuses.as_slice() {
        [] => status == 200,
        statuses => among(statuses),
    };
    match (well, among(&probe.retriable)) {
        (true, _) => CheckResult::Ok,
        (false, true) => CheckResult::Retriable(status),
        (false, false) => CheckResult::Status(status),
    }
}

async fn open(ask: &Ask, sockets: &dyn SocketSource) -> Result<Connection, CheckResult> {
    let stream = connect(ask, sockets).await?;
    let (sender, driver) = http1::Builder::new()
        .max_buf_size(HEAD_BYTES_MAX)
        .handshake(TokioIo::new(stream))
        .await
        .map_err(|_| CheckResult::Broken)?;
    // An error of the driver is an error of the request, too.
    tokio::spawn(async move {
        let _ended = driver.await;
    });
    Ok(sender)
}

/// None: the configuration holds what no request can (it refuses that).
fn request(probe: &HttpProbe, ask: &Ask) -> Option<Request<Empty<Bytes>>> {
    let host = probe.host.as_deref().unwrap_or(&ask.host);
    let mut request = Request::builder()
        .method(probe.method.as_str())
        .uri(probe.path.as_str())
        .header(header::HOST, host)
        .header(header::USER_AGENT, "mesh-health-check")
        .body(Empty::new())
        .ok()?;
    if !ask.check.reuse_connection {
        let close = HeaderValue::from_static("close");
        request.headers_mut().insert(header::CONNECTION, close);
    }
    Some(request)
}

/// Reads the body to its end; false when it is too long or broken.
async fn drain(mut body: Incoming) -> bool {
    let mut read = 0;
    while let Some(frame) = body.frame().await {
        let Ok(frame) = frame else { return false };
        read += frame.data_ref().map_or(0, Bytes::len);
        if read > BODY_BYTES_MAX {
            return false;
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_is_well_by_default_only_as_200() {
        let probe = HttpProbe::default();
        assert_eq!(judge(&probe, 200), CheckResult::Ok);
        for status in [199, 201, 204, 301, 404, 503] {
            assert_eq!(judge(&probe, status), CheckResult::Status(status));
        }
    }

    #[test]
    fn status_is_judged_by_ranges() {
        let probe = HttpProbe {
            statuses: vec![(200, 299), (404, 404)],
            retriable: vec![(500, 599)],
            ..HttpProbe::default()
        };
        for (status, expected) in [
            (200, CheckResult::Ok),
            (299, CheckResult::Ok),
            (404, CheckResult::Ok),
            (300, CheckResult::Status(300)),
            (503, CheckResult::Retriable(503)),
        ] {
            assert_eq!(judge(&probe, status), expected);
        }
    }
}
