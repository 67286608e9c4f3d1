//! `__sk_buff`: a frame on its way.

use aya_ebpf::{
    bindings::__sk_buff,
    helpers::generated::{bpf_skb_cgroup_id, bpf_skb_load_bytes},
    programs::TcContext,
};
use mesh_ebpf::decide::guard;

use super::read;

#[derive(Clone, Copy)]
pub(crate) struct Packet(*mut __sk_buff);

impl Packet {
    #[inline(always)]
    pub(crate) fn new(ctx: &TcContext) -> Self {
        Self(ctx.skb.skb)
    }

    /// The interface that the program stands at.
    #[inline(always)]
    pub(crate) fn interface(self) -> u32 {
        read!(self.0, ifindex)
    }

    /// Cgroup id of the socket that sent it, 0 when none is known: a packet keeps its socket over a
    /// veth until the receiving stack takes it, and loses it where a namespace forwards.
    #[inline(always)]
    pub(crate) fn sender(self) -> u64 {
        #[expect(unsafe_code, reason = "kernel helper")]
        // SAFETY: the context is the program's own.
        let id = unsafe { bpf_skb_cgroup_id(self.0) };
        id
    }
}

impl guard::Packet for Packet {
    #[inline(always)]
    fn load<const N: usize>(&self, at: u32, to: &mut [u8; N]) -> bool {
        #[expect(unsafe_code, reason = "kernel helper")]
        // SAFETY: the context is the program's own; the kernel writes `N` bytes, all of `to`.
        let result =
            unsafe { bpf_skb_load_bytes(self.0.cast(), at, to.as_mut_ptr().cast(), N as u32) };
        result == 0
    }
}
