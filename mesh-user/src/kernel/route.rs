//! The rule and the routes that turn a marked connection around to `lo`, by netlink. Everything
//! here works on the calling thread's namespace.

use std::{io, net::IpAddr};

use mesh_common::abi::{ROUTE_TABLE, RULE_PREFERENCE};
use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REPLACE, NLM_F_REQUEST, NetlinkMessage,
    NetlinkPayload,
};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    address::{AddressAttribute, AddressHeaderFlags, AddressMessage},
    route::{RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType},
    rule::{RuleAction, RuleAttribute, RuleMessage},
};
use netlink_sys::{Socket, protocols::NETLINK_ROUTE};

use super::workload::Sources;

/// How our rule looks, so that it is found again by exactly what it says.
#[derive(Clone, Copy, Debug)]
pub(super) struct Steering {
    pub(super) mark: u32,
    pub(super) mask: u32,
}

/// A request socket of the calling thread's namespace.
pub(super) struct Netlink {
    socket: Socket,
    sequence: u32,
}

impl Netlink {
    pub(super) fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        Ok(Self {
            socket,
            sequence: 0,
        })
    }

    /// Sends a request and collects the answers up to the acknowledgement or the end of the dump.
    pub(super) fn ask(
        &mut self,
        request: RouteNetlinkMessage,
        flags: u16,
    ) -> io::Result<Vec<RouteNetlinkMessage>> {
        self.sequence += 1;
        let mut message = NetlinkMessage::from(request);
        message.header.flags = NLM_F_REQUEST | flags;
        message.header.sequence_number = self.sequence;
        message.finalize();
        let mut buffer = vec![0; message.buffer_len()];
        message.serialize(&mut buffer);
        self.socket.send(&buffer, 0)?;
        let mut answers = Vec::new();
        loop {
            let (bytes, _) = self.socket.recv_from_full()?;
            let mut rest = bytes.as_slice();
            while !rest.is_empty() {
                let answer = NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest)
                    .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
                // Messages are padded to 4 bytes; a length of 0 would never end.
                let length = (answer.header.length as usize).next_multiple_of(4).max(4);
                rest = rest.get(length..).unwrap_or_default();
                match answer.payload {
                    NetlinkPayload::InnerMessage(inner) => answers.push(inner),
                    NetlinkPayload::Done(_) => return Ok(answers),
                    NetlinkPayload::Error(error) => {
                        return match error.code {
                            None => Ok(answers),
                            Some(_) => Err(error.to_io()),
                        };
                    }
                    _ => {}
                }
            }
        }
    }

    /// Addresses of this namespace that packets can come from: no loopback, no link-local ones, no
    /// tentative ones. In the kernel's order: the first of a family is what a connection leaves
    /// with.
    pub(super) fn addresses(&mut self) -> io::Result<Vec<IpAddr>> {
        let dump = self.ask(
            RouteNetlinkMessage::GetAddress(AddressMessage::default()),
            NLM_F_DUMP,
        )?;
        let mut found = Vec::new();
        for message in dump {
            let RouteNetlinkMessage::NewAddress(message) = message else {
                continue;
            };
            let unusable = AddressHeaderFlags::Tentative | AddressHeaderFlags::Dadfailed;
            // Optimistic addresses are tentative ones that may be used already.
            if message.header.flags.intersects(unusable)
                && !message
                    .header
                    .flags
                    .contains(AddressHeaderFlags::Optimistic)
            {
                continue;
            }
            if let Some(ip) = own_address(&message)
                && usable(ip)
                && !found.contains(&ip)
            {
                found.push(ip);
            }
        }
        Ok(found)
    }

    /// Brings rule and route of both families up, or corrects the routes.
    ///
    /// A family without a source address (none, or tentative still) gets the rule too, with a route
    /// that refuses: a marked connection must not find its way past us before its address is known.
    pub(super) fn steer(&mut self, steering: Steering, sources: Sources) -> io::Result<()> {
        for (family, source) in [
            (AddressFamily::Inet, sources.v4),
            (AddressFamily::Inet6, sources.v6),
        ] {
            match self.steer_family(steering, family, source) {
                // The namespace has no such family: nothing can connect by it either.
                Err(error) if source.is_none() && no_family(&error) => {}
                other => other?,
            }
        }
        Ok(())
    }

    fn steer_family(
        &mut self,
        steering: Steering,
        family: AddressFamily,
        source: Option<IpAddr>,
    ) -> io::Result<()> {
        let route = match source {
            Some(source) => local_default(family, Some(source)),
            None => refusing_default(family),
        };
        let route = RouteNetlinkMessage::NewRoute(route);
        self.ask(route, NLM_F_ACK | NLM_F_CREATE | NLM_F_REPLACE)?;
        let rule = RouteNetlinkMessage::NewRule(mark_rule(family, steering));
        match self.ask(rule, NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL) {
            // Left by an agent before us.
            Err(error) if error.raw_os_error() == Some(libc::EEXIST) => Ok(()),
            other => other.map(drop),
        }
    }

    /// Takes rule and route of one family away; what was there.
    pub(super) fn unsteer(&mut self, steering: Steering, v6: bool) -> io::Result<Vec<String>> {
        let family = if v6 {
            AddressFamily::Inet6
        } else {
            AddressFamily::Inet
        };
        let name = if v6 { "IPv6" } else { "IPv4" };
        let mut removed = Vec::new();
        let rule = RouteNetlinkMessage::DelRule(mark_rule(family, steering));
        if gone(self.ask(rule, NLM_F_ACK))? {
            removed.push(format!("{name} rule {RULE_PREFERENCE}"));
        }
        // One of them stands. IPv6 does not tell them apart.
        for route in [local_default(family, None), refusing_default(family)] {
            let route = RouteNetlinkMessage::DelRoute(route);
            if gone(self.ask(route, NLM_F_ACK))? {
                removed.push(format!("{name} route in table {ROUTE_TABLE}"));
            }
        }
        Ok(removed)
    }
}

