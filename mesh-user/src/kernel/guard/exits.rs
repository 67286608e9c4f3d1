//! The ways out of a workload's namespace, seen from both sides.
//!
//! What leads out is a device that is linked to another namespace (a veth, macvlan, ipvlan ...) or
//! one that is real. Devices that a namespace makes for itself (dummy, tun, bridge, tunnels) send
//! through one of those.

use std::{
    collections::BTreeMap,
    io,
    os::fd::{AsRawFd, BorrowedFd},
};

use netlink_packet_core::{NLM_F_ACK, NLM_F_DUMP};
use netlink_packet_route::{
    RouteNetlinkMessage,
    link::{InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkMessage},
    nsid::{NsidAttribute, NsidMessage},
};

use super::super::{route::Netlink, sockets};

/// What leads out of one namespace.
#[derive(Debug, Default, PartialEq, Eq)]
pub(in super::super) struct Exits {
    /// Indexes, on the node, of the other ends.
    pub(in super::super) guardable: Vec<u32>,
    /// The others, with their names and why.
    pub(in super::super) open: Vec<String>,
}

/// The interfaces of the agent's own namespace, read once for many workloads.
#[derive(Debug, Default)]
pub(in super::super) struct NodeLinks(Option<Vec<Interface>>);

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Interface {
    index: u32,
    name: String,
    loopback: bool,
    /// A kind that the kernel makes; a real device has none.
    kind: Option<InfoKind>,
    /// The interface that it is linked to, and the number of that one's namespace when it is another.
    peer: Option<u32>,
    peer_netns: Option<i32>,
}

impl NodeLinks {
    /// The ways out of a namespace.
    pub(in super::super) fn exits(&mut self, netns: BorrowedFd<'_>) -> io::Result<Exits> {
        let inside = sockets::inside(netns, || interfaces(&mut Netlink::open()?))??;
        let mut netlink = Netlink::open()?;
        // The dump first: it gives every namespace that a device points to a number.
        let node = match &mut self.0 {
            Some(node) => node,
            empty => empty.insert(interfaces(&mut netlink)?),
        };
        let number = number_of(&mut netlink, netns)?;
        Ok(exits(&inside, node, number))
    }
}

/// By the node's word for what is a peer: a workload names its own side as it likes.
fn exits(inside: &[Interface], node: &[Interface], number: Option<i32>) -> Exits {
    let peers: BTreeMap<u32, u32> = node
        .iter()
        .filter(|link| number.is_some() && link.peer_netns == number)
        .filter(|link| link.kind == Some(InfoKind::Veth))
        .filter_map(|link| Some((link.peer?, link.index)))
        .collect();
    let mut found = Exits {
        guardable: peers.values().copied().collect(),
        open: Vec::new(),
    };
    for link in inside {
        let leads_out = link.kind.is_none() || link.peer_netns.is_some();
        if link.loopback || !leads_out || peers.contains_key(&link.index) {
            continue;
        }
        // A pair whose other end is in a namespace of the workload's own, or another workload's.
        let kind = match &link.kind {
            Some(InfoKind::Veth) => "a veth whose other end is not on the node".to_owned(),
            Some(kind) => format!("{kind:?}").to_lowercase(),
            None => "a real device".to_owned(),
        };
        found.open.push(format!("{} is {kind}", link.name));
    }
    found
}

fn interfaces(netlink: &mut Netlink) -> io::Result<Vec<Interface>> {
    let request = RouteNetlinkMessage::GetLink(LinkMessage::default());
    let dump = netlink.ask(request, NLM_F_DUMP)?;
    let links = dump.into_iter().filter_map(|message| match message {
        RouteNetlinkMessage::NewLink(link) => Some(interface(link)),
        _ => None,
    });
    Ok(links.collect())
}

fn interface(message: LinkMessage) -> Interface {
    let mut found = Interface {
        index: message.header.index,
        loopback: message.header.flags.contains(LinkFlags::Loopback),
        ..Interface::default()
    };
    for attribute in message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => found.name = name,
            LinkAttribute::Link(peer) => found.peer = Some(peer),
            LinkAttribute::LinkNetNsId(number) => found.peer_netns = Some(number),
            LinkAttribute::LinkInfo(infos) => {
                found.kind = infos.into_iter().find_map(|info| match info {
                    LinkInfo::Kind(kind) => Some(kind),
                    _ => None,
                });
            }
            _ => {}
        }
    }
    found
}

/// The number that the calling thread's namespace has for another; `None`: no device points there.
fn number_of(netlink: &mut Netlink, netns: BorrowedFd<'_>) -> io::Result<Option<i32>> {
    let mut message = NsidMessage::default();
    let fd = netns.as_raw_fd() as u32;
    message.attributes.push(NsidAttribute::Fd(fd));
    let answers = netlink.ask(RouteNetlinkMessage::GetNsId(message), NLM_F_ACK)?;
    Ok(answers.into_iter().find_map(|answer| match answer {
        RouteNetlinkMessage::NewNsId(message) => {
            message
                .attributes
                .into_iter()
                .find_map(|attribute| match attribute {
                    NsidAttribute::Id(number) => (number >= 0).then_some(number),
                    _ => None,
                })
        }
        _ => None,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(index: u32, kind: Option<InfoKind>, peer: Option<(u32, i32)>) -> Interface {
        Interface {
            index,
            name: format!("i{index}"),
            loopback: false,
            kind,
            peer: peer.map(|(peer, _)| peer),
            peer_netns: peer.map(|(_, number)| number),
        }
    }

    /// Without it: a pod with a macvlan is called guarded, and is not.
    #[test]
    fn exits_are_veths_on_the_node_and_all_else_that_leads_out_is_named() {
        let node = [
            link(1, None, None),
            link(7, Some(InfoKind::Veth), Some((2, 4))),
            link(8, Some(InfoKind::Veth), Some((2, 5))),
            link(9, Some(InfoKind::Bridge), None),
        ];
        let inside = [
            Interface {
                loopback: true,
                ..link(1, None, None)
            },
            link(2, Some(InfoKind::Veth), Some((7, 0))),
            link(3, Some(InfoKind::Dummy), None),
            link(4, Some(InfoKind::Tun), None),
            link(5, Some(InfoKind::MacVlan), Some((1, 0))),
            link(6, None, None),
            link(7, Some(InfoKind::Veth), Some((3, 9))),
            // Both ends inside.
            link(8, Some(InfoKind::Veth), None),
        ];
        let found = exits(&inside, &node, Some(4));
        assert_eq!(found.guardable, [7]);
        assert_eq!(
            found.open,
            [
                "i5 is macvlan",
                "i6 is a real device",
                "i7 is a veth whose other end is not on the node"
            ]
        );
        assert_eq!(exits(&inside, &node, None).guardable, Vec::<u32>::new());
    }
}
