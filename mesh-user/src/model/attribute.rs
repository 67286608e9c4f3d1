//! What of a request or connection may key a limit, a sticky split or a hash.

use std::{fmt, str::FromStr};

use serde::Serialize;

/// An attribute of a request or connection. Written as in the configuration: `header.x-user`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Attribute {
    /// `source.workload`: `namespace/name` of the workload that asks.
    SourceWorkload,
    /// `source.namespace`: its namespace.
    SourceNamespace,
    /// `source.identity`: its identity.
    SourceIdentity,
    /// `source.tag.NAME`: one of its tags.
    SourceTag(String),
    /// `source.address`: the client's IP address.
    SourceAddress,
    /// `destination`: the service that was dialled.
    Destination,
    /// `version`: the version that was chosen.
    Version,
    /// `rule`: the rule that matched.
    Rule,
    /// `header.NAME`: a header's value, by lower-case name.
    Header(String),
    /// `cookie.NAME`: a cookie's value (RFC 6265 §5.4), case-sensitive.
    Cookie(String),
    /// `query.NAME`: the first query parameter of that name, percent-decoded.
    Query(String),
    /// `authority`: `Host` or `:authority`, lower-case, without port.
    Authority,
    /// `path`: the path, without query.
    Path,
    /// `method`: the method.
    Method,
}

impl fmt::Display for Attribute {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::SourceWorkload => f.write_str("source.workload"),
            Self::SourceNamespace => f.write_str("source.namespace"),
            Self::SourceIdentity => f.write_str("source.identity"),
            Self::SourceTag(tag) => write!(f, "source.tag.{tag}"),
            Self::SourceAddress => f.write_str("source.address"),
            Self::Destination => f.write_str("destination"),
            Self::Version => f.write_str("version"),
            Self::Rule => f.write_str("rule"),
            Self::Header(name) => write!(f, "header.{name}"),
            Self::Cookie(name) => write!(f, "cookie.{name}"),
            Self::Query(name) => write!(f, "query.{name}"),
            Self::Authority => f.write_str("authority"),
            Self::Path => f.write_str("path"),
            Self::Method => f.write_str("method"),
        }
    }
}

/// Not the name of an attribute.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoAttribute;

impl FromStr for Attribute {
    type Err = NoAttribute;

    fn from_str(text: &str) -> Result<Self, NoAttribute> {
        let named = |prefix: &str| text.strip_prefix(prefix).filter(|name| !name.is_empty());
        Ok(match text {
            "source.workload" => Self::SourceWorkload,
            "source.namespace" => Self::SourceNamespace,
            "source.identity" => Self::SourceIdentity,
            "source.address" => Self::SourceAddress,
            "destination" => Self::Destination,
            "version" => Self::Version,
            "rule" => Self::Rule,
            "authority" => Self::Authority,
            "path" => Self::Path,
            "method" => Self::Method,
            _ => {
                if let Some(tag) = named("source.tag.") {
                    Self::SourceTag(tag.to_owned())
                } else if let Some(name) = named("header.") {
                    Self::Header(name.to_ascii_lowercase())
                } else if let Some(name) = named("cookie.") {
                    Self::Cookie(name.to_owned())
                } else if let Some(name) = named("query.") {
                    Self::Query(name.to_owned())
                } else {
                    return Err(NoAttribute);
                }
            }
        })
    }
}

impl Attribute {
    /// Whether only an HTTP request has it.
    pub const fn needs_http(&self) -> bool {
        matches!(
            self,
            Self::Header(_)
                | Self::Cookie(_)
                | Self::Query(_)
                | Self::Authority
                | Self::Path
                | Self::Method
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attribute_text_reads_back_as_itself() {
        for text in [
            "source.workload",
            "source.namespace",
            "source.identity",
            "source.tag.app",
            "source.address",
            "destination",
            "version",
            "rule",
            "header.x-user",
            "cookie.Session",
            "query.q",
            "authority",
            "path",
            "method",
        ] {
            assert_eq!(
                text.parse::<Attribute>().map(|a| a.to_string()).as_deref(),
                Ok(text)
            );
        }
        for text in ["", "header.", "sourcetag.x", "Path", "cookie"] {
            assert_eq!(text.parse::<Attribute>(), Err(NoAttribute), "{text}");
        }
    }
}
