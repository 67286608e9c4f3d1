//! The contexts of the programs and the helpers that need one: almost all `unsafe` is here.
//!
//! Every field is read volatile and unconditionally into a local before anything branches:
//! otherwise LLVM merges loads of two branches into one through a computed context address, which
//! the verifier refuses.

pub(crate) mod packet;
pub(crate) mod sk_lookup;
pub(crate) mod sock_addr;
pub(crate) mod sock_ops;
pub(crate) mod sockopt;

use core::arch::asm;

use aya_ebpf::{
    bindings::{BPF_SK_STORAGE_GET_F_CREATE, bpf_sock},
    helpers::generated::{
        bpf_get_current_cgroup_id, bpf_get_current_pid_tgid, bpf_ktime_get_ns, bpf_sk_release,
        bpf_sk_storage_delete, bpf_sk_storage_get, bpf_skc_to_mptcp_sock,
    },
};
use mesh_common::{
    abi::Config,
    flow::{
        ESTABLISHED, Flow, INTENT_CONFIRMED, INTENT_RELEASED, Intent, LoopFlow, ProxyFlow,
        VERDICT_PASS,
    },
    listener::ListenerKey,
    pod::Guarded,
    service::Cap,
};

use crate::{count::add, features, maps};

/// Reads a field of a context.
macro_rules! read {
    ($ptr:expr, $($field:tt)+) => {{
        let ptr = $ptr;
        #[expect(unsafe_code, reason = "contexts come as pointers")]
        #[expect(clippy::multiple_unsafe_ops_per_block, reason = "a place and its read")]
        // SAFETY: the pointer is the program's own context (or a socket the verifier knows to be
        // there), valid for the whole run; the verifier checks the offset and the width.
        let value = unsafe { core::ptr::read_volatile(&raw const (*ptr).$($field)+) };
        value
    }};
}
/// Writes a field of a context.
macro_rules! write {
    ($ptr:expr, $value:expr, $($field:tt)+) => {{
        let (ptr, value) = ($ptr, $value);
        #[expect(unsafe_code, reason = "contexts come as pointers")]
        #[expect(clippy::multiple_unsafe_ops_per_block, reason = "a place and its write")]
        // SAFETY: as for reads; the verifier allows writes to this field in this program type.
        unsafe { core::ptr::write_volatile(&raw mut (*ptr).$($field)+, value) };
    }};
}
pub(crate) use {read, write};

/// The same value, of which the verifier knows nothing any more.
///
/// It follows constants through registers, and walks code anew for each value of a register that a
/// branch looked at. `unknown` is any number that it can't know: what is XORed with it twice comes
/// back as it was, but no longer as a constant.
#[inline(always)]
pub(crate) fn forget(mut value: u64, unknown: u64) -> u64 {
    #[expect(unsafe_code, reason = "the compiler would take both away")]
    // SAFETY: two operations on registers.
    unsafe {
        asm!("{v} ^= {u}", "{v} ^= {u}", v = inout(reg) value, u = in(reg) unknown);
    }
    value
}

/// `CONFIG[0]`.
#[inline(always)]
pub(crate) fn config() -> Option<Config> {
    maps::CONFIG.first().map(maps::copy)
}

/// `HEARTBEAT[0]`, 0 when it was never written.
#[inline(always)]
pub(crate) fn heartbeat() -> u64 {
    match maps::HEARTBEAT.first() {
        Some(slot) => {
            #[expect(unsafe_code, reason = "map memory comes as a pointer")]
            // SAFETY: not null, 8 bytes, 8-byte aligned; the agent stores the word at once.
            let value = unsafe { slot.read_volatile() };
            value
        }
        None => 0,
    }
}

/// CLOCK_MONOTONIC, nanoseconds.
#[inline(always)]
pub(crate) fn now() -> u64 {
    #[expect(unsafe_code, reason = "kernel helper")]
    // SAFETY: takes nothing, returns a number.
    let now = unsafe { bpf_ktime_get_ns() };
    now
}

