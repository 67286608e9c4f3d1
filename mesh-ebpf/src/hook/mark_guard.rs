//! `mark_guard`: sockets of guarded workloads keep our mark bits as they are.
//!
//! The option's value is the kernel's copy. When it is let through, that copy is what the kernel
//! sets: a thread that changes the caller's memory in between changes nothing. Options of others
//! are handed on untouched, whatever their size.

use aya_ebpf::{macros::cgroup_sockopt, programs::SockoptContext};
use mesh_common::{
    abi::Config,
    addr::Addr,
    pod::PodEntry,
    reason::{Event, Reason},
};
use mesh_ebpf::decide::mark::{Verdict, World, decide};

use crate::{
    count::{count, event},
    ctx::{self, sockopt::Sockopt},
    maps,
};

const ALLOW: i32 = 1;
/// EPERM.
const DENY: i32 = 0;
/// The kernel shows a program one page at most. Of a larger option it takes the program's view for
/// the whole and fails the call (before Linux 6.4), unless the program says to take the original.
const SHOWN: i32 = 4_096;

#[cgroup_sockopt(setsockopt)]
fn mark_guard(ctx: SockoptContext) -> i32 {
    let ctx = Sockopt::new(&ctx);
    let (level, name) = ctx.option();
    match decide(level, name, &Kernel(ctx)) {
        Verdict::Pass => {
            if ctx.length() > SHOWN {
                ctx.set_length(0);
            }
            ALLOW
        }
        Verdict::Sealed => {
            // Also of a larger one, which the kernel would read again from the caller's memory.
            ctx.set_length(4);
            ALLOW
        }
        Verdict::Refuse(pod_id) => {
            count(Reason::RefuseMark);
            event(&Event {
                time_ns: ctx::now(),
                netns: ctx.netns(),
                src: Addr::UNSPECIFIED,
                dst: Addr::UNSPECIFIED,
                sport: 0,
                dport: 0,
                reason: Reason::RefuseMark as u32,
                pod_id,
                tgid: ctx::current_tgid(),
            });
            DENY
        }
    }
}

struct Kernel(Sockopt);

impl World for Kernel {
    #[inline(always)]
    fn config(&self) -> Option<Config> {
        ctx::config()
    }
    #[inline(always)]
    fn cgroup(&self) -> u64 {
        ctx::current_cgroup()
    }
    #[inline(always)]
    fn pod(&self) -> Option<PodEntry> {
        maps::POD_BY_NETNS.get(&self.0.netns())
    }
    #[inline(always)]
    fn mark(&self) -> u32 {
        self.0.mark()
    }
    #[inline(always)]
    fn wanted(&self) -> Option<u32> {
        self.0.word()
    }
}
