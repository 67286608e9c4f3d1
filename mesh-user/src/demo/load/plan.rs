//! What is asked, worked out once: the bytes of each kind of request, and how often each is due.

use std::{
    net::{SocketAddr, ToSocketAddrs as _},
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use http::{HeaderName, HeaderValue, Method, Uri};

use super::LoadArgs;

/// Most `--mix` arguments: each doubles the kinds of requests.
const MIXES_MAX: usize = 6;

/// A load, ready to run.
#[derive(Debug)]
pub(super) struct Plan {
    /// Where to connect.
    pub(super) address: SocketAddr,
    /// Connections at a time.
    pub(super) connections: u32,
    /// How long to ask.
    pub(super) duration: Duration,
    /// How long to wait for the last answers.
    pub(super) timeout: Duration,
    /// Requests per second; none: closed loop.
    pub(super) rate: Option<u32>,
    /// What a connection is for.
    pub(super) use_: Use,
    /// Answers have no body whatever their head says (HEAD).
    pub(super) bodyless: bool,
    /// How often there is an interim report.
    pub(super) every: Option<Duration>,
    mix: Mix,
}

/// What a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Use {
    /// Many requests.
    KeepAlive,
    /// One request.
    Once,
    /// One request, then nothing until the end.
    Hold,
    /// One byte there and back, no HTTP.
    Tcp,
}

impl Plan {
    pub(super) fn new(args: &LoadArgs) -> Result<Self> {
        let use_ = match (args.tcp, args.new_connection, args.hold) {
            (true, ..) => Use::Tcp,
            (_, true, _) => Use::Once,
            (.., true) => Use::Hold,
            _ => Use::KeepAlive,
        };
        let (host, port, mix) = if args.tcp {
            let (host, port) = args
                .target
                .trim_start_matches("tcp://")
                .rsplit_once(':')
                .with_context(|| format!("{:?} is not HOST:PORT", args.target))?;
            let port = port
                .parse()
                .with_context(|| format!("{port:?} is no port"))?;
            (host.to_owned(), port, Mix::single(b"x".to_vec()))
        } else {
            http(args, use_)?
        };
        let address = match args.connect {
            Some(address) => address,
            None => (host.trim_matches(['[', ']']), port)
                .to_socket_addrs()
                .with_context(|| format!("can't resolve {host:?}"))?
                .next()
                .with_context(|| format!("{host:?} has no address"))?,
        };
        Ok(Self {
            address,
            connections: args.connections,
            duration: args.duration,
            timeout: args.timeout,
            rate: args.rate,
            use_,
            bodyless: args.method == "HEAD",
            every: args.every,
            mix,
        })
    }

    /// The bytes of the next request.
    pub(super) fn request(&self, number: u64) -> &[u8] {
        self.mix.request(number)
    }
}

/// Host, port and requests of an HTTP target.
fn http(args: &LoadArgs, use_: Use) -> Result<(String, u16, Mix)> {
    let uri: Uri = args
        .target
        .parse()
        .with_context(|| format!("{:?} is no URL", args.target))?;
    if uri.scheme_str() != Some("http") {
        bail!("{:?}: wanted http://HOST[:PORT][/PATH]", args.target);
    }
    let authority = uri
        .authority()
        .context("a URL with a scheme has an authority")?;
    let method: Method = args
        .method
        .parse()
        .with_context(|| format!("{:?} is no method", args.method))?;
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    let mut head = format!("{method} {path} HTTP/1.1\r\n");
    let fields = args
        .headers
        .iter()
        .map(|text| field(text))
        .collect::<Result<Vec<_>>>()?;
    if !fields.iter().any(|(name, _)| name == "host") {
        head.push_str(&format!("host: {authority}\r\n"));
    }
    if use_ == Use::Once {
        head.push_str("connection: close\r\n");
    }
    let mut head = head.into_bytes();
    for field in &fields {
        push(&mut head, field);
    }
    let mix = Mix::new(&head, &args.mix)?;
    Ok((
        authority.host().to_owned(),
        authority.port_u16().unwrap_or(80),
        mix,
    ))
}

