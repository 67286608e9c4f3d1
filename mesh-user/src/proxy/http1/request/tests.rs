use super::*;
use crate::config::Limits;

/// Parses and rewrites; the forwarded head.
fn forwarded(head: &str) -> Result<(String, Request, Spans), Reject> {
    parse(head.as_bytes(), &Limits::default(), |parsed| {
        let (mut out, mut spans) = (Vec::new(), Spans::default());
        let request = parsed.write(&mut out, &mut spans, "10.0.0.1:80", &mut Rng::new(1), None);
        Ok((String::from_utf8(out).unwrap(), request, spans))
    })
}

/// The forwarded head without the request id that it got.
fn lines(head: &str) -> Vec<String> {
    let (out, _, _) = forwarded(head).unwrap();
    assert!(out.ends_with("\r\n\r\n"), "{out:?}");
    let lines = out.trim_end().split("\r\n").map(str::to_owned);
    lines
        .filter(|line| !line.starts_with("x-request-id: "))
        .collect()
}

#[test]
fn head_without_hop_by_hop_fields_passes_unchanged() {
    let head = "GET /a?b=c HTTP/1.1\r\nHost: x:80\r\nUser-Agent:  curl \r\nX-Request-Id: 7\r\nX-A:b\r\n\r\n";
    let (out, request, spans) = forwarded(head).unwrap();
    assert_eq!(out, head);
    assert!(request.keep_alive && request.body.is_done() && !request.upgrade && !request.is_head);
    assert_eq!(&out[spans.method], "GET");
    assert_eq!(&out[spans.target], "/a?b=c");
    assert_eq!(&out[spans.authority], "x:80");
    assert_eq!(&out[spans.user_agent], "curl");
    assert_eq!(&out[spans.request_id], "7");
}

