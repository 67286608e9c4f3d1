//! `mesh bpf ...`: what is in the pinned maps, with or without an agent.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
};

use anyhow::Context as _;
use serde_json::Value;

use super::{
    Exit, Io,
    args::{BpfVerb, ConnsArgs, ConnsSort, ListVerb, OutputArgs},
    client::{Agent, ClientError},
    columns as c, output,
    output::Column,
};
use crate::{
    admin::document,
    kernel::{
        Instance,
        view::{ConnRow, View},
    },
};

/// Prints one list.
pub(super) fn list(
    instance: &Instance,
    what: BpfVerb,
    args: OutputArgs,
    io: &mut Io<'_>,
) -> anyhow::Result<Exit> {
    let view = View::open(instance).with_context(|| {
        format!(
            "can't read the pinned maps of instance {:?}",
            instance.name()
        )
    })?;
    let (columns, document) = read(&view, instance, what, io)?;
    output::list(io.out, args, columns, &document)?;
    Ok(Exit::Done)
}

/// Live connections: the maps, TCP, and what the agent knows by name, if one runs.
fn conns(
    view: &View,
    instance: &Instance,
    which: &ConnsArgs,
    io: &mut Io<'_>,
) -> anyhow::Result<Vec<ConnRow>> {
    let mut rows = view.conns();
    match Names::ask(&Agent::of(instance)) {
        Ok(names) => names.give(&mut rows),
        Err(error) => {
            let by_name = which.service.as_deref().filter(|name| !is_address(name));
            if let Some(name) = by_name {
                return Err(error)
                    .with_context(|| format!("--service {name}: names are the agent's"));
            }
            io.say(&format!("note: no SERVICE and VERSION: {error}"));
        }
    }
    rows.retain(|row| wanted(row, which));
    for failed in view.measure(&mut rows) {
        io.say(&format!("note: no bytes and RTT of {failed}"));
    }
    sort(&mut rows, which.sort);
    Ok(rows)
}

fn is_address(text: &str) -> bool {
    text.parse::<IpAddr>().is_ok() || text.parse::<SocketAddr>().is_ok()
}

fn wanted(row: &ConnRow, which: &ConnsArgs) -> bool {
    let named = |name: &str, wanted: &str| {
        name == wanted || (!wanted.contains('/') && name == format!("default/{wanted}"))
    };
    let workload = which.workload.as_deref();
    if workload.is_some_and(|wanted| !named(&row.workload, wanted)) {
        return false;
    }
    let Some(service) = which.service.as_deref() else {
        return true;
    };
    let asked = row.asked.unwrap_or(row.destination);
    asked.to_string() == service
        || asked.ip().to_string() == service
        || row
            .service
            .as_deref()
            .is_some_and(|name| named(name, service))
}

fn sort(rows: &mut [ConnRow], by: ConnsSort) {
    let bytes = |row: &ConnRow| row.bytes_out.unwrap_or(0) + row.bytes_in.unwrap_or(0);
    let rtt = |row: &ConnRow| row.rtt_ms.unwrap_or(-1.0);
    match by {
        // The view's own order.
        ConnsSort::Workload => {}
        ConnsSort::Age => rows.sort_by(|a, b| b.age_s.total_cmp(&a.age_s)),
        ConnsSort::Bytes => rows.sort_by_key(|row| std::cmp::Reverse(bytes(row))),
        ConnsSort::Rtt => rows.sort_by(|a, b| rtt(b).total_cmp(&rtt(a))),
    }
}

/// What the agent knows by name.
struct Names {
    services: HashMap<SocketAddr, String>,
    versions: HashMap<SocketAddr, String>,
}

impl Names {
    fn ask(agent: &Agent) -> Result<Self, ClientError> {
        let mut names = Self {
            services: HashMap::new(),
            versions: HashMap::new(),
        };
        let rows = |document: &Value| document["items"].as_array().cloned().unwrap_or_default();
        for row in rows(&agent.get("/config/services")?) {
            let port = row["port"]
                .as_u64()
                .and_then(|port| u16::try_from(port).ok());
            let addresses = row["addresses"].as_array().into_iter().flatten();
            for addr in addresses.filter_map(|addr| addr.as_str()?.parse::<IpAddr>().ok()) {
                let name = format!(
                    "{}/{}",
                    output::cell(&row["namespace"]),
                    output::cell(&row["service"])
                );
                names
                    .services
                    .insert(SocketAddr::new(addr, port.unwrap_or(0)), name);
            }
        }
        for row in rows(&agent.get("/config/endpoints")?) {
            let address = row["address"].as_str().and_then(|text| text.parse().ok());
            if let (Some(address), Some(false)) =
                (address, row["versions"].as_array().map(Vec::is_empty))
            {
                names
                    .versions
                    .insert(address, output::cell(&row["versions"]));
            }
        }
        Ok(names)
    }

    fn give(&self, rows: &mut [ConnRow]) {
        for row in rows {
            row.service = row
                .asked
                .and_then(|asked| self.services.get(&asked).cloned());
            if row.version.is_none() {
                row.version = row.endpoint.and_then(|to| self.versions.get(&to).cloned());
            }
        }
    }
}

fn read(
    view: &View,
    instance: &Instance,
    what: BpfVerb,
    io: &mut Io<'_>,
) -> anyhow::Result<(&'static [Column], Value)> {
    Ok(match what {
        BpfVerb::Redirect(ListVerb::List) => (
            c::BPF_REDIRECT,
            document::list("RedirectList", &view.redirects())?,
        ),
        BpfVerb::Workloads(ListVerb::List) => (
            c::BPF_WORKLOADS,
            document::list("BpfWorkloadList", &view.workloads())?,
        ),
        BpfVerb::Services(ListVerb::List) => (
            c::BPF_SERVICES,
            document::list("BpfServiceList", &view.services())?,
        ),
        BpfVerb::Endpoints(ListVerb::List) => (
            c::BPF_ENDPOINTS,
            document::list("BpfEndpointList", &view.endpoints())?,
        ),
        BpfVerb::Inbound(ListVerb::List) => (
            c::BPF_INBOUND,
            document::list("InboundList", &view.inbound())?,
        ),
        BpfVerb::Conns { verb: _, which } => {
            let rows = conns(view, instance, &which, io)?;
            (c::BPF_CONNS, document::list("ConnectionList", &rows)?)
        }
        BpfVerb::Stats(ListVerb::List) => {
            (c::BPF_STATS, document::list("StatList", &view.stats())?)
        }
        BpfVerb::Maps(ListVerb::List) => (c::BPF_MAPS, document::list("MapList", &view.maps())?),
        BpfVerb::Progs => (c::BPF_PROGS, document::list("ProgramList", &view.progs())?),
    })
}
