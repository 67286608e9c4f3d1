//! The shield's settings.

use std::path::PathBuf;

use super::{Reader, reader};
use crate::{
    config::{
        fields::SHIELD_DENY,
        text::cidr,
        tree::{Node, Value},
        units,
    },
    model::shield::{Deny, Mode, Rate, Shield},
};

/// None: the file has no `shield`.
pub(super) fn shield(root: Reader<'_>) -> Option<Shield> {
    root.has("shield").then(|| read(root.object("shield")))
}

fn read(from: Reader<'_>) -> Shield {
    let default = Shield::default();
    let texts = |name| from.nodes(name).iter().filter_map(reader::text);
    Shield {
        interfaces: if from.has("interfaces") {
            texts("interfaces").map(str::to_owned).collect()
        } else {
            default.interfaces
        },
        mode: match from.text("mode") {
            Some("native") => Mode::Native,
            Some("force-native") => Mode::ForceNative,
            Some("tc") => Mode::Tc,
            Some("off") => Mode::Off,
            _ => Mode::Auto,
        },
        allow: texts("allow").filter_map(cidr).collect(),
        deny: from.nodes("deny").iter().filter_map(deny).collect(),
        deny_files: texts("deny-files").map(PathBuf::from).collect(),
        syn_rate: rate(from.object("syn-rate")),
        connection_rate: rate(from.object("connection-rate")),
        drop_bogus: from.text("bogus-flags") != Some("pass"),
    }
}

fn deny(node: &Node) -> Option<Deny> {
    if !matches!(node.value, Value::Map(_)) {
        return Some(Deny {
            cidr: cidr(reader::text(node)?)?,
            rule: None,
        });
    }
    let from = Reader::new(node, &SHIELD_DENY);
    Some(Deny {
        cidr: cidr(from.text("cidr")?)?,
        rule: from.text("rule-name").map(str::to_owned),
    })
}

fn rate(from: Reader<'_>) -> Option<Rate> {
    const BURST_MAX: u32 = 1_000_000;
    let (count, per) = from.text("rate").and_then(units::rate)?;
    let usual = u32::try_from(count).unwrap_or(BURST_MAX).min(BURST_MAX);
    Some(Rate {
        count,
        per,
        burst: from.int("burst").unwrap_or(usual),
    })
}
