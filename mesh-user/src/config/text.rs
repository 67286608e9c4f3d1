//! Kinds of text in the file. Each has one pattern, which both the check and the JSON Schema use,
//! and where a pattern can't say all, a further check.

use std::{
    collections::HashMap,
    fmt,
    mem::{Discriminant, discriminant},
    net::{IpAddr, SocketAddr},
    sync::LazyLock,
    time::Duration,
};

use ipnet::IpNet;
use regex::{Regex, RegexBuilder};

use super::{report::Code, units};

/// Longest regular expression, in bytes. 4 KiB holds any path pattern that a person can read.
const REGEX_BYTES_MAX: usize = 4096;

/// Largest compiled expression, in bytes: 10,000 of them still fit into a node's memory, and
/// `[0-9]{1,1000}` is far below. The crate's own limit is ten times that.
const REGEX_COMPILED_MAX: usize = 1 << 20;

/// A kind of text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Text {
    /// Name of a service, port, version, workload, rule or namespace.
    Name,
    /// `name` or `namespace/name`.
    ServiceRef,
    /// Hostname, without a port.
    Hostname,
    /// Server name of TLS, or `*.` and the end of one.
    ServerName,
    /// Identifier of a protocol inside TLS.
    ProtocolId,
    /// Key of a tag.
    TagKey,
    /// Value of a tag or of a locality.
    TagValue,
    /// Identity, such as a SPIFFE id.
    Identity,
    /// Name of a header field.
    HeaderName,
    /// Request method.
    Method,
    /// Name of a query parameter.
    QueryName,
    /// Value of a header field or query parameter, or its beginning.
    Value,
    /// `Host`, or its beginning.
    Authority,
    /// Path, or its beginning.
    Path,
    /// Body of an answer.
    Body,
    /// Origin, with a wildcard or not.
    Origin,
    /// Address and port of an endpoint.
    Endpoint,
    /// Regular expression.
    Regex,
    /// Duration between the bounds.
    Duration(Duration, Duration),
    /// Requests in a time.
    Rate,
    /// Attribute that keys a rate limit.
    RateKey,
    /// What is sent or expected on a connection.
    Payload,
    /// Address and port, or absolute path of a unix socket.
    StoreAddress,
    /// IP address.
    Address,
    /// Address range.
    Cidr,
    /// Address and port to listen on, or `off`.
    Listen,
    /// Absolute path.
    AbsolutePath,
    /// Path below the cgroup2 mount.
    Cgroup,
    /// As another language says.
    Given(&'static Given),
}

/// A kind of text of another language than the file's own.
pub(crate) struct Given {
    /// What it is, for people.
    pub(crate) name: &'static str,
    /// Fewest and most characters.
    pub(crate) length: (usize, usize),
    /// For the schema, where it has the field.
    pub(crate) pattern: Option<&'static str>,
    /// Whether a text of that length is one.
    pub(crate) holds: fn(&str) -> bool,
}

impl PartialEq for Given {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

impl Eq for Given {}

impl fmt::Debug for Given {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

/// What is wrong with a text.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Fault {
    /// Its name.
    pub(crate) code: Code,
    /// What is wrong.
    pub(crate) message: String,
    /// What would be right, when that is more than the kind's description.
    pub(crate) expected: Option<String>,
}

const NAME: &str = "[A-Za-z0-9](?:[-A-Za-z0-9_.]*[A-Za-z0-9])?";
const TAG_KEY: &str = "[A-Za-z0-9_](?:[-A-Za-z0-9_./]*[A-Za-z0-9_])?";
/// A label of a host name; `_` is not allowed, and common.
const LABEL: &str = "[A-Za-z0-9_](?:[-A-Za-z0-9_]{0,61}[A-Za-z0-9_])?";
/// RFC 9110 §5.6.2 `token`.
const TOKEN: &str = "[-!#$%&'*+.^_`|~0-9A-Za-z]+";

/// Compiled patterns.
static PATTERNS: LazyLock<HashMap<Discriminant<Text>, Regex>> = LazyLock::new(|| {
    let compiled = |kind: &Text| Some((discriminant(kind), Regex::new(&kind.pattern()?).ok()?));
    Text::ALL.iter().filter_map(compiled).collect()
});

impl Text {
    /// One of each kind, for the patterns and the tests.
    pub(crate) const ALL: [Self; 28] = [
        Self::Name,
        Self::ServiceRef,
        Self::Hostname,
        Self::ServerName,
        Self::ProtocolId,
        Self::TagKey,
        Self::TagValue,
        Self::Identity,
        Self::HeaderName,
        Self::Method,
        Self::QueryName,
        Self::Value,
        Self::Authority,
        Self::Path,
        Self::Body,
        Self::Origin,
        Self::Endpoint,
        Self::Regex,
        Self::Duration(Duration::ZERO, Duration::MAX),
        Self::Rate,
        Self::RateKey,
        Self::Payload,
        Self::StoreAddress,
        Self::Address,
        Self::Cidr,
        Self::Listen,
        Self::AbsolutePath,
        Self::Cgroup,
    ];

