//! Where the attributes of a key come from: limits, sticky splits and hashes all ask here.

use std::net::IpAddr;

use super::{
    HeaderView, PortIx, RequestView, RuleIx, Snapshot, VersionIx,
    request::Client,
    route::Plan,
    value::{Decoded, each_joined, host_of, parameter},
};
use crate::model::Attribute;

/// Who asks for what.
pub(super) struct Asker<'a, H> {
    pub(super) snapshot: &'a Snapshot,
    pub(super) port: PortIx,
    pub(super) rule: Option<RuleIx>,
    /// None as long as it is not chosen.
    pub(super) version: Option<VersionIx>,
    pub(super) client: Client,
    pub(super) request: Option<&'a RequestView<'a, H>>,
}

impl<'a, H> Asker<'a, H> {
    /// Who asks for what `plan` decided.
    pub(super) const fn of(
        snapshot: &'a Snapshot,
        plan: &Plan,
        client: Client,
        request: Option<&'a RequestView<'a, H>>,
    ) -> Self {
        Self {
            snapshot,
            port: plan.port,
            rule: plan.rule,
            version: Some(plan.version),
            client,
            request,
        }
    }
}

impl<H: HeaderView> Asker<'_, H> {
    /// Gives the attribute to `part`, piece by piece; false when there is none.
    pub(super) fn attribute(&self, key: &Attribute, mut part: impl FnMut(&[u8])) -> bool {
        let source = self
            .client
            .source
            .map(|source| self.snapshot.source_of(source));
        let value: Option<&str> = match key {
            Attribute::SourceWorkload => source.map(|source| &*source.key),
            Attribute::SourceNamespace => source.map(|source| &*source.namespace),
            Attribute::SourceIdentity => source.and_then(|source| source.identity.as_deref()),
            Attribute::SourceTag(tag) => source
                .and_then(|source| source.tags.get(tag))
                .map(String::as_str),
            Attribute::SourceAddress => {
                return match self.client.address.map(|address| address.to_canonical()) {
                    Some(IpAddr::V4(address)) => {
                        part(&address.octets());
                        true
                    }
                    Some(IpAddr::V6(address)) => {
                        part(&address.octets());
                        true
                    }
                    None => false,
                };
            }
            Attribute::Destination => Some(&self.snapshot.port(self.port).key),
            Attribute::Version => self
                .version
                .map(|version| &*self.snapshot.version(version).name),
            Attribute::Rule => self.rule.map(|rule| &*self.snapshot.rule(rule).name),
            Attribute::Path => self.request.map(|request| request.path),
            Attribute::Method => self.request.map(|request| request.method),
            Attribute::Authority => {
                let Some(request) = self.request else {
                    return false;
                };
                for byte in host_of(request.authority).bytes() {
                    part(&[byte.to_ascii_lowercase()]);
                }
                return true;
            }
            Attribute::Header(name) => {
                let Some(request) = self.request else {
                    return false;
                };
                if request.headers.values(name).next().is_none() {
                    return false;
                }
                each_joined(request.headers, name, part);
                return true;
            }
            Attribute::Cookie(name) => {
                let value = self
                    .request
                    .and_then(|request| cookie(request.headers, name));
                return value.map(part).is_some();
            }
            Attribute::Query(name) => {
                let Some(value) = self
                    .request
                    .and_then(|request| parameter(request.query, name))
                else {
                    return false;
                };
                Decoded(value.as_bytes()).for_each(|byte| part(&[byte]));
                return true;
            }
        };
        value.map(|value| part(value.as_bytes())).is_some()
    }

    /// Whether there is such an attribute.
    pub(super) fn has(&self, key: &Attribute) -> bool {
        self.attribute(key, |_| {})
    }

    /// Whether the attribute is there and has this value.
    pub(super) fn equals(&self, key: &Attribute, value: &[u8]) -> bool {
        let mut rest = Some(value);
        let there = self.attribute(key, |part| {
            rest = rest.and_then(|rest| rest.strip_prefix(part));
        });
        there && rest.is_some_and(<[u8]>::is_empty)
    }

    /// The attribute, for people; `-` when there is none.
    pub(super) fn text(&self, key: &Attribute) -> String {
        let mut value = Vec::new();
        if !self.attribute(key, |part| value.extend_from_slice(part)) {
            return "-".to_owned();
        }
        match (key, &*value) {
            (Attribute::SourceAddress, _) => self
                .client
                .address
                .map(|a| a.to_canonical().to_string())
                .unwrap_or_default(),
            (_, value) => String::from_utf8_lossy(value).into_owned(),
        }
    }
}

/// The first cookie of that name (RFC 6265 §5.4: `name=value; name=value`), as it was sent.
pub(crate) fn cookie<'a>(headers: &'a impl HeaderView, name: &str) -> Option<&'a [u8]> {
    headers.values("cookie").find_map(|field| {
        field.split(|byte| *byte == b';').find_map(|pair| {
            let pair = pair.trim_ascii();
            let at = pair.iter().position(|byte| *byte == b'=')?;
            (pair[..at].trim_ascii_end() == name.as_bytes())
                .then(|| pair[at + 1..].trim_ascii_start())
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::request::HeaderList;

    #[test]
    fn cookie_of_several_is_found_by_its_whole_name() {
        let headers = HeaderList(vec![
            ("cookie".to_owned(), "a=1; session=x=y ;b".to_owned()),
            ("cookie".to_owned(), "session=2; c= 3".to_owned()),
        ]);
        assert_eq!(cookie(&headers, "session"), Some(&b"x=y"[..]));
        assert_eq!(cookie(&headers, "c"), Some(&b"3"[..]));
        assert_eq!(cookie(&headers, "b"), None);
        assert_eq!(cookie(&headers, "sess"), None);
    }
}
