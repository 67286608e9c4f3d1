//! Settings of the agent.

use std::{net::SocketAddr, path::PathBuf};

use super::{Reader, reader, shield};
use crate::config::{AccessLog, AgentConfig, Limits, LogFilter, LogFormat, MarkBits, UnknownNetns};

pub(super) fn agent(root: Reader<'_>) -> AgentConfig {
    let agent = root.object("agent");
    let default = AgentConfig::default();
    AgentConfig {
        attach: root
            .nodes("attach")
            .iter()
            .filter_map(reader::text)
            .map(PathBuf::from)
            .collect(),
        workers: agent.int("workers").unwrap_or(default.workers),
        unknown_netns: agent
            .text("unknown-netns")
            .and_then(unknown_netns)
            .unwrap_or(default.unknown_netns),
        metrics: match agent.text("metrics") {
            None => default.metrics,
            Some("off") => None,
            Some(address) => address.parse::<SocketAddr>().ok(),
        },
        access_log: access_log(agent.object("access-log")),
        limits: limits(agent.object("limits")),
        kubelet_cgroup: agent.text("kubelet-cgroup").map(PathBuf::from),
        drain: agent.duration("drain").unwrap_or(default.drain),
        shield: shield::shield(root),
        marks: marks(agent.object("marks")),
    }
}

fn access_log(log: Reader<'_>) -> AccessLog {
    AccessLog {
        format: log.text("format").and_then(log_format).unwrap_or_default(),
        filter: log.text("filter").and_then(log_filter).unwrap_or_default(),
        path: log.text("path").map(PathBuf::from),
    }
}

fn marks(marks: Reader<'_>) -> MarkBits {
    let default = MarkBits::default();
    MarkBits {
        capture_bit: marks.int("capture-bit").unwrap_or(default.capture_bit),
        agent_bit: marks.int("agent-bit").unwrap_or(default.agent_bit),
    }
}

fn unknown_netns(word: &str) -> Option<UnknownNetns> {
    match word {
        "pass" => Some(UnknownNetns::Pass),
        "refuse" => Some(UnknownNetns::Refuse),
        _ => None,
    }
}

fn log_format(word: &str) -> Option<LogFormat> {
    match word {
        "envoy" => Some(LogFormat::Envoy),
        "json" => Some(LogFormat::Json),
        "logfmt" => Some(LogFormat::Logfmt),
        _ => None,
    }
}

fn log_filter(word: &str) -> Option<LogFilter> {
    match word {
        "off" => Some(LogFilter::Off),
        "errors" => Some(LogFilter::Errors),
        "all" => Some(LogFilter::All),
        _ => None,
    }
}

fn limits(limits: Reader<'_>) -> Limits {
    let default = Limits::default();
    let time = |name, otherwise| limits.duration(name).unwrap_or(otherwise);
    Limits {
        head_bytes_max: limits
            .int("head-bytes-max")
            .unwrap_or(default.head_bytes_max),
        head_fields_max: limits
            .int("head-fields-max")
            .unwrap_or(default.head_fields_max),
        target_bytes_max: limits
            .int("target-bytes-max")
            .unwrap_or(default.target_bytes_max),
        header_timeout: time("header-timeout", default.header_timeout),
        body_timeout: time("body-timeout", default.body_timeout),
        keep_alive_timeout: time("keep-alive-timeout", default.keep_alive_timeout),
        detect_timeout: time("detect-timeout", default.detect_timeout),
        h2_streams_max: limits
            .int("h2-streams-max")
            .unwrap_or(default.h2_streams_max),
        h2_reset_streams_max: limits
            .int("h2-reset-streams-max")
            .unwrap_or(default.h2_reset_streams_max),
        h2_frame_bytes_max: limits
            .int("h2-frame-bytes-max")
            .unwrap_or(default.h2_frame_bytes_max),
        workload_connections_max: limits
            .int("workload-connections-max")
            .unwrap_or(default.workload_connections_max),
        upstream_connections_max: limits
            .int("upstream-connections-max")
            .unwrap_or(default.upstream_connections_max),
        upstream_idle_max: limits
            .int("upstream-idle-max")
            .unwrap_or(default.upstream_idle_max),
        upstream_idle_timeout: time("upstream-idle-timeout", default.upstream_idle_timeout),
        replay_bytes_max: limits
            .int("replay-bytes-max")
            .unwrap_or(default.replay_bytes_max),
        downstream_age_max: time("downstream-age-max", default.downstream_age_max),
        downstream_age_jitter: limits
            .int("downstream-age-jitter")
            .unwrap_or(default.downstream_age_jitter),
        overload_header: limits.text("overload-header").map(str::to_ascii_lowercase),
    }
}
