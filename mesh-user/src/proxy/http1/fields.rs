//! The header fields that a proxy must understand: which they are, and what `Connection` says.

use httparse::Header;

use super::framing::{is_token, trim};
use crate::policy::HeaderView;

/// A field that needs more than copying.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Field {
    Connection,
    ContentLength,
    Expect,
    ForwardedProto,
    Host,
    KeepAlive,
    MaxForwards,
    ProxyConnection,
    Te,
    TransferEncoding,
    Upgrade,
    RequestId,
    UserAgent,
    Other,
}

impl Field {
    /// By length first: most names are told apart without comparing a byte.
    pub(super) fn of(name: &str) -> Self {
        let is = |known: &str| name.eq_ignore_ascii_case(known);
        match name.len() {
            2 if is("te") => Self::Te,
            4 if is("host") => Self::Host,
            6 if is("expect") => Self::Expect,
            7 if is("upgrade") => Self::Upgrade,
            10 if is("connection") => Self::Connection,
            10 if is("keep-alive") => Self::KeepAlive,
            10 if is("user-agent") => Self::UserAgent,
            12 if is("max-forwards") => Self::MaxForwards,
            12 if is("x-request-id") => Self::RequestId,
            14 if is("content-length") => Self::ContentLength,
            16 if is("proxy-connection") => Self::ProxyConnection,
            17 if is("transfer-encoding") => Self::TransferEncoding,
            17 if is("x-forwarded-proto") => Self::ForwardedProto,
            _ => Self::Other,
        }
    }
}

/// Fields that a `Connection` field can't make hop-by-hop: those that frame, route or authorise.
/// A client that lists them is wrong (RFC 9110, section 7.6.1), and believing it would let it
/// remove what the next hop relies on.
const KEPT: [&[u8]; 14] = [
    b"authorization",
    b"cache-control",
    b"content-encoding",
    b"content-length",
    b"content-type",
    b"cookie",
    b"date",
    b"expect",
    b"forwarded",
    b"host",
    b"set-cookie",
    b"trailer",
    b"x-forwarded-for",
    b"x-request-id",
];

/// What the `Connection` fields of a message say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Connection {
    pub(super) close: bool,
    pub(super) keep_alive: bool,
    pub(super) upgrade: bool,
    /// Other names are listed: those fields are not forwarded.
    pub(super) lists: bool,
}

impl Connection {
    /// Takes in one field. Empty elements are tolerated (RFC 9110, section 5.6.1).
    pub(super) fn field(&mut self, value: &[u8]) {
        for option in options(value) {
            let is = |known: &[u8]| option.eq_ignore_ascii_case(known);
            if is(b"close") {
                self.close = true;
            } else if is(b"keep-alive") {
                self.keep_alive = true;
            } else if is(b"upgrade") {
                self.upgrade = true;
            } else {
                self.lists = true;
            }
        }
    }
}

fn options(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value
        .split(|byte| *byte == b',')
        .map(trim)
        .filter(|option| !option.is_empty())
}

