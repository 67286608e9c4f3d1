//! `mesh explain`: the same question answered by a live agent and from a file.

use std::{net::IpAddr, time::Duration};

use serde::{Deserialize, Serialize};

use crate::{
    clock::{self, MonoNanos},
    model::{OutboundAction, Protocol},
    policy::{
        Client, PortIx, RequestView, Snapshot,
        explain::{Explanation, explain, explain_tcp, explain_tls},
        request::HeaderList,
        split::Cursors,
    },
};

/// Most header fields of a question: as many as the proxy takes by default.
const HEADERS_MAX: usize = 100;

/// What is asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Question {
    /// The workload: `namespace/name`, or `name` in `default`.
    pub from: String,
    /// Host name or address that it dials.
    pub host: String,
    /// Port that it dials.
    pub port: u16,
    /// Method.
    pub method: String,
    /// Path, with query.
    pub path: String,
    /// Header fields, in order. `host` takes the place of the dialled host.
    pub headers: Vec<(String, String)>,
    /// An opaque connection: no request is asked about.
    #[serde(default)]
    pub tcp: bool,
    /// The server name of a TLS connection in place of a request; empty: it names nobody.
    #[serde(default)]
    pub sni: Option<String>,
}

/// The answer.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "snake_case", tag = "destination")]
pub enum Answer {
    /// A service of the model decides.
    Service(Box<Explanation>),
    /// An outbound rule decides in the kernel, before any service is looked up.
    Rule {
        /// What was asked for.
        asked: String,
        /// The rule's range.
        range: String,
        /// Passed untouched, or refused with ECONNREFUSED.
        action: OutboundAction,
    },
    /// Not a service of the model: the connection is not touched.
    Outside {
        /// What was asked for.
        asked: String,
        /// Why it is outside.
        because: String,
    },
}

impl Answer {
    /// Whether the request would be refused.
    pub fn refused(&self) -> bool {
        use crate::policy::explain::Fate;
        match self {
            Self::Service(it) => matches!(it.outcome, Fate::Refused { .. }),
            Self::Rule { action, .. } => *action == OutboundAction::Deny,
            Self::Outside { .. } => false,
        }
    }
}

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QuestionError {
    /// The workload isn't in the model.
    #[error("workload {given:?} is not in the model; it has: {}", known_list(.known))]
    UnknownWorkload {
        /// What was given.
        given: String,
        /// Up to ten that there are.
        known: Vec<String>,
    },
    /// A host name that no service has. (An address that none has is simply outside.)
    #[error(
        "host {host:?} with port {port} belongs to no service of the model, and mesh does no DNS: \
         give a hostname or address of a service (`mesh config services`), or an address"
    )]
    UnknownHost {
        /// The host.
        host: String,
        /// The port.
        port: u16,
    },
    /// Too many header fields.
    #[error("{0} header fields: expected at most 100, as the proxy takes by default")]
    TooManyHeaders(usize),
}

fn known_list(known: &[String]) -> String {
    if known.is_empty() {
        "none".to_owned()
    } else {
        known.join(", ")
    }
}

/// Answers by the data path's own decision code. Nothing is spent: no token, no turn.
///
/// # Errors
/// Unknown workload or host; too many header fields.
pub fn answer(
    snapshot: &Snapshot,
    question: &Question,
    now: MonoNanos,
) -> Result<Answer, QuestionError> {
    if question.headers.len() > HEADERS_MAX {
        return Err(QuestionError::TooManyHeaders(question.headers.len()));
    }
    let key = match question.from.contains('/') {
        true => question.from.clone(),
        false => format!("default/{}", question.from),
    };
    let source = snapshot
        .source(&key)
        .ok_or_else(|| unknown_workload(snapshot, &key))?;
    let host = question.host.trim_start_matches('[').trim_end_matches(']');
    let address = host.parse::<IpAddr>().ok();
    let port = match address {
        Some(ip) => snapshot.port_at(ip, question.port),
        None => snapshot.port_named(&host.to_ascii_lowercase(), question.port),
    };
    let destination = address.or_else(|| first_address(snapshot, port?));
    if let Some(rule) = destination.and_then(|ip| snapshot.model.outbound_rule(ip, question.port)) {
        return Ok(Answer::Rule {
            asked: authority(question, address),
            range: rule.cidr.to_string(),
            action: rule.action,
        });
    }
    let Some(port) = port else {
        return outside(question, address);
    };
    let cursors = Cursors::default();
    let client = Client {
        source: Some(source),
        address: None,
        unix_s: (clock::epoch() + Duration::from_nanos(now.0)).as_secs(),
    };
    let tls = snapshot.port(port).protocol == Protocol::Tls;
    if question.sni.is_some() || tls {
        let name = question
            .sni
            .as_deref()
            .unwrap_or_default()
            .to_ascii_lowercase();
        let name = name.strip_suffix('.').unwrap_or(&name);
        let name = (!name.is_empty()).then_some(name);
        let explanation = explain_tls(snapshot, port, client, name, &cursors, now);
        return Ok(Answer::Service(Box::new(explanation)));
    }
    if question.tcp {
        let explanation = explain_tcp(snapshot, port, client, &cursors, now);
        return Ok(Answer::Service(Box::new(explanation)));
    }
    let (path, query) = match question.path.split_once('?') {
        Some((path, query)) => (path, Some(query)),
        None => (&*question.path, None),
    };
    let dialled = authority(question, address);
    let given = question
        .headers
        .iter()
        .find(|(name, _)| name.eq_ignore_ascii_case("host"));
    let headers = HeaderList(question.headers.clone());
    let request = RequestView {
        method: &question.method,
        path,
        query,
        authority: given.map_or(&*dialled, |(_, value)| value),
        headers: &headers,
    };
    let explanation = explain(snapshot, port, client, &request, &cursors, now);
    Ok(Answer::Service(Box::new(explanation)))
}

/// The address that a hostname of the service stands for: by the platform's DNS, its first one.
fn first_address(snapshot: &Snapshot, port: PortIx) -> Option<IpAddr> {
    let plan = snapshot.port(port);
    let mut services = snapshot.model.services.iter();
    let service = services.find(|s| *s.name == *plan.service && *s.namespace == *plan.namespace)?;
    service.addresses.first().copied()
}

fn authority(question: &Question, address: Option<IpAddr>) -> String {
    match address {
        Some(IpAddr::V6(ip)) => format!("[{ip}]:{}", question.port),
        _ => format!("{}:{}", question.host, question.port),
    }
}

fn outside(question: &Question, address: Option<IpAddr>) -> Result<Answer, QuestionError> {
    match address {
        Some(_) => Ok(Answer::Outside {
            asked: authority(question, address),
            because: "no service of the model has this address and port: the kernel passes the \
                      connection untouched"
                .into(),
        }),
        None => Err(QuestionError::UnknownHost {
            host: question.host.clone(),
            port: question.port,
        }),
    }
}

fn unknown_workload(snapshot: &Snapshot, key: &str) -> QuestionError {
    let mut known: Vec<String> = snapshot
        .sources
        .iter()
        .map(|source| source.key.to_string())
        .collect();
    known.sort_unstable();
    known.truncate(10);
    QuestionError::UnknownWorkload {
        given: key.to_owned(),
        known,
    }
}
