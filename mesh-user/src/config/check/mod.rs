//! Checks of meaning, over a model, whichever platform it came from.
//!
//! What a model says must hold together: names refer to something, nothing is claimed twice, every
//! value is legal. Findings carry paths in the spelling of the file; the file platform maps them
//! to lines, other adapters to their objects.

use crate::model::{Model, Service};

use super::{
    path::FieldPath,
    report::{Code, Severity},
};

mod actions;
mod agent;
mod balance;
mod change;
mod health;
mod inbound;
mod limits;
mod policies;
mod resilience;
mod rules;
mod services;
mod tls;

pub(crate) use agent::agent;
pub use change::is_sound_change;

/// What a check found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// Its name.
    pub code: Code,
    /// Where.
    pub path: FieldPath,
    /// What it was concluded from: when that is wrong, the finding means nothing.
    pub because: Option<FieldPath>,
    /// What is wrong, with the value.
    pub message: String,
    /// What would be right.
    pub expected: Option<String>,
}

/// Checks a model: errors first, then warnings.
///
/// A model without an error can be compiled (`Snapshot::compile`) without a surprise.
pub fn check(model: &Model) -> Vec<Finding> {
    let mut out = Findings(Vec::new());
    services::check(model, &mut out);
    rules::check(model, &mut out);
    policies::check(model, &mut out);
    inbound::check(model, &mut out);
    tls::check(model, &mut out);
    balance::localities(model, &mut out);
    limits::check(model, &mut out);
    out.sorted()
}

/// Findings so far.
#[derive(Debug)]
pub(crate) struct Findings(Vec<Finding>);

impl Findings {
    fn sorted(mut self) -> Vec<Finding> {
        self.0.sort_by_key(|finding| finding.severity);
        self.0
    }

    fn error(&mut self, code: Code, path: FieldPath, message: String, expected: &str) {
        self.push(Severity::Error, code, path, None, message, expected);
    }

    fn warning(&mut self, code: Code, path: FieldPath, message: String, expected: &str) {
        self.push(Severity::Warning, code, path, None, message, expected);
    }

    fn push(
        &mut self,
        severity: Severity,
        code: Code,
        path: FieldPath,
        because: Option<FieldPath>,
        message: String,
        expected: &str,
    ) {
        let expected = (!expected.is_empty()).then(|| expected.to_owned());
        self.0.push(Finding {
            severity,
            code,
            path,
            because,
            message,
            expected,
        });
    }
}

/// Reports a port that the service does not have.
fn port(
    port: Option<&str>,
    service: Option<(usize, &Service)>,
    item: &FieldPath,
    out: &mut Findings,
) {
    let (Some(name), Some((index, service))) = (port, service) else {
        return;
    };
    if service.ports.iter().any(|port| port.name == name) {
        return;
    }
    let known: Vec<_> = service
        .ports
        .iter()
        .map(|port| port.name.as_str())
        .collect();
    let message = format!("`{}` has no port `{name}`", service.key());
    let because = Some(FieldPath::item("services", index).key("ports"));
    let expected = one_of(name, &known);
    out.push(
        Severity::Error,
        Code::UnknownPort,
        item.key("port"),
        because,
        message,
        &expected,
    );
}

/// Reports a version that the service does not have.
fn version(name: &str, service: Option<(usize, &Service)>, path: FieldPath, out: &mut Findings) {
    let Some((index, service)) = service else {
        return;
    };
    if service.versions.contains_key(name) {
        return;
    }
    let known: Vec<_> = service.versions.keys().map(String::as_str).collect();
    let message = format!("`{}` has no version `{name}`", service.key());
    let because = Some(FieldPath::item("services", index).key("versions"));
    let expected = one_of(name, &known);
    out.push(
        Severity::Error,
        Code::UnknownVersion,
        path,
        because,
        message,
        &expected,
    );
}

/// The nearest of the known names, and the others.
fn one_of(name: &str, known: &[&str]) -> String {
    match (super::suggest::nearest(name, known.iter().copied()), known) {
        (_, []) => "none: the service has none".to_owned(),
        (Some(near), [_]) => format!("`{near}`"),
        (Some(near), _) => format!("`{near}`; known here: {}", known.join(", ")),
        (None, _) => format!("one of {}", known.join(", ")),
    }
}

#[cfg(test)]
mod tests;