type Field = (HeaderName, HeaderValue);

fn field(text: &str) -> Result<Field> {
    let (name, value) = text
        .split_once(':')
        .with_context(|| format!("{text:?} is not NAME: VALUE"))?;
    let name = name
        .trim()
        .parse()
        .with_context(|| format!("{name:?} is no field name"))?;
    let value = value
        .trim()
        .parse()
        .with_context(|| format!("{value:?} is no field value"))?;
    if name == "content-length" || name == "transfer-encoding" {
        bail!("{name}: requests have no body");
    }
    Ok((name, value))
}

fn push(head: &mut Vec<u8>, (name, value): &Field) {
    head.extend_from_slice(name.as_str().as_bytes());
    head.extend_from_slice(b": ");
    head.extend_from_slice(value.as_bytes());
    head.extend_from_slice(b"\r\n");
}

/// Every combination of the fields that only some requests have.
#[derive(Debug)]
struct Mix {
    percents: Vec<u64>,
    /// By bits: bit `i` is set in the index of requests that have field `i`.
    requests: Vec<Vec<u8>>,
}

impl Mix {
    fn single(request: Vec<u8>) -> Self {
        Self {
            percents: Vec::new(),
            requests: vec![request],
        }
    }

    fn new(head: &[u8], mix: &[String]) -> Result<Self> {
        if mix.len() > MIXES_MAX {
            bail!("at most {MIXES_MAX} --mix can be given");
        }
        let mut percents = Vec::new();
        let mut fields = Vec::new();
        for text in mix {
            let (percent, rest) = text
                .split_once(':')
                .with_context(|| format!("{text:?} is not PERCENT:NAME: VALUE"))?;
            let percent: u64 = percent
                .parse()
                .ok()
                .filter(|percent| *percent <= 100)
                .with_context(|| format!("{percent:?} is no percentage, 0 to 100"))?;
            percents.push(percent);
            fields.push(field(rest)?);
        }
        let requests = (0..1_usize << fields.len())
            .map(|bits| {
                let mut request = head.to_vec();
                for (at, field) in fields.iter().enumerate() {
                    if bits & (1 << at) != 0 {
                        push(&mut request, field);
                    }
                }
                request.extend_from_slice(b"\r\n");
                request
            })
            .collect();
        Ok(Self { percents, requests })
    }

    fn request(&self, number: u64) -> &[u8] {
        let mut bits = 0;
        for (at, percent) in self.percents.iter().enumerate() {
            // Spread evenly: due whenever the running sum passes a whole request.
            if (number + 1) * percent / 100 > number * percent / 100 {
                bits |= 1 << at;
            }
        }
        &self.requests[bits]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mixed_field_stands_in_its_share_of_requests_evenly() {
        let mix = Mix::new(b"GET / HTTP/1.1\r\n", &["10:x-user: beta".into()]).expect("valid");
        let beta = |number| mix.request(number).windows(4).any(|four| four == b"beta");
        for hundred in 0..5 {
            let count = (hundred * 100..(hundred + 1) * 100)
                .filter(|n| beta(*n))
                .count();
            assert_eq!(count, 10, "{hundred}");
            let ten = (hundred * 10..(hundred + 1) * 10)
                .filter(|n| beta(*n))
                .count();
            assert_eq!(ten, 1, "{hundred}");
        }
    }

    #[test]
    fn shares_of_nothing_and_all_are_exact() {
        let mix = ["0:a: no".into(), "100:b: yes".into()];
        let mix = Mix::new(b"GET / HTTP/1.1\r\n", &mix).expect("valid");
        for number in 0..250 {
            assert_eq!(mix.request(number), b"GET / HTTP/1.1\r\nb: yes\r\n\r\n");
        }
    }

    #[test]
    fn fields_that_would_break_the_request_are_refused() {
        for text in [
            "x",
            "a b: c",
            "a: b\r\nc: d",
            "Content-Length: 5",
            "transfer-encoding: chunked",
        ] {
            assert!(field(text).is_err(), "{text:?}");
        }
    }
}