    /// Its pattern, in what ECMA-262 and the `regex` crate have in common. None: only the further
    /// check says.
    pub(crate) fn pattern(&self) -> Option<String> {
        Some(match self {
            Self::Name => format!("^{NAME}$"),
            Self::ServiceRef => format!("^(?:{NAME}/)?{NAME}$"),
            Self::Hostname => "^[A-Za-z0-9_](?:[-A-Za-z0-9_.]*[A-Za-z0-9_])?$".to_owned(),
            Self::ServerName => {
                format!("^(?:[*][.])?{LABEL}(?:[.]{LABEL})*$")
            }
            Self::TagKey => format!("^{TAG_KEY}$"),
            Self::TagValue => "^[ -~]*$".to_owned(),
            Self::Identity | Self::Authority | Self::ProtocolId => "^[!-~]+$".to_owned(),
            Self::HeaderName | Self::Method => format!("^{TOKEN}$"),
            Self::QueryName => r"^[^\x00-\x1f\x7f]+$".to_owned(),
            Self::Value => r"^[^\x00-\x08\x0a-\x1f\x7f]*$".to_owned(),
            Self::Path => r"^/[^?#\x00-\x20\x7f]*$".to_owned(),
            Self::Regex | Self::Address | Self::Payload | Self::Body => return None,
            Self::Given(given) => given.pattern?.to_owned(),
            Self::Duration(..) => "^(?:[0-9]{1,9}h)?(?:[0-9]{1,9}m)?(?:[0-9]{1,9}s)?\
                                   (?:[0-9]{1,9}ms)?(?:[0-9]{1,9}us)?$"
                .to_owned(),
            Self::Rate => "^[1-9][0-9]{0,9}/[smh]$".to_owned(),
            Self::RateKey => format!(
                "^(?:source[.](?:workload|namespace|identity|address)|source[.]tag[.]{TAG_KEY}|\
                 destination|version|rule|(?:header|cookie)[.]{TOKEN}|query[.][^\\x00-\\x1f\\x7f]+|\
                 authority|path|method)$"
            ),
            Self::Cidr => "^[0-9A-Fa-f:.]+(?:/[0-9]{1,3})?$".to_owned(),
            Self::Listen => {
                "^(?:off|[0-9.]+:[0-9]{1,5}|\\[[0-9A-Fa-f:.]+\\]:[0-9]{1,5})$".to_owned()
            }
            Self::Origin => "^(?:[*]|https?://[-*A-Za-z0-9_.:\\[\\]]+)$".to_owned(),
            Self::Endpoint => "^(?:[0-9.]+:[0-9]{1,5}|\\[[0-9A-Fa-f:.]+\\]:[0-9]{1,5})$".to_owned(),
            Self::StoreAddress => {
                r"^(?:[0-9.]+:[0-9]{1,5}|\[[0-9A-Fa-f:.]+\]:[0-9]{1,5}|/[^\x00]*)$".to_owned()
            }
            Self::AbsolutePath => r"^/[^\x00]*$".to_owned(),
            Self::Cgroup => r"^[^/\x00]+(?:/[^/\x00]+)*$".to_owned(),
        })
    }

    /// Fewest and most characters.
    pub(crate) const fn length(&self) -> (usize, usize) {
        match self {
            Self::Name | Self::Hostname | Self::ServerName | Self::Authority => (1, 253),
            Self::ServiceRef => (1, 507),
            // RFC 7301 §3.1.
            Self::ProtocolId => (1, 255),
            // Kubernetes: prefix 253, slash, name 63.
            Self::TagKey => (1, 317),
            Self::TagValue => (0, 253),
            // SPIFFE-ID §2.3: at most 2,048 bytes.
            Self::Identity => (1, 2048),
            Self::HeaderName | Self::QueryName => (1, 256),
            Self::Method => (1, 32),
            Self::Value => (0, 4096),
            Self::Path => (1, 4096),
            Self::Body => (0, 65_536),
            Self::Origin => (1, 512),
            Self::Regex => (1, REGEX_BYTES_MAX),
            Self::Duration(..) => (2, 64),
            Self::Rate => (3, 12),
            Self::RateKey => (1, 340),
            Self::Payload => (1, 1024),
            Self::Address | Self::Cidr | Self::Listen | Self::Endpoint => (1, 64),
            // `sun_path` of sockaddr_un counts the final NUL.
            Self::StoreAddress => (1, 107),
            // PATH_MAX counts the final NUL.
            Self::AbsolutePath | Self::Cgroup => (1, 4095),
            Self::Given(given) => given.length,
        }
    }

