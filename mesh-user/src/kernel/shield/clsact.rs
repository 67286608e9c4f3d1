//! Kernels before 6.6 have no tcx: a filter of the qdisc clsact takes its place.
//!
//! A filter is no link: it is found again by its name, which carries the instance. The qdisc is left
//! where others use it.

use std::{io, os::fd::AsRawFd};

use netlink_packet_core::{NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::{
    RouteNetlinkMessage,
    tc::{TcAttribute, TcBpfFlags, TcFilterBpf, TcFilterBpfOption, TcHandle, TcMessage, TcOption},
};

use super::super::{Instance, route::Netlink};

/// Where our filter stands among others: they may stand before and behind it.
const PRIORITY: u32 = 1_512;
/// `ETH_P_ALL` in network order.
const ALL: u32 = 0x0003_u16.to_be() as u32;
const INGRESS: TcHandle = TcHandle {
    major: u16::MAX,
    minor: TcHandle::MIN_INGRESS,
};

fn name(instance: &Instance) -> String {
    format!("mesh-shield-{}", instance.name())
}

fn filter(interface: u32, handle: TcHandle) -> TcMessage {
    let mut message = TcMessage::with_index(interface as i32);
    message.header.parent = INGRESS;
    message.header.handle = handle;
    message.header.info = PRIORITY << 16 | ALL;
    message
}

/// Puts the program there, in the place of one that we left.
pub(super) fn attach(
    netlink: &mut Netlink,
    instance: &Instance,
    interface: u32,
    program: &impl AsRawFd,
) -> io::Result<()> {
    let mut qdisc = TcMessage::with_index(interface as i32);
    qdisc.header.parent = TcHandle::CLSACT;
    qdisc.header.handle = TcHandle {
        major: u16::MAX,
        minor: 0,
    };
    qdisc
        .attributes
        .push(TcAttribute::Kind("clsact".to_owned()));
    let made = netlink.ask(
        RouteNetlinkMessage::NewQueueDiscipline(qdisc),
        NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL,
    );
    if let Err(error) = made
        && error.raw_os_error() != Some(libc::EEXIST)
    {
        return Err(error);
    }
    let ours = find(netlink, instance, interface)?;
    let mut message = filter(interface, ours.unwrap_or(TcHandle::UNSPEC));
    let options = vec![
        // Descriptors are never negative.
        TcOption::Bpf(TcFilterBpfOption::ProgFd(program.as_raw_fd() as u32)),
        TcOption::Bpf(TcFilterBpfOption::ProgName(name(instance))),
        TcOption::Bpf(TcFilterBpfOption::Flags(TcBpfFlags::DirectAction)),
    ];
    message
        .attributes
        .push(TcAttribute::Kind(TcFilterBpf::KIND.to_owned()));
    message.attributes.push(TcAttribute::Options(options));
    let flags = match ours {
        Some(_) => NLM_F_REPLACE,
        None => NLM_F_EXCL,
    };
    netlink
        .ask(
            RouteNetlinkMessage::NewTrafficFilter(message),
            NLM_F_ACK | NLM_F_CREATE | flags,
        )
        .map(drop)
}

/// Removes our filter; whether there was one.
pub(super) fn detach(
    netlink: &mut Netlink,
    instance: &Instance,
    interface: u32,
) -> io::Result<bool> {
    let Some(handle) = find(netlink, instance, interface)? else {
        return Ok(false);
    };
    let mut message = filter(interface, handle);
    message
        .attributes
        .push(TcAttribute::Kind(TcFilterBpf::KIND.to_owned()));
    netlink.ask(RouteNetlinkMessage::DelTrafficFilter(message), NLM_F_ACK)?;
    Ok(true)
}

/// The handle of our filter.
pub(super) fn find(
    netlink: &mut Netlink,
    instance: &Instance,
    interface: u32,
) -> io::Result<Option<TcHandle>> {
    let mut question = TcMessage::with_index(interface as i32);
    question.header.parent = INGRESS;
    let answers = match netlink.ask(RouteNetlinkMessage::GetTrafficFilter(question), NLM_F_DUMP) {
        // No such qdisc.
        Err(error) if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::ENOENT)) => {
            return Ok(None);
        }
        answers => answers?,
    };
    let name = name(instance);
    let ours = |option: &TcOption| matches!(option, TcOption::Bpf(TcFilterBpfOption::ProgName(found)) if *found == name);
    Ok(answers.into_iter().find_map(|answer| {
        let RouteNetlinkMessage::NewTrafficFilter(message) = answer else {
            return None;
        };
        let named = message.attributes.iter().any(|attribute| {
            matches!(attribute, TcAttribute::Options(options) if options.iter().any(ours))
        });
        named.then_some(message.header.handle)
    }))
}

/// Numbers of the interfaces of this namespace that have our filter.
pub(super) fn everywhere(netlink: &mut Netlink, instance: &Instance) -> io::Result<Vec<u32>> {
    let answers = netlink.ask(
        RouteNetlinkMessage::GetLink(netlink_packet_route::link::LinkMessage::default()),
        NLM_F_DUMP,
    )?;
    let mut found = Vec::new();
    for answer in answers {
        if let RouteNetlinkMessage::NewLink(message) = answer
            && find(netlink, instance, message.header.index)?.is_some()
        {
            found.push(message.header.index);
        }
    }
    Ok(found)
}
