//! A request as the rules see it: borrowed from whatever holds the bytes.

use std::net::IpAddr;

use super::SourceIx;

/// Who asks: known from the socket, never from what is said in the request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Client {
    /// The workload, where it is one of this node.
    pub source: Option<SourceIx>,
    /// The address that the connection comes from.
    pub address: Option<IpAddr>,
    /// When it asks, in seconds since the epoch: sessions end by it. 0: not known, none ends.
    pub unix_s: u64,
}

impl From<Option<SourceIx>> for Client {
    fn from(source: Option<SourceIx>) -> Self {
        Self {
            source,
            ..Self::default()
        }
    }
}

/// Read access to header fields, by lower-case name.
pub trait HeaderView {
    /// The values of every field of that name, in order, one by one (not joined).
    fn values(&self, name: &str) -> impl Iterator<Item = &[u8]>;
}

/// What rules and limits can ask about a request.
#[derive(Clone, Copy, Debug)]
pub struct RequestView<'a, H> {
    /// Method, as sent.
    pub method: &'a str,
    /// Path as sent, without query; `*` for OPTIONS in asterisk form.
    pub path: &'a str,
    /// Query without `?`.
    pub query: Option<&'a str>,
    /// `Host` or `:authority` as sent, with its port if it had one.
    pub authority: &'a str,
    /// Header fields.
    pub headers: &'a H,
}

/// Owned header fields, for `mesh explain` and tests.
#[derive(Clone, Debug, Default)]
pub struct HeaderList(pub Vec<(String, String)>);

impl HeaderView for HeaderList {
    fn values(&self, name: &str) -> impl Iterator<Item = &[u8]> {
        self.0
            .iter()
            .filter(move |(key, _)| key.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.as_bytes())
    }
}

impl HeaderView for http::HeaderMap {
    fn values(&self, name: &str) -> impl Iterator<Item = &[u8]> {
        self.get_all(name).iter().map(http::HeaderValue::as_bytes)
    }
}