    /// What would be right, for people.
    pub(crate) fn describe(&self) -> String {
        match self {
            Self::Name => {
                "a name: letters, digits, `-`, `_`, `.`, beginning and ending with a letter or digit"
            }
            Self::ServiceRef => "`name` or `namespace/name` of a service",
            Self::Hostname => "a hostname without scheme and port, such as reviews.shop.svc",
            Self::ServerName => "a server name without port, such as shop.example, or *.shop.example",
            Self::ProtocolId => "a protocol's identifier (RFC 7301), such as h2",
            Self::TagKey => "a tag key: letters, digits, `-`, `_`, `.`, `/`",
            Self::TagValue => "printable ASCII text of at most 253 characters",
            Self::Identity => "an identity without spaces, such as spiffe://cluster.local/ns/shop/sa/web",
            Self::HeaderName => "a header field name (RFC 9110 token), such as x-user",
            Self::Method => "a method (RFC 9110 token), such as GET",
            Self::QueryName => "the name of a query parameter",
            Self::Value => "text without control characters",
            Self::Authority => "a host without port, such as reviews.shop",
            Self::Path => "a path that begins with `/`, without query and fragment",
            Self::Body => "text of at most 65536 characters",
            Self::Origin => "`*`, or scheme and host, such as https://shop.example or https://*.shop.example",
            Self::Endpoint => "an address with port, such as 10.1.0.1:8080 or [fd00::1]:8080",
            Self::Regex => "a regular expression (syntax of the Rust crate `regex`: no look-around)",
            Self::Duration(min, max) => {
                return format!(
                    "a duration from {} to {}, such as 15s, 250ms or 1m30s",
                    units::show_duration(*min),
                    units::show_duration(*max)
                );
            }
            Self::Rate => "requests in a time: 100/s, 60/m or 1000/h, at least 1",
            Self::RateKey => {
                "source.workload, source.namespace, source.identity, source.address, source.tag.KEY, \
                 destination, version, rule, header.NAME, cookie.NAME, query.NAME, authority, path \
                 or method"
            }
            Self::Payload => "text of at most 1,024 characters, such as \"PING\\r\\n\" in double quotes",
            Self::StoreAddress => {
                "an address with port, such as 10.0.0.5:6379 or [fd00::5]:6379, or the absolute path \
                 of a unix socket"
            }
            Self::Address => "an IPv4 or IPv6 address, such as 10.96.0.10 or fd00::10",
            Self::Cidr => "an address range, such as 10.0.0.0/8 or fd00::/8",
            Self::Listen => "an address with port, such as 0.0.0.0:15020 or [::]:15020, or `off`",
            Self::AbsolutePath => "an absolute path",
            Self::Cgroup => "a path below the cgroup2 mount without a leading `/`, such as kubepods.slice",
            Self::Given(given) => given.name,
        }
        .to_owned()
    }

    /// Checks a text.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(crate) fn check(&self, text: &str) -> Result<(), Fault> {
        let (min, max) = self.length();
        let length = text.chars().count();
        if length < min || length > max {
            let (code, message) = if length == 0 {
                (Code::BadValue, "is empty".to_owned())
            } else if length < min {
                (Code::BadValue, format!("`{}` is too short", shown(text)))
            } else {
                (
                    Code::BadValue,
                    format!("has {length} characters, more than {max}"),
                )
            };
            return Err(Fault {
                code,
                message,
                expected: None,
            });
        }
        if PATTERNS
            .get(&discriminant(self))
            .is_some_and(|regex| !regex.is_match(text))
        {
            let message = format!("`{}` is not allowed here", shown(text));
            return Err(Fault {
                code: Code::BadValue,
                message,
                expected: self.hint(text),
            });
        }
        self.further(text)
    }

    /// What a pattern can't say. (Expressions are compiled once, by the checks of meaning.)
    fn further(&self, text: &str) -> Result<(), Fault> {
        match self {
            Self::Duration(min, max) => match units::duration(text) {
                Some(value) if (*min..=*max).contains(&value) => Ok(()),
                _ => Err(fault(
                    Code::OutOfRange,
                    format!("`{text}` is out of range"),
                    None,
                )),
            },
            Self::Address => text.parse::<IpAddr>().map(drop).map_err(|_| {
                fault(
                    Code::BadValue,
                    format!("`{}` is not an IP address", shown(text)),
                    None,
                )
            }),
            Self::StoreAddress if !text.starts_with('/') => {
                text.parse::<SocketAddr>().map(drop).map_err(|_| {
                    let message = format!("`{text}` is not an address with port");
                    fault(Code::BadValue, message, None)
                })
            }
            Self::Cidr => check_cidr(text),
            Self::Given(given) if !(given.holds)(text) => Err(fault(
                Code::BadValue,
                format!("`{}` is not allowed here", shown(text)),
                None,
            )),
            Self::Listen => match text {
                "off" => Ok(()),
                _ => text.parse::<SocketAddr>().map(drop).map_err(|_| {
                    fault(
                        Code::BadValue,
                        format!("`{text}` is not an address with port"),
                        None,
                    )
                }),
            },
            Self::Endpoint => match text.parse::<SocketAddr>() {
                Ok(at) if at.port() > 0 => Ok(()),
                _ => Err(fault(
                    Code::BadValue,
                    format!("`{text}` is not an address with port"),
                    None,
                )),
            },
            Self::Cgroup if text.split('/').any(|part| part == "." || part == "..") => Err(fault(
                Code::BadValue,
                format!("`{}` holds `.` or `..`", shown(text)),
                None,
            )),
            _ => Ok(()),
        }
    }

