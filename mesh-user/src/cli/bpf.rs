//! `mesh bpf ...`: what is in the pinned maps, with or without an agent.

use anyhow::Context as _;
use serde_json::Value;

use super::{
    Exit, Io,
    args::{BpfVerb, ListVerb, OutputArgs},
    columns as c, output,
    output::Column,
};
use crate::{
    admin::document,
    kernel::{Instance, view::View},
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
    let (columns, document) = read(&view, what)?;
    output::list(io.out, args, columns, &document)?;
    Ok(Exit::Done)
}

fn read(view: &View, what: BpfVerb) -> serde_json::Result<(&'static [Column], Value)> {
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
        BpfVerb::Conns(ListVerb::List) => (
            c::BPF_CONNS,
            document::list("ConnectionList", &view.conns())?,
        ),
        BpfVerb::Stats(ListVerb::List) => {
            (c::BPF_STATS, document::list("StatList", &view.stats())?)
        }
        BpfVerb::Maps(ListVerb::List) => (c::BPF_MAPS, document::list("MapList", &view.maps())?),
        BpfVerb::Progs => (c::BPF_PROGS, document::list("ProgramList", &view.progs())?),
    })
}
