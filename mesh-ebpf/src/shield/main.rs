//! The shield's programs, an object of their own: loaded only where the shield is configured.
//!
//! | program | type | attached to | job |
//! |---|---|---|---|
//! | `shield` | xdp | node interfaces | decide before the kernel makes anything of the frame |
//! | `shield_frags` | xdp, frames in several buffers | the same, where the MTU needs it | the same |
//! | `shield_tc` | tcx or clsact, ingress | node interfaces without native XDP | the same, later |
//!
//! All three share the maps and the decision (`mesh_ebpf::decide::shield`).
#![cfg_attr(target_arch = "bpf", no_std, no_main)]
// One atomic add and one barrier.
#![cfg_attr(target_arch = "bpf", feature(asm_experimental_arch))]

#[cfg(target_arch = "bpf")]
mod frame;
#[cfg(target_arch = "bpf")]
mod hook;
#[cfg(target_arch = "bpf")]
mod maps;

#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    // Never reached: the verifier refuses a program that could loop here.
    loop {}
}

/// The project's own licence: no helper that the kernel keeps for GPL-compatible programs is
/// called.
#[cfg(target_arch = "bpf")]
#[expect(unsafe_code, reason = "the kernel reads the licence from this section")]
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 11] = *b"Apache-2.0\0";

#[cfg(not(target_arch = "bpf"))]
fn main() {
    println!("the eBPF object is built for its own target: run cargo xtask build-ebpf");
}
