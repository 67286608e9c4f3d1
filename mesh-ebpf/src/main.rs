//! The programs. Built for `bpfel-unknown-none` by `cargo xtask build-ebpf`.
//!
//! | program | type | attached to | job |
//! |---|---|---|---|
//! | `connect4`, `connect6` | cgroup_sock_addr | the pods' cgroup | decide, mark or rewrite |
//! | `getpeername4`, `getpeername6` | cgroup_sock_addr | the pods' cgroup | what was dialled |
//! | `getsockname4`, `getsockname6` | cgroup_sock_addr | the pods' cgroup | the pod's own address (mode `loopback`) |
//! | `original_dst` | cgroup_sockopt | the agent's cgroup | `SO_ORIGINAL_DST` (mode `loopback`) |
//! | `bind4`, `bind6` | cgroup_sock_addr | the pods' cgroup | SO_REUSEADDR |
//! | `sendmsg4`, `sendmsg6` | cgroup_sock_addr | the pods' cgroup | outbound rules for datagrams |
//! | `flow_ops` | sock_ops | the pods' and the agent's cgroup | flows, endpoint counters |
//! | `mark_guard` | cgroup_sockopt (set) | the pods' cgroup | our mark bits stay ours |
//! | `egress_guard` | sched_cls | the node's side of a guarded pod's veth | drops what went past us |
//! | `sock_release` | cgroup_sock | the pods' cgroup | give back what a socket still holds |
//! | `probe_ops` | sock_ops | the kubelet's cgroup | the kubelet's connections |
//! | `steer` | sk_lookup | each workload's network namespace | choose the listener |
//!
//! Only stable UAPI contexts are read: the object needs no CO-RE relocations, which rustc can't
//! emit.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]
// One atomic add, see `count`.
#![cfg_attr(target_arch = "bpf", feature(asm_experimental_arch))]

#[cfg(target_arch = "bpf")]
mod count;
#[cfg(target_arch = "bpf")]
mod ctx;
#[cfg(target_arch = "bpf")]
mod features;
#[cfg(target_arch = "bpf")]
#[macro_use]
mod log;
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

/// The project's own licence. The kernel keeps some helpers for GPL-compatible programs: we call
/// none of them.
#[cfg(target_arch = "bpf")]
#[expect(unsafe_code, reason = "the kernel reads the licence from this section")]
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 11] = *b"Apache-2.0\0";

#[cfg(not(target_arch = "bpf"))]
fn main() {
    println!("the eBPF object is built for its own target: run cargo xtask build-ebpf");
}
