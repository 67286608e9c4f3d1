//! `bpf_sock_addr`: connect and getpeername.

use aya_ebpf::{
    bindings::{bpf_sock, bpf_sock_addr},
    helpers::generated::{
        bpf_get_netns_cookie, bpf_get_socket_cookie, bpf_set_retval, bpf_setsockopt,
    },
    programs::SockAddrContext,
};
use mesh_common::{addr::Addr, flow::Tuple};

use super::{read, write};
use crate::features;

const SOL_SOCKET: i32 = 1;
const SO_MARK: i32 = 36;
const SO_REUSEADDR: i32 = 2;
const SOCK_STREAM: u32 = 1;
const SOCK_DGRAM: u32 = 2;
const IPPROTO_TCP: u32 = 6;
const IPPROTO_UDP: u32 = 17;
/// Captured too: its first subflow is an ordinary TCP socket.
const IPPROTO_MPTCP: u32 = 262;
const ECONNREFUSED: i32 = 111;

#[derive(Clone, Copy)]
pub(crate) struct SockAddr(*mut bpf_sock_addr);

impl SockAddr {
    #[inline(always)]
    pub(crate) fn new(ctx: &SockAddrContext) -> Self {
        Self(ctx.sock_addr)
    }

    /// Address and port of an IPv4 hook.
    #[inline(always)]
    pub(crate) fn v4(self) -> (Addr, u16) {
        let ip = read!(self.0, user_ip4);
        let port = read!(self.0, user_port);
        (Addr::from_v4_be(ip), u16::from_be(port as u16))
    }

    /// Address and port of an IPv6 hook.
    #[inline(always)]
    pub(crate) fn v6(self) -> (Addr, u16) {
        let a = read!(self.0, user_ip6[0]);
        let b = read!(self.0, user_ip6[1]);
        let c = read!(self.0, user_ip6[2]);
        let d = read!(self.0, user_ip6[3]);
        let port = read!(self.0, user_port);
        (Addr::from_v6_be([a, b, c, d]), u16::from_be(port as u16))
    }

    /// Rewrites address and port in an IPv4 hook.
    #[inline(always)]
    pub(crate) fn set_v4(self, addr: &Addr, port: u16) {
        write!(self.0, addr.v4_be(), user_ip4);
        write!(self.0, u32::from(port.to_be()), user_port);
    }

    /// Rewrites address and port in an IPv6 hook; IPv4 addresses go in v4-mapped.
    #[inline(always)]
    pub(crate) fn set_v6(self, addr: &Addr, port: u16) {
        let [a, b, c, d] = addr.v6_be();
        write!(self.0, a, user_ip6[0]);
        write!(self.0, b, user_ip6[1]);
        write!(self.0, c, user_ip6[2]);
        write!(self.0, d, user_ip6[3]);
        write!(self.0, u32::from(port.to_be()), user_port);
    }

    /// Whether it is a TCP stream socket.
    #[inline(always)]
    pub(crate) fn is_tcp(self) -> bool {
        let kind = read!(self.0, type_);
        let protocol = read!(self.0, protocol);
        kind == SOCK_STREAM && (protocol == IPPROTO_TCP || protocol == IPPROTO_MPTCP)
    }

    /// Whether it is a multipath TCP socket.
    #[inline(always)]
    pub(crate) fn is_multipath(self) -> bool {
        read!(self.0, protocol) == IPPROTO_MPTCP
    }

    /// Addresses and ports of a connected socket.
    #[inline(always)]
    pub(crate) fn tuple<const V6: bool>(self) -> Tuple {
        let sk = self.sk();
        let (src, dst) = if V6 {
            let s0 = read!(sk, src_ip6[0]);
            let s1 = read!(sk, src_ip6[1]);
            let s2 = read!(sk, src_ip6[2]);
            let s3 = read!(sk, src_ip6[3]);
            let d0 = read!(sk, dst_ip6[0]);
            let d1 = read!(sk, dst_ip6[1]);
            let d2 = read!(sk, dst_ip6[2]);
            let d3 = read!(sk, dst_ip6[3]);
            (
                Addr::from_v6_be([s0, s1, s2, s3]),
                Addr::from_v6_be([d0, d1, d2, d3]),
            )
        } else {
            let (src, dst) = (read!(sk, src_ip4), read!(sk, dst_ip4));
            (Addr::from_v4_be(src), Addr::from_v4_be(dst))
        };
        // Host order here, network order there.
        let sport = read!(sk, src_port);
        let dport = read!(sk, dst_port);
        Tuple {
            src,
            dst,
            sport: sport as u16,
            dport: u16::from_be(dport),
        }
    }

    /// Whether it is a UDP socket.
    #[inline(always)]
    pub(crate) fn is_udp(self) -> bool {
        let kind = read!(self.0, type_);
        let protocol = read!(self.0, protocol);
        kind == SOCK_DGRAM && protocol == IPPROTO_UDP
    }

    /// The socket: never null in this program type.
    #[inline(always)]
    pub(crate) fn sk(self) -> *mut bpf_sock {
        read!(self.0, __bindgen_anon_1.sk)
    }

    /// The socket's cookie.
    #[inline(always)]
    pub(crate) fn cookie(self) -> u64 {
        #[expect(unsafe_code, reason = "kernel helper")]
        // SAFETY: the context is the program's own.
        let cookie = unsafe { bpf_get_socket_cookie(self.0.cast()) };
        cookie
    }

    /// Cookie of the socket's network namespace.
    #[inline(always)]
    pub(crate) fn netns(self) -> u64 {
        #[expect(unsafe_code, reason = "kernel helper")]
        // SAFETY: the context is the program's own.
        let cookie = unsafe { bpf_get_netns_cookie(self.0.cast()) };
        cookie
    }

    /// Makes the bits inside `mask` those of `bits` and leaves all others alone; whether the socket
    /// has them now.
    #[inline(always)]
    pub(crate) fn set_mark(self, bits: u32, mask: u32) -> bool {
        let old = read!(self.sk(), mark);
        let mut new = (old & !mask) | (bits & mask);
        if new == old {
            return true;
        }
        #[expect(unsafe_code, reason = "kernel helper")]
        // SAFETY: the context is the program's own; the kernel reads four bytes at the pointer.
        let result = unsafe {
            bpf_setsockopt(
                self.0.cast(),
                SOL_SOCKET,
                SO_MARK,
                core::ptr::from_mut(&mut new).cast(),
                4,
            )
        };
        result == 0
    }

    /// Sets SO_REUSEADDR; whether the socket has it now.
    #[inline(always)]
    pub(crate) fn reuse_address(self) -> bool {
        let mut on = 1_u32;
        #[expect(unsafe_code, reason = "kernel helper")]
        // SAFETY: the context is the program's own; the kernel reads four bytes at the pointer.
        let result = unsafe {
            bpf_setsockopt(
                self.0.cast(),
                SOL_SOCKET,
                SO_REUSEADDR,
                core::ptr::from_mut(&mut on).cast(),
                4,
            )
        };
        result == 0
    }

    /// Makes the system call fail with ECONNREFUSED, once the program returns 0; with EPERM where
    /// the kernel lacks the helper (before Linux 5.18).
    #[inline(always)]
    pub(crate) fn refuse(self) {
        if features::HAS_SET_RETVAL.load() == 0 {
            return;
        }
        #[expect(unsafe_code, reason = "kernel helper")]
        // SAFETY: takes a number.
        let _ = unsafe { bpf_set_retval(-ECONNREFUSED) };
    }
}
