//! What a rule does with a stream besides sending it somewhere.

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, Uri, header, uri::PathAndQuery};

use super::{head::Head, refuse, stream::Stream};
use crate::{
    clock,
    policy::{
        Reject,
        action::{Action, Answer, Kind, Then, as_grpc},
        rate_limit::Verdict,
    },
};

/// Longest text of an answer that becomes a `grpc-message`, in bytes.
const MESSAGE_BYTES_MAX: usize = 1024;

/// What follows the actions.
pub(super) enum Acted {
    /// It is forwarded.
    Forward,
    /// It was answered.
    Answered,
    /// It is refused.
    Refuse(Reject),
}

impl Stream {
    /// Does what is done before the request is forwarded.
    pub(super) async fn act(
        &mut self,
        action: &mut Action,
        head: &mut Head,
        verdict: &Verdict,
    ) -> Acted {
        if let Some(delay) = action.delay {
            self.log.actions.insert(Kind::Delay);
            let end = clock::now().after(delay);
            if !self.wait(end.min(self.deadline)).await {
                return Acted::Refuse(Reject::DownstreamClosed);
            }
            if end > self.deadline {
                return Acted::Refuse(Reject::UpstreamTimeout);
            }
            // Time-outs are about what is forwarded: they begin now.
            self.begun = clock::now();
        }
        match std::mem::take(&mut action.then) {
            Then::Refuse(reject) => return Acted::Refuse(reject),
            Then::Answer(answer) => {
                self.send_answer(*answer, verdict);
                return Acted::Answered;
            }
            Then::Forward => {}
        }
        self.edits = action.response.take();
        match head.change(action) {
            Ok(()) => Acted::Forward,
            Err(reject) => Acted::Refuse(reject),
        }
    }

    /// Sends an answer of the rule's own.
    fn send_answer(&mut self, answer: Answer, verdict: &Verdict) {
        let answer = if self.grpc { for_grpc(answer) } else { answer };
        self.log.actions.insert(answer.kind);
        self.log.status = answer.status;
        self.log.grpc_status = answer.grpc_status;
        let length = answer.content_length();
        let mut response = Response::new(());
        *response.status_mut() =
            StatusCode::from_u16(answer.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        *response.headers_mut() = answer.headers;
        if let Some(length) = length {
            let length = HeaderValue::from(length);
            response
                .headers_mut()
                .insert(header::CONTENT_LENGTH, length);
        }
        refuse::put_limits(response.headers_mut(), verdict);
        let body = if self.is_head() {
            Bytes::new()
        } else {
            answer.body
        };
        self.log.bytes_out = body.len() as u64;
        refuse::answer(&mut self.respond, response, body);
        self.log.ended = Some(clock::now());
    }
}

impl Head {
    /// Edits fields, then the authority and the path. The query stays.
    ///
    /// # Errors
    /// [`Reject::FilterUnresolved`]: what the rule makes of it can't be sent.
    fn change(&mut self, action: &Action) -> Result<(), Reject> {
        if let Some(edits) = &action.request {
            edits.apply(&mut self.headers);
        }
        self.rewrite(action.authority.as_deref(), action.path.as_deref())
            .ok_or(Reject::FilterUnresolved)
    }

    fn rewrite(&mut self, authority: Option<&str>, path: Option<&str>) -> Option<()> {
        if authority.is_none() && path.is_none() {
            return Some(());
        }
        let mut parts = std::mem::take(&mut self.uri).into_parts();
        if let Some(authority) = authority {
            if parts.authority.is_some() {
                parts.authority = Some(authority.parse().ok()?);
            } else {
                // It came with Host instead, and goes on with it.
                let host = HeaderValue::from_str(authority).ok()?;
                self.headers.insert(header::HOST, host);
            }
        }
        if let Some(path) = path {
            let query = parts.path_and_query.as_ref().and_then(PathAndQuery::query);
            let target = match query {
                Some(query) => format!("{path}?{query}"),
                None => path.to_owned(),
            };
            parts.path_and_query = Some(target.parse().ok()?);
        }
        self.uri = Uri::from_parts(parts).ok()?;
        Some(())
    }
}

/// An answer for a client that knows gRPC only: a head that is also the trailers, with what the
/// status means there (as Envoy's local replies).
fn for_grpc(answer: Answer) -> Answer {
    if answer.grpc_status.is_some() {
        return answer;
    }
    let Answer {
        status,
        mut headers,
        body,
        kind,
        ..
    } = answer;
    let code = as_grpc(status);
    headers.remove(header::CONTENT_LENGTH);
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/grpc"),
    );
    headers.insert("grpc-status", HeaderValue::from(u16::from(code)));
    if let Some(message) = message(&body) {
        headers.insert("grpc-message", message);
    }
    Answer {
        status: 200,
        grpc_status: Some(code),
        headers,
        body: Bytes::new(),
        kind,
    }
}

/// Percent-encoded as gRPC's `Status-Message` is; none: there is nothing to say.
fn message(body: &[u8]) -> Option<HeaderValue> {
    let text = body.trim_ascii();
    let mut out = String::new();
    for byte in &text[..text.len().min(MESSAGE_BYTES_MAX)] {
        match byte {
            0x20..=0x7e if *byte != b'%' => out.push(char::from(*byte)),
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    (!out.is_empty()).then(|| HeaderValue::from_str(&out).ok())?
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;
    use crate::config::Limits;

    fn head(request: Request<()>) -> Head {
        super::super::head::check(request, &Limits::default()).unwrap()
    }

    #[test]
    fn rewrite_changes_authority_and_path_where_they_stand_and_keeps_the_query() {
        let full = Request::builder().uri("http://web:80/a/b?q=1").body(());
        let host = Request::builder()
            .uri("/a/b?q=1")
            .header("host", "web:80")
            .body(());
        for (authority, path, full_wanted, host_wanted) in [
            (None, None, "http://web:80/a/b?q=1", ("web:80", "/a/b?q=1")),
            (Some("x.y"), None, "http://x.y/a/b?q=1", ("x.y", "/a/b?q=1")),
            (
                None,
                Some("/z"),
                "http://web:80/z?q=1",
                ("web:80", "/z?q=1"),
            ),
            (Some("x.y"), Some("/"), "http://x.y/?q=1", ("x.y", "/?q=1")),
        ] {
            let mut one = head(full.as_ref().unwrap().clone());
            one.rewrite(authority, path).unwrap();
            assert_eq!(one.uri, full_wanted);
            assert!(!one.headers.contains_key("host"));
            let mut one = head(host.as_ref().unwrap().clone());
            one.rewrite(authority, path).unwrap();
            let seen = (one.headers["host"].to_str().unwrap(), one.uri.to_string());
            assert_eq!(seen, (host_wanted.0, host_wanted.1.to_owned()));
        }
    }

    #[test]
    fn rewrite_to_what_cannot_be_sent_is_none() {
        for (authority, path) in [(Some("a b"), None), (None, Some("/ä b\n"))] {
            let request = Request::builder().uri("http://web/").body(()).unwrap();
            assert_eq!(head(request).rewrite(authority, path), None);
        }
    }

    #[test]
    fn message_is_printable_and_bounded() {
        assert_eq!(
            message(b" a%b\xc3\xa4\n"),
            Some(HeaderValue::from_static("a%25b%C3%A4"))
        );
        assert_eq!(message(b"\n"), None);
        assert_eq!(message(&[b'a'; 5000]).unwrap().len(), MESSAGE_BYTES_MAX);
    }
}
