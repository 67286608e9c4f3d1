//! Active health checks.

use super::Findings;
use crate::{
    config::{path::FieldPath, report::Code, units::show_duration},
    model::{
        HealthCheck, Policy,
        health::{HttpProbe, Probe},
    },
};

pub(super) fn policy(policy: &Policy, item: &FieldPath, out: &mut Findings) {
    for (at, check) in policy.health_checks.iter().enumerate() {
        let path = item.key("health-checks").at(at);
        if let Some(first) = policy.health_checks[..at]
            .iter()
            .position(|other| (&other.probe, other.port) == (&check.probe, check.port))
        {
            let message = format!("asks the same as health-checks[{first}]");
            out.error(Code::Duplicate, path.clone(), message, "each question once");
        }
        intervals(check, &path, out);
        if let Probe::Http(probe) = &check.probe {
            statuses(probe, &path.key("http"), out);
        }
    }
}

fn intervals(check: &HealthCheck, path: &FieldPath, out: &mut Findings) {
    if check.no_traffic_interval < check.interval {
        let message = format!(
            "`{}` is shorter than `interval`, {}",
            show_duration(check.no_traffic_interval),
            show_duration(check.interval)
        );
        let path = path.key("no-traffic-interval");
        // By its default it is no slip of anybody's.
        if check.no_traffic_interval != HealthCheck::default().no_traffic_interval {
            out.warning(Code::NoEffect, path, message, "at least `interval`");
        }
    }
}

fn statuses(probe: &HttpProbe, path: &FieldPath, out: &mut Findings) {
    let well = |status: &(u16, u16)| match probe.statuses.as_slice() {
        [] => *status == (200, 200),
        statuses => statuses.contains(status),
    };
    for (at, status) in probe.retriable.iter().enumerate() {
        if well(status) {
            let message = format!("{} is well already", status.0);
            out.error(
                Code::Conflict,
                path.key("retriable").at(at),
                message,
                "a status that is not among `statuses`",
            );
        }
    }
}
