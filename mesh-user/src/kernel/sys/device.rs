//! Programs on network interfaces.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
};

use super::{AttachType, Command, LinkCreate, bpf, own, raw};

/// `XDP_FLAGS_DRV_MODE`: in the driver, or not at all.
const DRIVER: u32 = 1 << 2;

/// Attaches to the driver of an interface. EBUSY: another XDP program stands there.
pub(in crate::kernel) fn attach_xdp(prog: impl AsFd, interface: u32) -> io::Result<OwnedFd> {
    attach(prog, interface, AttachType::Xdp, DRIVER)
}

/// Attaches behind what stands at tcx ingress already (Linux 6.6; EINVAL before).
pub(in crate::kernel) fn attach_tcx(prog: impl AsFd, interface: u32) -> io::Result<OwnedFd> {
    attach(prog, interface, AttachType::TcxIngress, 0)
}

fn attach(prog: impl AsFd, interface: u32, attach: AttachType, flags: u32) -> io::Result<OwnedFd> {
    let mut attr = LinkCreate {
        prog: raw(&prog),
        target: interface,
        attach_type: attach as u32,
        flags,
    };
    #[expect(unsafe_code, reason = "a raw system call")]
    // SAFETY: the command takes no addresses for these attach types.
    let result = unsafe { bpf(Command::LinkCreate, &mut attr) };
    own(result?)
}
