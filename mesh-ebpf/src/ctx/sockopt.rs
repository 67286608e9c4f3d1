//! `bpf_sockopt`: an option that is asked for, or being set.

use aya_ebpf::{
    bindings::{bpf_sock, bpf_sockopt},
    helpers::generated::bpf_get_netns_cookie,
    programs::SockoptContext,
};
use mesh_common::addr::Addr;

use super::{mark, read, write};

const SOL_IP: i32 = 0;
const SOL_IPV6: i32 = 41;
/// `SO_ORIGINAL_DST` of linux/netfilter_ipv4.h and `IP6T_SO_ORIGINAL_DST`: the same number.
const SO_ORIGINAL_DST: i32 = 80;
const AF_INET: u16 = 2;
const AF_INET6: u16 = 10;
/// Size of a `sockaddr_in`, in words of 4 bytes.
const WORDS4: usize = 4;
/// Size of a `sockaddr_in6`, in words of 4 bytes.
const WORDS6: usize = 7;
/// What the kernel shows a program of an option's value.
const SHOWN_BYTES: i32 = 4_096;

#[derive(Clone, Copy)]
pub(crate) struct Sockopt(*mut bpf_sockopt);

impl Sockopt {
    #[inline(always)]
    pub(crate) fn new(ctx: &SockoptContext) -> Self {
        Self(ctx.sockopt)
    }

    /// The socket: never null in this program type.
    #[inline(always)]
    pub(crate) fn sk(self) -> *mut bpf_sock {
        read!(self.0, __bindgen_anon_1.sk)
    }

    /// Whether the original destination is asked for, and if so whether as an IPv6 address.
    #[inline(always)]
    pub(crate) fn asks_original_dst(self) -> Option<bool> {
        let level = read!(self.0, level);
        let name = read!(self.0, optname);
        if name != SO_ORIGINAL_DST || (level != SOL_IP && level != SOL_IPV6) {
            return None;
        }
        Some(level == SOL_IPV6)
    }

    /// Leaves the kernel's own answer as it is. A value longer than what programs are shown must be
    /// disclaimed: older kernels fail the call otherwise.
    #[inline(always)]
    pub(crate) fn leave(self) {
        if read!(self.0, optlen) > SHOWN_BYTES {
            write!(self.0, 0, optlen);
        }
    }

    /// Answers with a socket address of the address's own family, if there is room for it.
    #[inline(always)]
    pub(crate) fn answer(self, addr: &Addr, port: u16) {
        let port = u32::from(port.to_be()) << 16;
        if addr.is_v4() {
            let words = [u32::from(AF_INET) | port, addr.v4_be(), 0, 0];
            self.put::<WORDS4>(&words);
        } else {
            let [a, b, c, d] = addr.v6_be();
            self.put::<WORDS6>(&[u32::from(AF_INET6) | port, 0, a, b, c, d, 0]);
        }
    }

    #[inline(always)]
    fn put<const WORDS: usize>(self, words: &[u32; WORDS]) {
        let start = read!(self.0, __bindgen_anon_2.optval).cast::<u32>();
        let end = read!(self.0, __bindgen_anon_3.optval_end).cast::<u32>();
        if start.wrapping_add(WORDS) > end {
            return;
        }
        let mut at = 0;
        while at < WORDS {
            #[expect(unsafe_code, reason = "an option's value comes as a pointer")]
            #[expect(
                clippy::multiple_unsafe_ops_per_block,
                reason = "a place and its write"
            )]
            // SAFETY: `WORDS` words lie between start and end, both given by the kernel for the
            // program's run; the verifier checks the same bound.
            unsafe {
                start.add(at).write_volatile(words[at]);
            }
            at += 1;
        }
        write!(self.0, (WORDS * size_of::<u32>()) as i32, optlen);
        write!(self.0, 0, retval);
    }

    /// Level and name, as the caller gave them.
    #[inline(always)]
    pub(crate) fn option(self) -> (u32, u32) {
        let level = read!(self.0, level);
        let name = read!(self.0, optname);
        (level as u32, name as u32)
    }

    /// Its size in bytes, as the caller gave it.
    #[inline(always)]
    pub(crate) fn length(self) -> i32 {
        read!(self.0, optlen)
    }

    /// How much of what the program saw the kernel takes; 0: what stands at the caller's address.
    #[inline(always)]
    pub(crate) fn set_length(self, bytes: i32) {
        write!(self.0, bytes, optlen);
    }

    /// Its first four bytes, if it has so many.
    #[inline(always)]
    pub(crate) fn word(self) -> Option<u32> {
        let start = read!(self.0, __bindgen_anon_2.optval);
        let end = read!(self.0, __bindgen_anon_3.optval_end);
        if start as usize + 4 > end as usize {
            return None;
        }
        #[expect(unsafe_code, reason = "the option comes as a pointer")]
        // SAFETY: four bytes from `start` lie before `end`, as the verifier checks; they are the
        // kernel's own copy, at the start of a buffer that is aligned to 8 bytes.
        Some(unsafe { start.cast::<u32>().read_volatile() })
    }

    /// The socket's mark.
    #[inline(always)]
    pub(crate) fn mark(self) -> u32 {
        mark(self.sk())
    }

    /// Cookie of the socket's network namespace.
    #[inline(always)]
    pub(crate) fn netns(self) -> u64 {
        #[expect(unsafe_code, reason = "kernel helper")]
        // SAFETY: the context is the program's own.
        let cookie = unsafe { bpf_get_netns_cookie(self.0.cast()) };
        cookie
    }
}