/// Cgroup id (v2) of the calling process.
#[inline(always)]
pub(crate) fn current_cgroup() -> u64 {
    #[expect(unsafe_code, reason = "kernel helper")]
    // SAFETY: takes nothing, returns a number.
    let id = unsafe { bpf_get_current_cgroup_id() };
    id
}

/// Thread group of the calling process.
#[inline(always)]
pub(crate) fn current_tgid() -> u32 {
    #[expect(unsafe_code, reason = "kernel helper")]
    // SAFETY: takes nothing, returns a number.
    let both = unsafe { bpf_get_current_pid_tgid() };
    (both >> 32) as u32
}

/// A socket's mark.
#[inline(always)]
pub(crate) fn mark(sk: *mut bpf_sock) -> u32 {
    read!(sk, mark)
}

/// Whether a socket may send by `lo`: bound to no device, or to that one (number 1 everywhere).
#[inline(always)]
pub(crate) fn reaches_loopback(sk: *mut bpf_sock) -> bool {
    read!(sk, bound_dev_if) <= 1
}

/// Where a connection was going that the agent accepted on a workload's loopback.
#[inline(always)]
pub(crate) fn origin(sk: *mut bpf_sock) -> Option<LoopFlow> {
    #[expect(unsafe_code, reason = "kernel helper")]
    // SAFETY: as in `intent`.
    let value =
        unsafe { bpf_sk_storage_get(maps::ORIGIN.as_ptr(), sk.cast(), core::ptr::null_mut(), 0) };
    (!value.is_null()).then(|| maps::copy(value.cast()))
}

/// Notes where a connection was going with the socket that the agent is about to accept. Fresh
/// storage: the socket is a moment old.
#[inline(always)]
pub(crate) fn set_origin(sk: *mut bpf_sock, origin: &LoopFlow) {
    #[expect(unsafe_code, reason = "kernel helper")]
    // SAFETY: as in `set_intent`. When the kernel has no memory for it, the agent refuses the
    // connection for lack of a destination.
    let _ = unsafe {
        bpf_sk_storage_get(
            maps::ORIGIN.as_ptr(),
            sk.cast(),
            core::ptr::from_ref(origin).cast_mut().cast(),
            u64::from(BPF_SK_STORAGE_GET_F_CREATE),
        )
    };
}

/// The memory of what the connect hook stored with a socket.
#[inline(always)]
fn stored(sk: *mut core::ffi::c_void) -> Option<*mut Intent> {
    #[expect(unsafe_code, reason = "kernel helper")]
    // SAFETY: the verifier knows `sk` to be a full socket; no value is given and none is created.
    let value = unsafe { bpf_sk_storage_get(maps::INTENT.as_ptr(), sk, core::ptr::null_mut(), 0) };
    (!value.is_null()).then(|| value.cast())
}

/// What the connect hook stored with a socket.
#[inline(always)]
pub(crate) fn intent(sk: *mut bpf_sock) -> Option<Intent> {
    stored(sk.cast()).map(maps::copy)
}

/// Notes that the SYN is about to go: the socket will report its end. What was stored, with it.
#[inline(always)]
pub(crate) fn confirm(sk: *mut bpf_sock) -> Option<Intent> {
    let value = stored(sk.cast())?;
    let flags = read!(value, flags) | INTENT_CONFIRMED;
    write!(value, flags, flags);
    Some(maps::copy(value))
}

/// What was stored, of a connection that has just ended. It holds nothing any more: a second
/// report of the same end finds it so.
#[inline(always)]
pub(crate) fn ended(sk: *mut bpf_sock) -> Option<Intent> {
    let value = stored(sk.cast())?;
    let intent = maps::copy(value);
    write!(value, 0, cap);
    write!(
        value,
        intent.flags & !(INTENT_CONFIRMED | INTENT_RELEASED),
        flags
    );
    release_cap(intent.cap);
    Some(intent)
}

/// The application lets the socket go. One that has sent its SYN will report its end to
/// `flow_ops`; of any other nothing is heard again, so what it holds is given back here.
#[inline(always)]
pub(crate) fn let_go(sk: *mut bpf_sock) {
    let Some(value) = stored(sk.cast()) else {
        return;
    };
    let flags = read!(value, flags);
    if flags & INTENT_CONFIRMED == 0 {
        take_back(value);
    } else {
        write!(value, flags | INTENT_RELEASED, flags);
    }
}

