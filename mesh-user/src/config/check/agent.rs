//! Settings of the agent against each other.

use std::path::Path;

use super::{Finding, Findings};
use crate::config::{AgentConfig, path::FieldPath, report::Code};

/// Checks the agent's settings.
pub(crate) fn agent(agent: &AgentConfig) -> Vec<Finding> {
    let mut out = Findings(Vec::new());
    attach(agent, &mut out);
    limits(agent, &mut out);
    interfaces(agent, &mut out);
    marks(agent, &mut out);
    out.sorted()
}

/// Linux: IFNAMSIZ counts the final NUL.
const INTERFACE_BYTES_MAX: usize = 15;

fn interfaces(agent: &AgentConfig, out: &mut Findings) {
    let names = agent.shield.iter().flat_map(|shield| &shield.interfaces);
    for (i, name) in names.enumerate() {
        if name.len() > INTERFACE_BYTES_MAX {
            let path = FieldPath::default().key("shield").key("interfaces").at(i);
            let message = format!("`{name}` is too long for an interface");
            let expected = "a name of at most 15 characters, as `ip link` shows it, or auto";
            out.error(Code::BadValue, path, message, expected);
        }
    }
}

fn marks(agent: &AgentConfig, out: &mut Findings) {
    let marks = agent.marks;
    if marks.capture_bit != marks.agent_bit {
        return;
    }
    let message = format!("both marks are bit {}", marks.capture_bit);
    // The default of the one may be the value of the other.
    let default = crate::config::MarkBits::default();
    let name = if marks.agent_bit == default.agent_bit {
        "capture-bit"
    } else {
        "agent-bit"
    };
    let path = FieldPath::default().key("agent").key("marks").key(name);
    out.error(Code::LimitConflict, path, message, "two bits that differ");
}

fn attach(agent: &AgentConfig, out: &mut Findings) {
    for (i, inner) in agent.attach.iter().enumerate() {
        // `starts_with` goes by components: `a/b` is inside `a`, `ab` is not.
        let holds = |other: &Path| inner.starts_with(other);
        let outer = agent
            .attach
            .iter()
            .enumerate()
            .find(|(j, other)| *j != i && holds(other) && (*other != inner || *j < i));
        if let Some((j, outer)) = outer {
            let message = format!(
                "`{}` is inside attach[{j}], `{}`: a hook would run twice",
                inner.display(),
                outer.display()
            );
            let path = FieldPath::default().key("attach").at(i);
            out.error(
                Code::NestedAttach,
                path,
                message,
                "cgroups of which none is inside another",
            );
        }
    }
}

fn limits(agent: &AgentConfig, out: &mut Findings) {
    let limits = &agent.limits;
    let path = |name| FieldPath::default().key("agent").key("limits").key(name);
    if limits.target_bytes_max > limits.head_bytes_max {
        let message = format!(
            "target-bytes-max ({}) is larger than head-bytes-max ({})",
            limits.target_bytes_max, limits.head_bytes_max
        );
        let expected = "a target that fits into the head";
        // The default of the one may clash with the value of the other: the mark goes to what
        // stands in the file.
        let default = crate::config::Limits::default();
        let name = if limits.target_bytes_max == default.target_bytes_max {
            "head-bytes-max"
        } else {
            "target-bytes-max"
        };
        out.error(Code::LimitConflict, path(name), message, expected);
    }
    if limits.upstream_idle_max > limits.upstream_connections_max {
        let message = format!(
            "upstream-idle-max ({}) is larger than upstream-connections-max ({})",
            limits.upstream_idle_max, limits.upstream_connections_max
        );
        let default = crate::config::Limits::default();
        let name = if limits.upstream_idle_max == default.upstream_idle_max {
            "upstream-connections-max"
        } else {
            "upstream-idle-max"
        };
        out.error(
            Code::LimitConflict,
            path(name),
            message,
            "idle connections are part of all",
        );
    }
}