#[test]
fn request_id_is_made_when_there_is_none() {
    let (out, _, spans) = forwarded("GET / HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    let id = &out[spans.request_id];
    assert_eq!(id.len(), 36);
    assert_eq!(id.as_bytes()[14], b'4', "version of RFC 9562: {id}");
    assert!(
        matches!(id.as_bytes()[19], b'8' | b'9' | b'a' | b'b'),
        "variant: {id}"
    );
    assert!(out.contains(&format!("\r\nx-request-id: {id}\r\n")));
}

#[test]
fn hop_by_hop_fields_are_removed_and_listed_ones_too() {
    assert_eq!(
        lines(
            "POST / HTTP/1.1\r\nA: 1\r\nConnection: close, X-Foo\r\nX-Foo: 2\r\nHost: x\r\n\
             Keep-Alive: 3\r\nProxy-Connection: 4\r\nTE: trailers\r\nUpgrade: h2c\r\nB: 5\r\n\
             connection: x-BAR , \r\nX-Bar: 6\r\nContent-Length: 0\r\n\r\n"
        ),
        [
            "POST / HTTP/1.1",
            "A: 1",
            "Host: x",
            "B: 5",
            "Content-Length: 0"
        ]
    );
}

#[test]
fn connection_can_not_remove_what_frames_or_routes() {
    assert_eq!(
        lines(
            "POST / HTTP/1.1\r\nConnection: Host, Content-Length, Authorization\r\nHost: x\r\n\
             Content-Length: 3\r\nAuthorization: y\r\n\r\n"
        ),
        [
            "POST / HTTP/1.1",
            "Host: x",
            "Content-Length: 3",
            "Authorization: y"
        ]
    );
}

#[test]
fn absolute_form_becomes_origin_form_with_its_authority() {
    for (target, want) in [
        ("http://b:8080/p?q", "GET /p?q HTTP/1.1"),
        ("HTTP://b:8080", "GET / HTTP/1.1"),
        ("http://b:8080?q", "GET /?q HTTP/1.1"),
    ] {
        let head = format!("GET {target} HTTP/1.1\r\nX: 1\r\nHost: a\r\nY: 2\r\n\r\n");
        assert_eq!(
            lines(&head),
            [want, "X: 1", "host: b:8080", "Y: 2"],
            "{target}"
        );
    }
    let options = "OPTIONS http://b HTTP/1.1\r\nHost: a\r\n\r\n";
    assert_eq!(lines(options), ["OPTIONS * HTTP/1.1", "host: b"]);
}

#[test]
fn http10_request_is_sent_as_http11_with_a_host() {
    let (out, request, spans) =
        forwarded("GET / HTTP/1.0\r\nExpect: 100-continue\r\n\r\n").unwrap();
    assert!(
        out.starts_with("GET / HTTP/1.1\r\nhost: 10.0.0.1:80\r\nx-request-id: "),
        "{out}"
    );
    assert_eq!(&out[spans.authority], "10.0.0.1:80");
    assert!(request.http10 && !request.keep_alive);
    let kept = forwarded("GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n")
        .unwrap()
        .1;
    assert!(kept.keep_alive);
}

#[test]
fn upgrade_passes_with_its_connection_option_only() {
    let head =
        |more: &str| format!("GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\n{more}\r\n");
    let (out, request, _) = forwarded(&head("Connection: keep-alive, Upgrade\r\n")).unwrap();
    assert!(request.upgrade);
    assert!(
        out.ends_with("connection: upgrade\r\nupgrade: websocket\r\n\r\n"),
        "{out}"
    );
    let (out, request, _) = forwarded(&head("")).unwrap();
    assert!(!request.upgrade && !out.contains("websocket"));
}

#[test]
fn max_forwards_counts_down_for_options_and_trace_only() {
    let head =
        |method, hops| format!("{method} / HTTP/1.1\r\nHost: x\r\nMax-Forwards: {hops}\r\n\r\n");
    assert_eq!(lines(&head("OPTIONS", "5"))[2], "max-forwards: 4");
    assert!(forwarded(&head("TRACE", "0")).unwrap().1.ends_here);
    assert_eq!(lines(&head("GET", "0"))[2], "Max-Forwards: 0");
    assert_eq!(
        forwarded(&head("OPTIONS", "-1")).unwrap_err(),
        Reject::BadRequest
    );
}

#[test]
fn identical_lengths_are_folded() {
    let head = "POST / HTTP/1.1\r\nContent-Length: 3\r\nHost: x\r\ncontent-length: 3\r\n\r\n";
    assert_eq!(
        lines(head),
        ["POST / HTTP/1.1", "Content-Length: 3", "Host: x"]
    );
}

#[test]
fn fields_and_target_at_their_limits_and_above() {
    let limits = Limits::default();
    let fields = |count: usize| {
        format!(
            "GET / HTTP/1.1\r\nHost: x\r\n{}\r\n",
            "a: b\r\n".repeat(count - 1)
        )
    };
    assert!(forwarded(&fields(limits.head_fields_max)).is_ok());
    assert_eq!(
        forwarded(&fields(limits.head_fields_max + 1)).unwrap_err(),
        Reject::HeadTooLarge
    );
    let target = |len: usize| format!("GET /{} HTTP/1.1\r\nHost: x\r\n\r\n", "a".repeat(len - 1));
    assert!(forwarded(&target(limits.target_bytes_max)).is_ok());
    assert_eq!(
        forwarded(&target(limits.target_bytes_max + 1)).unwrap_err(),
        Reject::TargetTooLong
    );
}

#[test]
fn more_fields_than_fit_inline_are_parsed_when_the_limit_allows() {
    let limits = Limits {
        head_fields_max: 300,
        ..Limits::default()
    };
    let head = |count: usize| {
        format!(
            "GET / HTTP/1.1\r\nHost: x\r\n{}\r\n",
            "a: b\r\n".repeat(count - 1)
        )
    };
    assert!(parse(head(300).as_bytes(), &limits, |_| Ok(())).is_ok());
    assert_eq!(
        parse(head(301).as_bytes(), &limits, |_| Ok(())),
        Err(Reject::HeadTooLarge)
    );
}
