//! What became of the routes of another API at each of their parents, in that API's terms.

use serde::Serialize;

/// Whether a route is in force at one of its parents (Gateway API `RouteParentStatus`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RouteStatus {
    /// `HTTPRoute`, `GRPCRoute`, `TLSRoute`, `TCPRoute`.
    pub kind: String,
    /// Namespace of the route.
    pub namespace: String,
    /// Name of the route.
    pub name: String,
    /// The `generation` that was looked at; 0 when the object has none.
    pub generation: i64,
    /// The reference, as the route has it, with its defaults.
    pub parent: ParentRef,
    /// `Accepted` and `ResolvedRefs`, and `PartiallyInvalid` where it is so.
    pub conditions: Vec<RouteCondition>,
}

/// A reference to a parent (Gateway API `ParentReference`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ParentRef {
    /// Group, empty for a Service.
    pub group: String,
    /// Kind.
    pub kind: String,
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// Name of the port.
    pub section_name: Option<String>,
    /// Number of the port.
    pub port: Option<u16>,
}

/// A condition (Kubernetes `metav1.Condition`, without its times).
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RouteCondition {
    /// `Accepted`, `ResolvedRefs` or `PartiallyInvalid`.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// Whether it holds.
    pub status: bool,
    /// Why, in one word of the API: `NoMatchingParent`, `Conflicted`, `BackendNotFound`.
    pub reason: &'static str,
    /// Why, for people.
    pub message: String,
}

impl RouteStatus {
    /// The condition of that type.
    pub fn condition(&self, kind: &str) -> Option<&RouteCondition> {
        self.conditions
            .iter()
            .find(|condition| condition.kind == kind)
    }

    /// Whether the parent takes the route.
    pub fn is_accepted(&self) -> bool {
        self.condition("Accepted").is_some_and(|it| it.status)
    }
}