/// Gives back the place that an earlier connect of the same socket still holds: that connect
/// failed before its SYN, and nobody reported it.
#[inline(always)]
pub(crate) fn give_back(sk: *mut bpf_sock) {
    if let Some(value) = stored(sk.cast()) {
        take_back(value);
    }
}

/// The multipath TCP socket above a subflow.
#[inline(always)]
fn above(sk: *mut bpf_sock) -> Option<*mut core::ffi::c_void> {
    if features::HAS_MULTIPATH.load() == 0 {
        return None;
    }
    #[expect(unsafe_code, reason = "kernel helper")]
    // SAFETY: the verifier knows `sk` to be a socket; null for any that is no subflow.
    let above = unsafe { bpf_skc_to_mptcp_sock(sk.cast()) };
    (!above.is_null()).then_some(above.cast())
}

/// Like [`give_back`], of the multipath socket above this one.
#[inline(always)]
pub(crate) fn give_back_above(sk: *mut bpf_sock) {
    if let Some(above) = above(sk)
        && let Some(value) = stored(above)
    {
        take_back(value);
    }
}

/// Moves the place of a cap from a subflow, where [`set_intent`] has just put it, to the multipath
/// socket above it: the application closes that one, and no hook ever sees the subflow's end when
/// its connect fails before the SYN. The place is held until then. Whether there is nothing to move,
/// or it is moved.
#[inline(always)]
pub(crate) fn raise(sk: *mut bpf_sock, intent: &Intent) -> bool {
    let Some(above) = above(sk) else {
        return true;
    };
    #[expect(unsafe_code, reason = "kernel helper")]
    // SAFETY: as in `set_intent`.
    let held = unsafe {
        bpf_sk_storage_get(
            maps::INTENT.as_ptr(),
            above,
            core::ptr::from_ref(intent).cast_mut().cast(),
            u64::from(BPF_SK_STORAGE_GET_F_CREATE),
        )
    };
    let Some(value) = stored(sk.cast()) else {
        return false;
    };
    if held.is_null() {
        return false;
    }
    let held = held.cast::<Intent>();
    // Of this connection nothing but its place: the hooks for names ask elsewhere.
    write!(held, VERDICT_PASS, verdict);
    write!(held, 0, flags);
    write!(held, intent.cap, cap);
    write!(value, 0, cap);
    true
}

#[inline(always)]
fn take_back(value: *mut Intent) {
    let cap = read!(value, cap);
    if cap != 0 {
        write!(value, 0, cap);
        release_cap(cap);
    }
}

/// Frees one place of a connection cap; 0: of none.
#[inline(always)]
pub(crate) fn release_cap(cap: u32) {
    if cap != 0
        && let Some(places) = maps::CAPS.lookup(&cap)
    {
        add(active(places), MINUS_ONE);
    }
}

/// What an atomic addition takes one away with.
pub(crate) const MINUS_ONE: u64 = u64::MAX;

/// Where a cap counts the places that are held.
#[inline(always)]
pub(crate) fn active(places: *mut Cap) -> *mut u64 {
    const { assert!(core::mem::offset_of!(Cap, active) == 0) };
    places.cast()
}

/// Where a cap counts its refusals.
#[inline(always)]
pub(crate) fn refused(places: *mut Cap) -> *mut u64 {
    places
        .cast::<u8>()
        .wrapping_add(core::mem::offset_of!(Cap, refused))
        .cast()
}

/// A word in map memory that others write.
#[inline(always)]
pub(crate) fn word(slot: *mut u64) -> u64 {
    #[expect(unsafe_code, reason = "map memory comes as a pointer")]
    // SAFETY: not null, 8 bytes, 8-byte aligned; programs write it in one instruction.
    let value = unsafe { slot.read_volatile() };
    value
}

