//! `bpf_sock_ops`: the life of a TCP socket.

use aya_ebpf::{
    bindings::{
        BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB, BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB,
        BPF_SOCK_OPS_STATE_CB, BPF_SOCK_OPS_TCP_CONNECT_CB, bpf_sock, bpf_sock_ops,
    },
    helpers::generated::{bpf_get_netns_cookie, bpf_get_socket_cookie, bpf_sock_ops_cb_flags_set},
    programs::SockOpsContext,
};
use mesh_common::{addr::Addr, flow::Tuple};

use super::read;

const AF_INET: u32 = 2;
/// `BPF_TCP_CLOSE`.
pub(crate) const CLOSE: u32 = 7;

#[derive(Clone, Copy)]
pub(crate) struct SockOps(*mut bpf_sock_ops);

/// The fields, read before anything branches.
pub(crate) struct Snapshot {
    /// `BPF_SOCK_OPS_*`.
    pub(crate) op: u32,
    /// For a change of state: the state before it.
    pub(crate) old_state: u32,
    /// For a change of state: the state after it.
    pub(crate) new_state: u32,
    /// Addresses and ports.
    pub(crate) tuple: Tuple,
}

/// What a connection carried.
pub(crate) struct Traffic {
    /// Bytes that the peer acknowledged, SYN and FIN as one each.
    pub(crate) acknowledged: u64,
    /// Bytes that came in order, FIN as one.
    pub(crate) received: u64,
    /// Segments that were sent again, the SYN too.
    pub(crate) retransmitted: u32,
}

impl SockOps {
    #[inline(always)]
    pub(crate) fn new(ctx: &SockOpsContext) -> Self {
        Self(ctx.ops)
    }

    /// Whether a socket begins to connect, is established or accepted, or has closed.
    #[inline(always)]
    pub(crate) fn matters(self) -> bool {
        let op = read!(self.0, op);
        let new_state = read!(self.0, __bindgen_anon_1.args[1]);
        op == BPF_SOCK_OPS_TCP_CONNECT_CB
            || op == BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB
            || op == BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB
            || (op == BPF_SOCK_OPS_STATE_CB && new_state == CLOSE)
    }

    #[inline(always)]
    pub(crate) fn snapshot(self) -> Snapshot {
        let op = read!(self.0, op);
        let old_state = read!(self.0, __bindgen_anon_1.args[0]);
        let new_state = read!(self.0, __bindgen_anon_1.args[1]);
        let family = read!(self.0, family);
        let remote4 = read!(self.0, remote_ip4);
        let local4 = read!(self.0, local_ip4);
        let r0 = read!(self.0, remote_ip6[0]);
        let r1 = read!(self.0, remote_ip6[1]);
        let r2 = read!(self.0, remote_ip6[2]);
        let r3 = read!(self.0, remote_ip6[3]);
        let l0 = read!(self.0, local_ip6[0]);
        let l1 = read!(self.0, local_ip6[1]);
        let l2 = read!(self.0, local_ip6[2]);
        let l3 = read!(self.0, local_ip6[3]);
        // Network order in the upper half; `local_port` is host order.
        let remote_port = read!(self.0, remote_port);
        let local_port = read!(self.0, local_port);
        let (src, dst) = if family == AF_INET {
            (Addr::from_v4_be(local4), Addr::from_v4_be(remote4))
        } else {
            (
                Addr::from_v6_be([l0, l1, l2, l3]),
                Addr::from_v6_be([r0, r1, r2, r3]),
            )
        };
        let dport = u32::from_be(remote_port) as u16;
        let tuple = Tuple {
            src,
            dst,
            sport: local_port as u16,
            dport,
        };
        Snapshot {
            op,
            old_state,
            new_state,
            tuple,
        }
    }

    /// What the connection carried so far. Only of a full socket.
    #[inline(always)]
    pub(crate) fn traffic(self) -> Traffic {
        Traffic {
            acknowledged: read!(self.0, bytes_acked),
            received: read!(self.0, bytes_received),
            retransmitted: read!(self.0, total_retrans),
        }
    }

    /// The socket, null when it is not a full one.
    #[inline(always)]
    pub(crate) fn sk(self) -> *mut bpf_sock {
        read!(self.0, __bindgen_anon_2.sk)
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

    /// Asks for more callbacks, besides those that others asked for.
    #[inline(always)]
    pub(crate) fn arm(self, flag: u32) {
        let flags = read!(self.0, bpf_sock_ops_cb_flags) | flag;
        #[expect(unsafe_code, reason = "kernel helper")]
        // SAFETY: the context is the program's own.
        let _ = unsafe { bpf_sock_ops_cb_flags_set(self.0, flags as i32) };
    }
}
