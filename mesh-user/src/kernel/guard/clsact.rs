//! `egress_guard` as a filter of the clsact qdisc, where the kernel lacks tcx (below Linux 6.6).
//!
//! A filter belongs to its interface: it stands without an agent and goes with the interface. Ours
//! is known by its preference and handle. The qdisc is shared with everybody who has filters there,
//! so it is made when it is missing and never removed.
//!
//! Messages are written by hand: the netlink packages know neither the qdisc nor the filter.

use std::{
    io,
    os::fd::{AsRawFd, BorrowedFd},
};

use netlink_sys::{Socket, protocols::NETLINK_ROUTE};

const RTM_NEWQDISC: u16 = 36;
const RTM_NEWTFILTER: u16 = 44;
const RTM_DELTFILTER: u16 = 45;
const RTM_GETTFILTER: u16 = 46;
const REQUEST: u16 = 1;
const ACK: u16 = 4;
const REPLACE: u16 = 0x100;
const EXCL: u16 = 0x200;
const CREATE: u16 = 0x400;

const TCA_KIND: u16 = 1;
const TCA_OPTIONS: u16 = 2;
const TCA_BPF_FD: u16 = 6;
const TCA_BPF_NAME: u16 = 7;
const TCA_BPF_FLAGS: u16 = 8;
/// The program's return value is the verdict.
const DIRECT_ACTION: u32 = 1;
const CLSACT: u32 = 0xffff_fff1;
const CLSACT_HANDLE: u32 = 0xffff_0000;
const INGRESS: u32 = 0xffff_fff2;
/// Every protocol, in network order.
const ETH_P_ALL: u32 = (3_u16).to_be() as u32;
/// Before everybody else's; within a preference the newest comes first.
const PREFERENCE: u32 = 1;
/// «mesh».
const HANDLE: u32 = 0x6d65_7368;
const NLMSG_ERROR: u16 = 2;

/// One request with a `struct tcmsg`.
struct Request(Vec<u8>);

impl Request {
    fn new(kind: u16, flags: u16, interface: u32, handle: u32, parent: u32, info: u32) -> Self {
        let mut bytes = vec![0; 4];
        bytes.extend(kind.to_ne_bytes());
        bytes.extend((flags | REQUEST | ACK).to_ne_bytes());
        bytes.extend([0; 8]);
        // Family and padding, then the rest of `tcmsg`.
        bytes.extend([0; 4]);
        for word in [interface, handle, parent, info] {
            bytes.extend(word.to_ne_bytes());
        }
        Self(bytes)
    }

    fn with(mut self, kind: u16, value: &[u8]) -> Self {
        let length = 4 + value.len();
        self.0.extend((length as u16).to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }

    /// Sends it and reads up to the acknowledgement.
    fn send(mut self) -> io::Result<()> {
        let length = self.0.len() as u32;
        self.0[..4].copy_from_slice(&length.to_ne_bytes());
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        socket.send(&self.0, 0)?;
        loop {
            let (bytes, _) = socket.recv_from_full()?;
            if let Some(code) = acknowledged(&bytes) {
                return if code == 0 {
                    Ok(())
                } else {
                    Err(io::Error::from_raw_os_error(-code))
                };
            }
        }
    }
}

/// The code in the acknowledgement among these messages.
fn acknowledged(mut bytes: &[u8]) -> Option<i32> {
    while let Some(head) = bytes.first_chunk::<16>() {
        let length = u32::from_ne_bytes([head[0], head[1], head[2], head[3]]) as usize;
        if u16::from_ne_bytes([head[4], head[5]]) == NLMSG_ERROR {
            return bytes[16..]
                .first_chunk()
                .map(|code| i32::from_ne_bytes(*code));
        }
        bytes = bytes.get(length.next_multiple_of(4).max(16)..)?;
    }
    None
}

fn filter(kind: u16, flags: u16, interface: u32) -> Request {
    let info = PREFERENCE << 16 | ETH_P_ALL;
    Request::new(kind, flags, interface, HANDLE, INGRESS, info).with(TCA_KIND, b"bpf\0")
}

fn options(program: BorrowedFd<'_>) -> Vec<u8> {
    // The attributes alone, built like a request's.
    let none = Request(Vec::new());
    none.with(TCA_BPF_FD, &program.as_raw_fd().to_ne_bytes())
        .with(TCA_BPF_NAME, b"egress_guard\0")
        .with(TCA_BPF_FLAGS, &DIRECT_ACTION.to_ne_bytes())
        .0
}

/// Puts the program there; whether it was not there.
pub(super) fn attach(program: BorrowedFd<'_>, interface: u32) -> io::Result<bool> {
    if stands(interface) {
        return Ok(false);
    }
    let qdisc = Request::new(
        RTM_NEWQDISC,
        CREATE | EXCL,
        interface,
        CLSACT_HANDLE,
        CLSACT,
        0,
    )
    .with(TCA_KIND, b"clsact\0");
    match qdisc.send() {
        Err(error) if error.raw_os_error() == Some(libc::EEXIST) => {}
        other => other?,
    }
    replace(program, interface).map(|()| true)
}

/// Puts the program in the place of the one there, or where none is.
pub(super) fn replace(program: BorrowedFd<'_>, interface: u32) -> io::Result<()> {
    filter(RTM_NEWTFILTER, CREATE | REPLACE, interface)
        .with(TCA_OPTIONS, &options(program))
        .send()
}

/// Whether our filter is there.
pub(super) fn stands(interface: u32) -> bool {
    filter(RTM_GETTFILTER, 0, interface).send().is_ok()
}

/// Takes it away, if it is there.
pub(super) fn detach(interface: u32) -> io::Result<()> {
    match filter(RTM_DELTFILTER, 0, interface).send() {
        // No filter, no qdisc, no interface.
        Err(error)
            if matches!(
                error.raw_os_error(),
                Some(libc::ENOENT | libc::EINVAL | libc::ENODEV)
            ) =>
        {
            Ok(())
        }
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn acknowledgement_is_found_behind_other_messages_and_garbage_ends_the_search() {
        let message = |kind: u16, code: i32| {
            let mut bytes = 20_u32.to_ne_bytes().to_vec();
            bytes.extend(kind.to_ne_bytes());
            bytes.extend([0; 10]);
            bytes.extend(code.to_ne_bytes());
            bytes
        };
        let both = [message(44, 7), message(NLMSG_ERROR, -2)].concat();
        assert_eq!(acknowledged(&both), Some(-2));
        assert_eq!(acknowledged(&message(44, 7)), None);
        assert_eq!(acknowledged(&[0; 64]), None);
        assert_eq!(acknowledged(&both[..17]), None);
    }
}