    /// A guess at what was meant.
    fn hint(&self, text: &str) -> Option<String> {
        match self {
            Self::Duration(..) if text.bytes().all(|byte| byte.is_ascii_digit()) => Some(format!(
                "a unit after the number: {text}s, {text}ms, {text}m"
            )),
            Self::Duration(..) if text.contains('.') => {
                Some("whole numbers only: 1s500ms, not 1.5s".to_owned())
            }
            Self::HeaderName if text.starts_with(':') => Some(
                "`path`, `method` or `authority` beside `headers`: pseudo-headers are not fields"
                    .to_owned(),
            ),
            Self::Hostname if text.contains('*') => {
                Some("one hostname each: wildcards are not supported".to_owned())
            }
            Self::Hostname | Self::ServerName if text.ends_with('.') => {
                Some(format!("no trailing dot: {}", text.trim_end_matches('.')))
            }
            Self::Path if text.contains('?') => {
                Some("a path alone; the query is matched by `query`".to_owned())
            }
            Self::Path if !text.starts_with('/') => {
                Some(format!("a leading slash: /{}", shown(text)))
            }
            Self::Cgroup if text.starts_with('/') => {
                Some("the path below the cgroup2 mount, without a leading `/`".to_owned())
            }
            _ => None,
        }
    }
}

const fn fault(code: Code, message: String, expected: Option<String>) -> Fault {
    Fault {
        code,
        message,
        expected,
    }
}

/// Checks a regular expression as it will be used: over the whole text.
///
/// # Errors
/// What the compiler says of it.
pub(crate) fn check_regex(text: &str) -> Result<(), Fault> {
    // First alone, so that `a)(b` is not saved by the group around it. Then as it is used, where
    // that can differ: the comment of `(?x)a #` would swallow the end of the group.
    let mut compiled = compile(text);
    if compiled.is_ok() && text.contains("(?") {
        compiled = compile(&format!("^(?:{text})$"));
    }
    compiled.map_err(|error| {
        let reason = match &error {
            regex::Error::Syntax(_) => last_line(&error.to_string()),
            regex::Error::CompiledTooBig(limit) => format!("compiles to more than {limit} bytes"),
            other => last_line(&other.to_string()),
        };
        let message = format!(
            "`{}` is not a valid regular expression: {reason}",
            shown(text)
        );
        fault(Code::BadRegex, message, None)
    })
}

fn compile(text: &str) -> Result<(), regex::Error> {
    RegexBuilder::new(text)
        .size_limit(REGEX_COMPILED_MAX)
        .build()
        .map(drop)
}

/// The last line of a message, without its `error: `.
fn last_line(message: &str) -> String {
    let line = message.lines().next_back().unwrap_or_default();
    line.trim_start_matches("error: ").to_owned()
}

fn check_cidr(text: &str) -> Result<(), Fault> {
    match cidr(text) {
        None => Err(fault(
            Code::BadValue,
            format!("`{text}` is not an address range"),
            None,
        )),
        Some(net) if net.trunc() != net => Err(fault(
            Code::BadValue,
            format!("`{text}` has bits set after its prefix"),
            Some(net.trunc().to_string()),
        )),
        Some(_) => Ok(()),
    }
}

/// Reads a range; a lone address is a range of one.
pub(crate) fn cidr(text: &str) -> Option<IpNet> {
    text.parse::<IpNet>()
        .ok()
        .or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from))
}

/// A value in a message: at most 64 characters, control characters escaped.
pub(crate) fn shown(text: &str) -> String {
    let mut out: String = text
        .chars()
        .take(64)
        .flat_map(|c| {
            let escape: Box<dyn Iterator<Item = char>> = if c.is_control() {
                Box::new(c.escape_default())
            } else {
                Box::new(std::iter::once(c))
            };
            escape
        })
        .collect();
    if text.chars().nth(64).is_some() {
        out.push('…');
    }
    out
}

#[cfg(test)]
mod tests;
