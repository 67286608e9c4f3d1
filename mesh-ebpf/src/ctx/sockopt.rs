//! `bpf_sockopt`: an option that is being set.

use aya_ebpf::{
    bindings::bpf_sockopt, helpers::generated::bpf_get_netns_cookie, programs::SockoptContext,
};

use super::{mark, read, write};

#[derive(Clone, Copy)]
pub(crate) struct Sockopt(*mut bpf_sockopt);

impl Sockopt {
    #[inline(always)]
    pub(crate) fn new(ctx: &SockoptContext) -> Self {
        Self(ctx.sockopt)
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
        mark(read!(self.0, __bindgen_anon_1.sk))
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
