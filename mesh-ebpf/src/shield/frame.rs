//! The bytes of a frame, from each kind of context.

use core::{arch::asm, mem::MaybeUninit};

use aya_ebpf::{
    EbpfContext as _, helpers::generated::bpf_skb_load_bytes, programs::TcContext,
    programs::XdpContext,
};
use mesh_ebpf::decide::shield::parse::Frame;

/// Headers end before this byte of a frame: 22 of Ethernet, 40 of IPv6, and extension headers of
/// at most 2,048 bytes each. The verifier wants to know that an offset is small.
const END_MAX: usize = 20_000;

/// A frame as XDP has it: its first buffer, which holds the headers.
pub(crate) struct Linear {
    start: usize,
    end: usize,
}

impl Linear {
    #[inline(always)]
    pub(crate) fn new(ctx: &XdpContext) -> Self {
        Self {
            start: ctx.data(),
            end: ctx.data_end(),
        }
    }

    /// Bytes of the first buffer.
    #[inline(always)]
    pub(crate) fn len(&self) -> u64 {
        (self.end - self.start) as u64
    }
}

impl Frame for Linear {
    #[inline(always)]
    fn load<const N: usize>(&self, at: usize) -> Option<[u8; N]> {
        if at > END_MAX {
            return None;
        }
        let mut place = self.start;
        #[expect(
            unsafe_code,
            reason = "an addition that the compiler must not see through"
        )]
        // SAFETY: one addition of two registers. In Rust the compiler would make two pointers of
        // the sum, one to compare and one to read by, and the verifier would know the bounds of the
        // first only.
        unsafe {
            asm!("{place} += {at}", place = inout(reg) place, at = in(reg) at,
                options(pure, nomem, nostack));
        }
        if place + N > self.end {
            return None;
        }
        #[expect(unsafe_code, reason = "packet memory comes as an address")]
        // SAFETY: `N` bytes from `place` on lie inside the buffer (compared just above, and checked
        // again by the verifier); bytes have no alignment and no invalid values.
        let bytes = unsafe { (place as *const [u8; N]).read() };
        Some(bytes)
    }
}

/// A frame as tc has it: it may lie in pages, so each header is copied out.
pub(crate) struct Copied<'a>(pub(crate) &'a TcContext);

impl Frame for Copied<'_> {
    #[inline(always)]
    fn load<const N: usize>(&self, at: usize) -> Option<[u8; N]> {
        let mut bytes = MaybeUninit::<[u8; N]>::uninit();
        #[expect(unsafe_code, reason = "kernel helper")]
        // SAFETY: the context is the program's own; the helper writes `N` bytes to memory of that
        // size, or fails.
        let result = unsafe {
            bpf_skb_load_bytes(
                self.0.as_ptr().cast(),
                at as u32,
                bytes.as_mut_ptr().cast(),
                N as u32,
            )
        };
        if result != 0 {
            return None;
        }
        #[expect(unsafe_code, reason = "memory that the kernel filled")]
        // SAFETY: the helper said that it wrote all `N` bytes.
        let bytes = unsafe { bytes.assume_init() };
        Some(bytes)
    }
}
