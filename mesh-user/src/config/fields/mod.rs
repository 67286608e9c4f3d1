//! Every field of the file: name, what it takes, what holds without it, what it does.
//!
//! This is the only place that says so. The check of a file, the JSON Schema and `docs/CONFIG.md`
//! are made from it, and the readers in `build` refuse (in debug builds) to read a field that is
//! not here.

use std::time::Duration;

use super::{
    shape::{Absent, Field, Group, Object, Shape},
    text::Text,
};

mod actions;
mod agent;
mod balance;
mod health;
mod inbound;
mod limits;
mod policy;
mod resilience;
mod rule;
mod service;
mod shield;
mod tls;

pub(crate) use agent::AGENT;
pub(crate) use inbound::INBOUND;
pub(crate) use policy::POLICY;
pub(crate) use rule::RULE;
pub(crate) use service::{OUTBOUND, SERVICE, WORKLOAD};
pub(crate) use shield::{DENY as SHIELD_DENY, SHIELD};

/// `apiVersion` of this language.
pub(crate) const API_VERSION: &str = "mesh/v1alpha1";
/// `kind` of the file.
pub(crate) const KIND: &str = "MeshConfig";

const DAY: Duration = Duration::from_secs(86_400);
const MILLI: Duration = Duration::from_millis(1);

const fn field(name: &'static str, shape: Shape, absent: Absent, doc: &'static str) -> Field {
    Field {
        name,
        shape,
        absent,
        doc,
    }
}

const fn needed(name: &'static str, shape: Shape, doc: &'static str) -> Field {
    field(name, shape, Absent::Required, doc)
}

const NAME: Shape = Shape::Text(Text::Name);
const NAMESPACE: Field = field(
    "namespace",
    NAME,
    Absent::Default(
        "default",
        "what Kubernetes calls the namespace of those who have none",
    ),
    "Its namespace.",
);

static TAG_VALUE: Shape = Shape::Text(Text::TagValue);
/// Kubernetes objects rarely carry more than 20 labels.
const TAGS: Shape = Shape::Map {
    key: Text::TagKey,
    of: &TAG_VALUE,
    max: 64,
};

/// A port of a service, by name or by number.
static PORT_NAME: Shape = Shape::Text(Text::Name);
static PORT_NUMBER: Shape = Shape::Int {
    min: 1,
    max: 65_535,
};
const PORT_REF: Shape = Shape::Either(&PORT_NAME, &PORT_NUMBER);

static SERVICE_ITEM: Shape = Shape::Object(&SERVICE);
static RULE_ITEM: Shape = Shape::Object(&RULE);
static POLICY_ITEM: Shape = Shape::Object(&POLICY);
static WORKLOAD_ITEM: Shape = Shape::Object(&WORKLOAD);
static INBOUND_ITEM: Shape = Shape::Object(&INBOUND);
static RATE_LIMIT_SERVICE_ITEM: Shape = Shape::Object(&limits::RATE_LIMIT_SERVICE);
static OUTBOUND_ITEM: Shape = Shape::Object(&OUTBOUND);
static GATEWAY_ITEM: Shape = Shape::Text(super::gateway::PATH_TEXT);
static ATTACH_ITEM: Shape = Shape::Text(Text::Cgroup);

/// The file.
pub(crate) static ROOT: Object = Object {
    name: "MeshConfig",
    doc: "One file describes the agent's settings and everything that the mesh knows. It is \
          reloaded when it changes: as a whole, or not at all.",
    fields: &[
        needed(
            "apiVersion",
            Shape::Choice(&[(API_VERSION, "the only version so far")]),
            "Version of this language.",
        ),
        needed(
            "kind",
            Shape::Choice(&[(KIND, "this file")]),
            "What the file is.",
        ),
        field(
            "attach",
            Shape::list(&ATTACH_ITEM, 64),
            Absent::Means("the parent of all Kubernetes pods (`kubepods`) is searched"),
            "Cgroups below the cgroup2 mount at which the connect hooks attach. None may stand \
             inside another, since a hook would run twice. Needs a restart.",
        ),
        field(
            "agent",
            Shape::Object(&AGENT),
            Absent::Means("every default"),
            "Settings of the agent.",
        ),
        field(
            "services",
            Shape::list(&SERVICE_ITEM, 131_072),
            Absent::Means("none"),
            "What clients dial, and the endpoints behind it.",
        ),
        field(
            "rules",
            Shape::list(&RULE_ITEM, 100_000),
            Absent::Means("every endpoint serves"),
            "Which request goes to which version. By precedence, then in this order; the first \
             that matches decides. A port with rules of which none matches answers 404.",
        ),
        field(
            "policies",
            Shape::list(&POLICY_ITEM, 100_000),
            Absent::Means("every default"),
            "Limits, ejection, balancing, time-outs and retries.",
        ),
        field(
            "rate-limit-services",
            Shape::list(&RATE_LIMIT_SERVICE_ITEM, 16),
            Absent::Means("none"),
            "Stores of rate limits that are shared with other nodes.",
        ),
        field(
            "workloads",
            Shape::list(&WORKLOAD_ITEM, 4096),
            Absent::Means("none"),
            "What is captured on this node, and who asks.",
        ),
        field(
            "outbound",
            Shape::list(&OUTBOUND_ITEM, 16_384),
            Absent::Means("none"),
            "Exceptions that the kernel decides before any service is looked up.",
        ),
        field(
            "inbound",
            Shape::list(&INBOUND_ITEM, 4096),
            Absent::Means("what comes in goes to the application untouched"),
            "What happens to connections that come to the workloads of this node. In this order: \
             of a workload and a port the first rule that covers both decides, alone.",
        ),
        field(
            "gateway-api",
            Shape::list(&GATEWAY_ITEM, 64),
            Absent::Means("objects of Gateway API stand in this file only, as further documents"),
            "Files with objects of Gateway API (HTTPRoute, GRPCRoute, TLSRoute, TCPRoute, \
             ReferenceGrant) as Kubernetes has them, or folders of such files (`*.yaml`, `*.yml`), \
             relative to the folder of this file. They are reloaded as this file is: all of it, or \
             nothing (docs/ROUTING.md).",
        ),
        field(
            "shield",
            Shape::Object(&SHIELD),
            Absent::Means("there is no shield"),
            "What is dropped at this node's interfaces.",
        ),
    ],
    groups: &[],
};
