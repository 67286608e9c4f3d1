//! How a fault answers.

use http::{HeaderName, HeaderValue, header};

use super::{Answer, Kind};
use crate::model::action::AbortStatus;

/// What an HTTP status means in gRPC (the list of `doc/http-grpc-status-mapping.md`).
pub const fn as_grpc(status: u16) -> u8 {
    match status {
        200 => 0,
        400 => 13,
        401 => 16,
        403 => 7,
        404 => 12,
        429 | 502..=504 => 14,
        _ => 2,
    }
}

/// What a gRPC status means in HTTP (the list of `google.rpc.Code`, Envoy's mapping).
pub const fn as_http(status: u8) -> u16 {
    match status {
        0 => 200,
        1 => 499,
        3 | 9 | 11 => 400,
        4 => 504,
        5 => 404,
        6 | 10 => 409,
        7 => 403,
        8 => 429,
        12 => 501,
        14 => 503,
        16 => 401,
        _ => 500,
    }
}

pub(super) fn answer(status: AbortStatus, grpc: bool) -> Answer {
    if !grpc {
        let status = match status {
            AbortStatus::Http(status) => status,
            AbortStatus::Grpc(status) => as_http(status),
        };
        let mut answer = Answer::new(status, Kind::Abort);
        answer.put(header::CONTENT_TYPE, HeaderValue::from_static("text/plain"));
        answer.body = bytes::Bytes::from(format!("{TEXT}\n"));
        return answer;
    }
    let status = match status {
        AbortStatus::Http(status) => as_grpc(status),
        AbortStatus::Grpc(status) => status,
    };
    // A head that is also the trailers.
    let mut answer = Answer::new(200, Kind::Abort);
    answer.grpc_status = Some(status);
    answer.put(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/grpc"),
    );
    answer.put(
        HeaderName::from_static("grpc-status"),
        HeaderValue::from(u16::from(status)),
    );
    answer.put(
        HeaderName::from_static("grpc-message"),
        HeaderValue::from_static(TEXT),
    );
    answer
}

/// Envoy's words.
const TEXT: &str = "fault filter abort";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn abort_speaks_the_protocol_of_the_request() {
        let cases = [
            (AbortStatus::Http(503), false, 503, None),
            (AbortStatus::Grpc(14), false, 503, None),
            (AbortStatus::Grpc(5), false, 404, None),
            (AbortStatus::Http(503), true, 200, Some(14)),
            (AbortStatus::Http(404), true, 200, Some(12)),
            (AbortStatus::Http(418), true, 200, Some(2)),
            (AbortStatus::Grpc(7), true, 200, Some(7)),
        ];
        for (status, grpc, http, code) in cases {
            let answer = answer(status, grpc);
            assert_eq!(
                (answer.status, answer.grpc_status),
                (http, code),
                "{status:?} {grpc}"
            );
            assert_eq!(answer.headers.contains_key("grpc-status"), grpc);
            assert_eq!(answer.body.is_empty(), grpc);
        }
    }
}
