//! Where the attributes of a key come from.

use crate::{
    model::RateKey,
    policy::{HeaderView, RequestView, Snapshot, SourceIx, route::Plan, value::each_joined},
};

/// As in the configuration: `header.x-user`.
pub fn key_name(key: &RateKey) -> String {
    match key {
        RateKey::SourceWorkload => "source.workload".to_owned(),
        RateKey::SourceNamespace => "source.namespace".to_owned(),
        RateKey::SourceIdentity => "source.identity".to_owned(),
        RateKey::SourceTag(tag) => format!("source.tags.{tag}"),
        RateKey::Destination => "destination".to_owned(),
        RateKey::Version => "version".to_owned(),
        RateKey::Header(name) => format!("header.{name}"),
        RateKey::Path => "path".to_owned(),
        RateKey::Method => "method".to_owned(),
    }
}

/// Who asks for what: where the attributes of a key come from.
pub(super) struct Asker<'a, H> {
    pub(super) snapshot: &'a Snapshot,
    pub(super) plan: &'a Plan,
    pub(super) source: Option<SourceIx>,
    pub(super) request: Option<&'a RequestView<'a, H>>,
}

impl<H: HeaderView> Asker<'_, H> {
    /// Gives the attribute to `part`, piece by piece; false when there is none.
    pub(super) fn attribute(&self, key: &RateKey, mut part: impl FnMut(&[u8])) -> bool {
        let source = self.source.map(|source| self.snapshot.source_of(source));
        let value: Option<&str> = match key {
            RateKey::SourceWorkload => source.map(|source| &*source.key),
            RateKey::SourceNamespace => source.map(|source| &*source.namespace),
            RateKey::SourceIdentity => source.and_then(|source| source.identity.as_deref()),
            RateKey::SourceTag(tag) => source
                .and_then(|source| source.tags.get(tag))
                .map(String::as_str),
            RateKey::Destination => Some(&self.snapshot.port(self.plan.port).key),
            RateKey::Version => Some(&self.snapshot.version(self.plan.version).name),
            RateKey::Path => self.request.map(|request| request.path),
            RateKey::Method => self.request.map(|request| request.method),
            RateKey::Header(name) => {
                let Some(request) = self.request else {
                    return false;
                };
                if request.headers.values(name).next().is_none() {
                    return false;
                }
                each_joined(request.headers, name, part);
                return true;
            }
        };
        value.map(|value| part(value.as_bytes())).is_some()
    }
}
