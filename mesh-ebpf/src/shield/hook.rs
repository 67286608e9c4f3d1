//! The programs: frame in, decision, verdict carried out.

use aya_ebpf::{
    bindings::{TC_ACT_SHOT, TC_ACT_UNSPEC, xdp_action::XDP_DROP, xdp_action::XDP_PASS},
    helpers::generated::bpf_xdp_get_buff_len,
    macros::{classifier, xdp},
    programs::{TcContext, XdpContext},
};
use mesh_ebpf::decide::shield::decide;

use crate::{
    frame::{Copied, Linear},
    maps::{Maps, count},
};

#[xdp]
fn shield(ctx: XdpContext) -> u32 {
    let frame = Linear::new(&ctx);
    let bytes = frame.len();
    linear(&frame, bytes)
}

#[xdp(frags)]
fn shield_frags(ctx: XdpContext) -> u32 {
    #[expect(unsafe_code, reason = "kernel helper")]
    // SAFETY: the context is the program's own.
    let bytes = unsafe { bpf_xdp_get_buff_len(ctx.ctx) };
    linear(&Linear::new(&ctx), bytes)
}

#[inline(always)]
fn linear(frame: &Linear, bytes: u64) -> u32 {
    let verdict = decide(frame, &Maps);
    count(&verdict, bytes);
    if verdict.reason.drops() {
        XDP_DROP
    } else {
        XDP_PASS
    }
}

/// «Not mine» is UNSPEC (which is also TCX_NEXT), never OK: programs behind us still run.
#[classifier]
fn shield_tc(ctx: TcContext) -> i32 {
    let verdict = decide(&Copied(&ctx), &Maps);
    count(&verdict, u64::from(ctx.len()));
    if verdict.reason.drops() {
        TC_ACT_SHOT
    } else {
        TC_ACT_UNSPEC
    }
}
