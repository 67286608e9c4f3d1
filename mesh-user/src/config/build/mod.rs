//! A checked tree to values.
//!
//! Every problem of form is reported already (`walk`), so what does not fit is replaced here by a
//! placeholder in silence: items keep their numbers, and the checks of meaning (`check`) can still
//! run over the rest of the file. A configuration with a placeholder never leaves this module's
//! caller, since the walk has refused it.

use super::{Config, collect::Collector, fields::ROOT, tree::Node};
use crate::model::{List, Model};

mod actions;
mod agent;
mod balance;
mod health;
mod inbound;
mod policies;
mod reader;
mod resilience;
mod rules;
mod services;
mod shield;
mod tls;

use reader::Reader;

/// Reads the file. References to services that do not exist are reported to `out`.
pub(crate) fn config(root: &Node, out: &mut Collector) -> Config {
    let root = Reader::new(root, &ROOT);
    let services: Vec<_> = root.items("services").map(services::service).collect();
    let index = rules::Index::new(&services);
    let mut model = Model {
        rules: rules::rules(root, &index, &services, out).into(),
        policies: policies::policies(root, &index, &services, out).into(),
        workloads: root.items("workloads").map(services::workload).collect(),
        outbound: root.items("outbound").map(services::outbound).collect(),
        inbound: inbound::rules(root),
        services: List::new(),
        locality: root
            .object("agent")
            .text("locality")
            .unwrap_or_default()
            .to_owned(),
    };
    model.services = services.into();
    let agent = agent::agent(root);
    Config { agent, model }
}