/// What the kernel says without IPv6, or where `disable_ipv6` took it from the interface.
fn no_family(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EAFNOSUPPORT | libc::EOPNOTSUPP | libc::EACCES | libc::ENODEV)
    )
}

/// Whether something was removed; «not there» is fine.
fn gone(result: io::Result<Vec<RouteNetlinkMessage>>) -> io::Result<bool> {
    match result {
        Ok(_) => Ok(true),
        Err(error) => match error.raw_os_error() {
            Some(libc::ENOENT | libc::ESRCH | libc::EAFNOSUPPORT | libc::EOPNOTSUPP) => Ok(false),
            _ => Err(error),
        },
    }
}

/// An address that may stand in `POD_BY_ADDR`.
pub(super) fn usable(ip: IpAddr) -> bool {
    let addr = mesh_common::addr::Addr::from_ip(ip);
    !(addr.is_loopback() || addr.is_link_local() || addr.is_unspecified())
}

/// IPv4 has the interface's own address in `Local` (`Address` is the peer on point-to-point
/// links), IPv6 in `Address` unless there is a peer.
fn own_address(message: &AddressMessage) -> Option<IpAddr> {
    let mut address = None;
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Local(ip) => return Some(*ip),
            AddressAttribute::Address(ip) => address = Some(*ip),
            _ => {}
        }
    }
    address
}

/// `local default dev lo table T src ADDRESS`. Without `src` the kernel would take the destination
/// as the source.
fn local_default(family: AddressFamily, source: Option<IpAddr>) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = family;
    // The number doesn't fit: it stands in the attribute.
    message.header.table = RouteHeader::RT_TABLE_UNSPEC;
    message.header.kind = RouteType::Local;
    message.header.scope = if family == AddressFamily::Inet {
        RouteScope::Host
    } else {
        RouteScope::Universe
    };
    message.header.protocol = RouteProtocol::Static;
    message.attributes.push(RouteAttribute::Table(ROUTE_TABLE));
    // `lo` is the first interface of every namespace.
    message.attributes.push(RouteAttribute::Oif(1));
    if let Some(source) = source {
        message
            .attributes
            .push(RouteAttribute::PrefSource(source.into()));
    }
    message
}

/// `unreachable default table T`: EHOSTUNREACH at once.
fn refusing_default(family: AddressFamily) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = family;
    message.header.table = RouteHeader::RT_TABLE_UNSPEC;
    message.header.kind = RouteType::Unreachable;
    message.header.scope = RouteScope::Universe;
    message.header.protocol = RouteProtocol::Static;
    message.attributes.push(RouteAttribute::Table(ROUTE_TABLE));
    message
}

/// `fwmark MARK/MASK lookup T`, after the local table: a workload that dials itself stays with
/// itself.
fn mark_rule(family: AddressFamily, steering: Steering) -> RuleMessage {
    let mut message = RuleMessage::default();
    message.header.family = family;
    message.header.action = RuleAction::ToTable;
    message
        .attributes
        .push(RuleAttribute::Priority(RULE_PREFERENCE));
    message
        .attributes
        .push(RuleAttribute::FwMark(steering.mark));
    message
        .attributes
        .push(RuleAttribute::FwMask(steering.mask));
    message.attributes.push(RuleAttribute::Table(ROUTE_TABLE));
    message
}