/// Stores the intent with the socket; whether the kernel took it.
#[inline(always)]
pub(crate) fn set_intent(sk: *mut bpf_sock, intent: &Intent) -> bool {
    #[expect(unsafe_code, reason = "kernel helper")]
    // SAFETY: as in `stored`; the kernel copies the value when it makes the storage.
    let value = unsafe {
        bpf_sk_storage_get(
            maps::INTENT.as_ptr(),
            sk.cast(),
            core::ptr::from_ref(intent).cast_mut().cast(),
            u64::from(BPF_SK_STORAGE_GET_F_CREATE),
        )
    };
    if value.is_null() {
        return false;
    }
    // A socket that is used again has storage already: the helper then ignores the value given.
    copy_words(value.cast(), intent);
    true
}

/// Copies a value word by word. From an ordinary assignment the compiler makes a call to a loop
/// over bytes, a tenth of the cost of a captured connect.
#[inline(always)]
fn copy_words(to: *mut Intent, from: &Intent) {
    const WORDS: usize = size_of::<Intent>() / size_of::<u64>();
    const { assert!(WORDS * 8 == size_of::<Intent>() && align_of::<Intent>() == 8) };
    let (to, from) = (to.cast::<u64>(), core::ptr::from_ref(from).cast::<u64>());
    let mut at = 0;
    while at < WORDS {
        #[expect(unsafe_code, reason = "storage comes as a pointer")]
        #[expect(clippy::multiple_unsafe_ops_per_block, reason = "a read and its write")]
        // SAFETY: both point to an `Intent`: `WORDS` words without padding, 8-byte aligned. Only
        // the caller's own connect writes here. Volatile, or it would become that call again.
        unsafe {
            to.add(at).write_volatile(from.add(at).read());
        }
        at += 1;
    }
}

/// Forgets the intent of an earlier connect of the same socket.
///
/// Asked for first, since there is hardly ever one: removing takes a reference to the socket and
/// gives it back, asking does not.
#[inline(always)]
pub(crate) fn clear_intent(sk: *mut bpf_sock) {
    let Some(value) = stored(sk.cast()) else {
        return;
    };
    take_back(value);
    #[expect(unsafe_code, reason = "kernel helper")]
    // SAFETY: as in `stored`.
    let _ = unsafe { bpf_sk_storage_delete(maps::INTENT.as_ptr(), sk.cast()) };
}

/// Cookie of the socket that a row of `FLOWS` is about.
#[inline(always)]
pub(crate) fn flow_cookie(flow: *mut Flow) -> u64 {
    read!(flow, cookie)
}

/// Notes in `FLOWS` that a connection stands.
#[inline(always)]
pub(crate) fn set_established(flow: *mut Flow, time: u64) {
    write!(flow, time, established_ns);
    write!(flow, ESTABLISHED, state);
}

/// Notes in `PROXY_FLOWS` that a dial of the agent was answered.
#[inline(always)]
pub(crate) fn set_proxy_established(flow: *mut ProxyFlow) {
    write!(flow, ESTABLISHED, state);
}

/// Notes in `GUARDED` when an event was sent.
#[inline(always)]
pub(crate) fn set_event_time(guarded: *mut Guarded, time: u64) {
    write!(guarded, time, event_ns);
}

/// A listener with a reference held: must be released on every path.
#[inline(always)]
fn listener(key: &ListenerKey) -> Option<*mut core::ffi::c_void> {
    maps::LISTENERS.lookup(key).map(|sk| sk.cast())
}

#[inline(always)]
fn release(sk: *mut core::ffi::c_void) {
    #[expect(unsafe_code, reason = "kernel helper")]
    // SAFETY: `sk` came from a sockhash look-up that took a reference, released here only.
    let _ = unsafe { bpf_sk_release(sk) };
}

/// The port of the live socket in `LISTENERS`, host order; 0: there is none. The kernel removes
/// closed ones itself.
#[inline(always)]
pub(crate) fn listener_port(key: &ListenerKey) -> u16 {
    match listener(key) {
        Some(sk) => {
            let port = read!(sk.cast::<bpf_sock>(), src_port);
            release(sk);
            port as u16
        }
        None => 0,
    }
}
