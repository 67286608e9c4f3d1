//! Where references lead.

use std::collections::HashMap;

use super::object::{BackendRef, GROUP, Grant, Route};
use crate::model::{Backend, List, Service};

/// Services by namespace and name, and what may be referred to from elsewhere.
pub(super) struct Refs<'a> {
    services: &'a List<Service>,
    by_name: HashMap<(&'a str, &'a str), usize>,
    grants: &'a [Grant],
}

/// Why a reference leads nowhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct NoBackend {
    /// The reason of the condition `ResolvedRefs`.
    pub(super) reason: &'static str,
    /// For people.
    pub(super) message: String,
    /// What would be right.
    pub(super) expected: &'static str,
}

impl<'a> Refs<'a> {
    pub(super) fn new(services: &'a List<Service>, grants: &'a [Grant]) -> Self {
        let mut by_name = HashMap::new();
        for (index, service) in services.iter().enumerate() {
            by_name
                .entry((service.namespace.as_str(), service.name.as_str()))
                .or_insert(index);
        }
        Self {
            services,
            by_name,
            grants,
        }
    }

    /// The service at an index.
    pub(super) fn at(&self, index: usize) -> Option<&'a Service> {
        self.services.get(index)
    }

    /// The service of a name.
    pub(super) fn service(&self, namespace: &str, name: &str) -> Option<(usize, &'a Service)> {
        let index = *self.by_name.get(&(namespace, name))?;
        Some((index, self.services.get(index)?))
    }

    /// The service port that a reference of the route means.
    ///
    /// # Errors
    /// It is none, is not there, or may not be referred to.
    pub(super) fn backend(&self, route: &Route, to: &BackendRef) -> Result<Backend, NoBackend> {
        let fault = |reason, message, expected| {
            Err(NoBackend {
                reason,
                message,
                expected,
            })
        };
        if !to.group.is_empty() || to.kind != "Service" {
            let group = if to.group.is_empty() { "" } else { "/" };
            let message = format!("`{}{group}{}` is no kind of backend", to.group, to.kind);
            return fault("InvalidKind", message, "a Service of the core group");
        }
        let key = format!("{}/{}", to.namespace, to.name);
        if to.namespace != route.namespace && !self.granted(route, to) {
            let message = format!(
                "no ReferenceGrant in `{}` lets a {} of `{}` refer to Service `{}`",
                to.namespace,
                route.kind.name(),
                route.namespace,
                to.name
            );
            return fault(
                "RefNotPermitted",
                message,
                "a ReferenceGrant in the namespace of the Service",
            );
        }
        let Some((service, found)) = self.service(&to.namespace, &to.name) else {
            let message = format!("there is no service `{key}`");
            return fault(
                "BackendNotFound",
                message,
                "an entry of `services` with this name and namespace",
            );
        };
        let port = to.port.unwrap_or(0);
        if !found.ports.iter().any(|known| known.number == port) {
            let message = format!("`{key}` has no port {port}");
            return fault(
                "BackendNotFound",
                message,
                "the number of a port of the service",
            );
        }
        Ok(Backend { service, port })
    }

    fn granted(&self, route: &Route, to: &BackendRef) -> bool {
        self.grants.iter().any(|grant| {
            let from = grant.from.iter().any(|(group, kind, namespace)| {
                group == GROUP && kind == route.kind.name() && *namespace == route.namespace
            });
            let target = grant.to.iter().any(|(group, kind, name)| {
                group.is_empty()
                    && kind == "Service"
                    && name.as_ref().is_none_or(|name| *name == to.name)
            });
            grant.namespace == to.namespace && from && target
        })
    }
}
