//! `bpf_sk_lookup`: a search for a listening socket.

use aya_ebpf::{
    bindings::{BPF_SK_LOOKUP_F_NO_REUSEPORT, bpf_sk_lookup},
    helpers::generated::bpf_sk_assign,
    programs::SkLookupContext,
};
use mesh_common::{addr::Addr, listener::ListenerKey};
use mesh_ebpf::decide::steer::{Request, UNKNOWN_INTERFACE};

use super::{listener, read, release};
use crate::features;

const AF_INET: u32 = 2;

#[derive(Clone, Copy)]
pub(crate) struct SkLookup(*mut bpf_sk_lookup);

impl SkLookup {
    #[inline(always)]
    pub(crate) fn new(ctx: &SkLookupContext) -> Self {
        Self(ctx.lookup)
    }

    #[inline(always)]
    pub(crate) fn request(self) -> Request {
        let family = read!(self.0, family);
        let protocol = read!(self.0, protocol);
        let remote4 = read!(self.0, remote_ip4);
        let r0 = read!(self.0, remote_ip6[0]);
        let r1 = read!(self.0, remote_ip6[1]);
        let r2 = read!(self.0, remote_ip6[2]);
        let r3 = read!(self.0, remote_ip6[3]);
        // Network order here, host order in `local_port`.
        let remote_port = read!(self.0, remote_port);
        let local4 = read!(self.0, local_ip4);
        let l0 = read!(self.0, local_ip6[0]);
        let l1 = read!(self.0, local_ip6[1]);
        let l2 = read!(self.0, local_ip6[2]);
        let l3 = read!(self.0, local_ip6[3]);
        let local_port = read!(self.0, local_port);
        // Linux 5.17; elsewhere the branch is never walked.
        let interface = if features::HAS_INTERFACE.load() != 0 {
            read!(self.0, ingress_ifindex)
        } else {
            UNKNOWN_INTERFACE
        };
        let (remote, local) = if family == AF_INET {
            (Addr::from_v4_be(remote4), Addr::from_v4_be(local4))
        } else {
            (
                Addr::from_v6_be([r0, r1, r2, r3]),
                Addr::from_v6_be([l0, l1, l2, l3]),
            )
        };
        Request {
            remote,
            remote_port: u16::from_be(remote_port),
            local,
            local_port: local_port as u16,
            proto: protocol as u8,
            interface,
        }
    }

    /// Gives the connection to a listener; whether there was one.
    ///
    /// Without `NO_REUSEPORT` the kernel would spread connections over all listeners of the port,
    /// those of an agent that is leaving included.
    #[inline(always)]
    pub(crate) fn assign(self, key: &ListenerKey) -> bool {
        let Some(sk) = listener(key) else {
            return false;
        };
        #[expect(unsafe_code, reason = "kernel helper")]
        // SAFETY: the context is the program's own, `sk` is held until `release`.
        let result =
            unsafe { bpf_sk_assign(self.0.cast(), sk, u64::from(BPF_SK_LOOKUP_F_NO_REUSEPORT)) };
        release(sk);
        result == 0
    }
}