/// Whether a `Connection` field lists `name`, and may.
pub(super) fn is_listed(fields: &[Header<'_>], name: &str) -> bool {
    let listed = fields
        .iter()
        .filter(|field| Field::of(field.name) == Field::Connection)
        .flat_map(|field| options(field.value))
        .any(|option| option.eq_ignore_ascii_case(name.as_bytes()));
    listed
        && !KEPT
            .iter()
            .any(|kept| name.as_bytes().eq_ignore_ascii_case(kept))
}

/// The names of the protocols that an `Upgrade` field offers (RFC 9110, section 7.8).
pub(in crate::proxy) fn offers(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    options(value).map(|protocol| {
        let mut parts = protocol.split(|byte| *byte == b'/');
        parts.next().unwrap_or(protocol)
    })
}

/// Whether an `Upgrade` field offers something that passes through: protocol names, and not `h2c`,
/// which would change the protocol of the connection to us.
pub(in crate::proxy) fn upgrade_passes(value: &[u8]) -> bool {
    let mut any = false;
    for name in offers(value) {
        if !is_token(name) || name.eq_ignore_ascii_case(b"h2c") {
            return false;
        }
        any = true;
    }
    any
}

/// Whether it is `host [":" port]` (RFC 9110, section 4.2.1): not empty, no user information.
pub(in crate::proxy) fn is_authority(value: &[u8]) -> bool {
    let (host_ok, rest) = if let Some(literal) = value.strip_prefix(b"[") {
        let Some(end) = literal.iter().position(|byte| *byte == b']') else {
            return false;
        };
        let ok = literal[..end]
            .iter()
            .all(|b| b.is_ascii_hexdigit() || matches!(b, b':' | b'.'));
        (ok && end > 1, &literal[end + 1..])
    } else {
        let end = value
            .iter()
            .position(|byte| *byte == b':')
            .unwrap_or(value.len());
        let ok = value[..end].iter().all(|byte| {
            byte.is_ascii_alphanumeric()
                || matches!(
                    byte,
                    b'-' | b'.'
                        | b'_'
                        | b'~'
                        | b'%'
                        | b'!'
                        | b'$'
                        | b'&'
                        | b'\''
                        | b'('
                        | b')'
                        | b'*'
                        | b'+'
                        | b','
                        | b';'
                        | b'='
                )
        });
        (ok && end > 0, &value[end..])
    };
    host_ok
        && match rest.strip_prefix(b":") {
            Some(port) => port.len() <= 5 && port.iter().all(u8::is_ascii_digit),
            None => rest.is_empty(),
        }
}

/// The fields of a head, for the rules.
#[derive(Clone, Copy, Debug)]
pub(super) struct Fields<'a, 'b>(pub(super) &'a [Header<'b>]);

impl HeaderView for Fields<'_, '_> {
    fn values(&self, name: &str) -> impl Iterator<Item = &[u8]> {
        self.0
            .iter()
            .filter(move |field| field.name.eq_ignore_ascii_case(name))
            .map(|field| trim(field.value))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connection_options_over_several_fields_add_up() {
        let mut connection = Connection::default();
        connection.field(b"Keep-Alive, ,");
        connection.field(b"UPGRADE,x-foo");
        assert_eq!(
            connection,
            Connection {
                close: false,
                keep_alive: true,
                upgrade: true,
                lists: true
            }
        );
    }

    #[test]
    fn listed_field_is_removed_unless_it_frames_or_routes() {
        let header = Header {
            name: "Connection",
            value: b"close, X-Foo, Host, Authorization",
        };
        assert!(is_listed(&[header], "x-foo"));
        assert!(!is_listed(&[header], "x-bar"));
        assert!(!is_listed(&[header], "host"));
        assert!(!is_listed(&[header], "authorization"));
    }

    #[test]
    fn authority_takes_hosts_and_ports_only() {
        for good in [
            "a",
            "a.b:80",
            "a:",
            "[::1]",
            "[::1]:80",
            "10.0.0.1:8080",
            "a_b",
            "xn--a",
        ] {
            assert!(is_authority(good.as_bytes()), "{good}");
        }
        for bad in [
            "", ":80", "a:b", "a:123456", "u@a", "a/b", "a b", "[::1", "[]", "[::1]x", "a,b c",
            "a\tb", "a?b", "[g]",
        ] {
            assert!(!is_authority(bad.as_bytes()), "{bad}");
        }
    }

    #[test]
    fn upgrade_to_h2c_does_not_pass() {
        assert!(upgrade_passes(b"websocket"));
        assert!(upgrade_passes(b"foo/2, websocket"));
        assert!(!upgrade_passes(b"h2c"));
        assert!(!upgrade_passes(b"websocket, H2C"));
        assert!(!upgrade_passes(b""));
    }
}
