//! Two instances on one machine never enrol the same namespace.
//!
//! They share mark bits, rule and route table (docs/decisions/0007): that is sound as long as a
//! namespace follows one of them. What tells is in force there: the `steer` links, whose pins say
//! whose they are. Before the first link stands, the other's records do.

use std::os::fd::OwnedFd;

use super::{
    Instance,
    netns::Identity,
    object::STEER,
    pins::Pins,
    records,
    sys::{self, LinkTarget},
};

/// The other instance that has this namespace; `None`: nobody else has.
///
/// A rule or route that nobody claims, by a link or a record, is what a crash left: it is taken
/// over, not refused, since nobody could release it.
pub(super) fn other(
    instance: &Instance,
    pins: &Pins,
    netns: &OwnedFd,
    identity: &Identity,
) -> Option<String> {
    by_links(pins, netns, identity).or_else(|| by_records(instance, identity))
}

fn by_links(pins: &Pins, netns: &OwnedFd, identity: &Identity) -> Option<String> {
    let attached = sys::steering(netns).unwrap_or_default();
    if attached.is_empty() {
        return None;
    }
    let (own, others) = pinned(pins, identity);
    if !others.is_empty() {
        return others.into_iter().next();
    }
    // Ours by name, pinned nowhere: held by the descriptors of an agent whose pins were removed.
    attached
        .iter()
        .find(|id| !own.contains(id) && is_steer(**id))
        .map(|id| format!("an instance whose pins are gone (program {id})"))
}

/// Programs of ours at the namespace, and the other instances that have a link there.
fn pinned(pins: &Pins, identity: &Identity) -> (Vec<u32>, Vec<String>) {
    let mut own = Vec::new();
    let mut others = Vec::new();
    for (name, found) in pins.every() {
        for (program, _, path) in found.all_links() {
            let info = sys::open_pin(&path).and_then(sys::link_info);
            if let Ok(info) = info
                && program == STEER
                && info.target == LinkTarget::Netns(identity.inode as u32)
            {
                if found.root == pins.root {
                    own.push(info.prog_id);
                } else {
                    others.push(format!("instance {name} ({})", path.display()));
                }
            }
        }
    }
    (own, others)
}

/// Whether another instance has a link at the namespace.
pub(super) fn steered_by_another(pins: &Pins, identity: &Identity) -> bool {
    !pinned(pins, identity).1.is_empty()
}

fn is_steer(id: u32) -> bool {
    aya::programs::loaded_programs()
        .flatten()
        .any(|program| program.id() == id && program.name_as_str() == Some(STEER))
}

fn by_records(instance: &Instance, identity: &Identity) -> Option<String> {
    let holds = |record: &records::Record| {
        record.inode == identity.inode && record.cookie == identity.cookie
    };
    records::of_others(instance)
        .into_iter()
        .find(|(_, records)| records.iter().any(holds))
        .map(|(name, _)| format!("instance {name} (its records say so)"))
}
