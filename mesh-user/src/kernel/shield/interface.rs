//! What the kernel says of a network interface of the calling thread's namespace.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    time::Duration,
};

use netlink_packet_core::NLM_F_ACK;
use netlink_packet_route::{
    RouteNetlinkMessage,
    link::{InfoKind, LinkAttribute, LinkInfo, LinkLayerType, LinkMessage, LinkXdp},
};

use super::super::route::Netlink;
use crate::clock::MonoNanos;

/// One interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Interface {
    pub(super) name: String,
    pub(super) index: u32,
    /// `veth`, `bond`, ...; none: hardware, or what stands for it.
    pub(super) kind: Option<String>,
    pub(super) mtu: u32,
    /// Whether its frames begin with an Ethernet header.
    pub(super) ethernet: bool,
    /// Id of the XDP program in its driver, or in the generic hook.
    pub(super) xdp: Option<u32>,
}

impl Interface {
    /// Looks it up by name; `None`: there is none.
    pub(super) fn find(netlink: &mut Netlink, name: &str) -> io::Result<Option<Self>> {
        let mut question = LinkMessage::default();
        question
            .attributes
            .push(LinkAttribute::IfName(name.to_owned()));
        match netlink.ask(RouteNetlinkMessage::GetLink(question), NLM_F_ACK) {
            Ok(answers) => Ok(answers.into_iter().find_map(|answer| match answer {
                RouteNetlinkMessage::NewLink(message) => Some(Self::read(name, message)),
                _ => None,
            })),
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn read(name: &str, message: LinkMessage) -> Self {
        let mut found = Self {
            name: name.to_owned(),
            index: message.header.index,
            kind: None,
            mtu: 0,
            ethernet: message.header.link_layer_type == LinkLayerType::Ether,
            xdp: None,
        };
        for attribute in message.attributes {
            match attribute {
                LinkAttribute::Mtu(mtu) => found.mtu = mtu,
                LinkAttribute::LinkInfo(infos) => found.kind = kind(&infos),
                LinkAttribute::Xdp(parts) => {
                    found.xdp = parts.iter().find_map(|part| match part {
                        LinkXdp::ProgId(id)
                        | LinkXdp::DrvProgId(id)
                        | LinkXdp::SkbProgId(id)
                        | LinkXdp::HwProgId(id)
                            if *id != 0 =>
                        {
                            Some(*id)
                        }
                        _ => None,
                    });
                }
                _ => {}
            }
        }
        found
    }

    /// Whether it is one end of a pair whose other end a pod has.
    pub(super) fn is_pod_pair(&self) -> bool {
        matches!(self.kind.as_deref(), Some("veth" | "netkit"))
    }
}

fn kind(infos: &[LinkInfo]) -> Option<String> {
    infos.iter().find_map(|info| match info {
        LinkInfo::Kind(InfoKind::Other(kind)) => Some(kind.clone()),
        LinkInfo::Kind(kind) => Some(kind.to_string()),
        _ => None,
    })
}

/// How long an interface is an uplink after its default route went: a lease that is renewed, a
/// router that restarts, a routing daemon that exchanges the route must not let a flood in.
const UPLINK_KEPT: Duration = Duration::from_secs(30);

/// Interfaces that have or just had a default route, with when they had it last.
#[derive(Debug, Default)]
pub(super) struct Uplinks(BTreeMap<String, MonoNanos>);

impl Uplinks {
    /// Learns which have one now; those that count.
    pub(super) fn follow(
        &mut self,
        found: BTreeSet<String>,
        now: MonoNanos,
        exists: impl Fn(&str) -> bool,
    ) -> BTreeSet<String> {
        self.0.extend(found.into_iter().map(|name| (name, now)));
        self.0
            .retain(|name, had| now.since(*had) < UPLINK_KEPT && exists(name));
        self.0.keys().cloned().collect()
    }
}

/// Whether there is such an interface.
pub(super) fn exists(name: &str) -> bool {
    nix::net::if_::if_nametoindex(name).is_ok()
}

/// The name of an interface; `None`: it is gone.
pub(super) fn name(index: u32) -> Option<String> {
    let name = nix::net::if_::if_indextoname(index).ok()?;
    name.into_string().ok()
}

/// The interfaces of the default routes, of both families.
pub(super) fn of_default_routes() -> io::Result<BTreeSet<String>> {
    // `thread-self`: the calling thread may be in another namespace than the process.
    let v4 = fs::read_to_string("/proc/thread-self/net/route")?;
    // Without IPv6 there is no such file.
    let v6 = fs::read_to_string("/proc/thread-self/net/ipv6_route").unwrap_or_default();
    Ok(default_v4(&v4).chain(default_v6(&v6)).collect())
}

/// Name, destination, gateway, flags, ..., mask (the eighth field).
fn default_v4(table: &str) -> impl Iterator<Item = String> + '_ {
    table.lines().skip(1).filter_map(|line| {
        let fields: Vec<&str> = line.split_ascii_whitespace().collect();
        let default = fields.get(1) == Some(&"00000000") && fields.get(7) == Some(&"00000000");
        default.then(|| fields[0].to_owned())
    })
}

/// Destination, its length, source, ..., flags, name. The table ends with a default by `lo` that
/// rejects (RTF_REJECT, 0x200).
fn default_v6(table: &str) -> impl Iterator<Item = String> + '_ {
    table.lines().filter_map(|line| {
        let fields: Vec<&str> = line.split_ascii_whitespace().collect();
        let zero = fields.first()?.bytes().all(|byte| byte == b'0') && fields.get(1) == Some(&"00");
        let flags = u32::from_str_radix(fields.get(8)?, 16).ok()?;
        (zero && flags & 0x200 == 0).then(|| (*fields.last().unwrap_or(&"")).to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn default_routes_name_their_interfaces() {
        let v4 = "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\n\
                  eth0\t00000000\t0100000A\t0003\t0\t0\t0\t00000000\t0\n\
                  eth1\t0000000A\t00000000\t0001\t0\t0\t0\t0000FFFF\t0\n\
                  tun0\t00000000\t00000000\t0001\t0\t0\t0\t00000080\t0\n";
        assert_eq!(default_v4(v4).collect::<Vec<_>>(), ["eth0"]);
        let zero = "0".repeat(32);
        let v6 = format!(
            "{zero} 00 {zero} 00 fe800000000000000000000000000001 00000400 00000002 00000000 00000003     eth2\n\
             {zero} 00 {zero} 00 {zero} ffffffff 00000001 00000000 00200200       lo\n\
             fd00{} 40 {zero} 00 {zero} 00000100 00000001 00000000 00000001     eth3\n",
            "0".repeat(28)
        );
        assert_eq!(default_v6(&v6).collect::<Vec<_>>(), ["eth2"]);
    }
}
