//! Connections as the kernel side sees them.

use crate::{addr::Addr, plain::plain};

/// A TCP 4-tuple as the connecting socket sees it.
///
/// Key of `PROXY_FLOWS` (without the workload: the writer and the reader stand in different
/// namespaces, DESIGN §10.5) and part of [`FlowKey`].
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Tuple {
    /// Address of the connecting side.
    pub src: Addr,
    /// Address that it connects to.
    pub dst: Addr,
    /// Port of the connecting side, host order.
    pub sport: u16,
    /// Port that it connects to, host order.
    pub dport: u16,
}
plain!(Tuple, 36, [Addr, Addr, u16, u16]);

/// Key of `FLOWS`: one captured or counted connection of one workload.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FlowKey {
    /// Its 4-tuple.
    pub tuple: Tuple,
    /// The workload that opened it.
    pub pod_id: u32,
}
plain!(FlowKey, 40, [Tuple, u32]);

/// Value of `FLOWS`. Diagnostics, and the virtual IP under a foreign socket load balancer: it
/// never decides correctness, so it may live in an LRU.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flow {
    /// Address that the application asked for.
    pub asked: Addr,
    /// Port that the application asked for, host order.
    pub asked_port: u16,
    /// [`VERDICT_PROXY`], [`VERDICT_KERNEL`] or [`VERDICT_PASS`].
    pub verdict: u8,
    /// [`CONNECTING`] or [`ESTABLISHED`].
    pub state: u8,
    /// Service number in `SERVICES`, 0 when none.
    pub service_id: u32,
    /// Backend number in `BACKENDS` when the kernel chose one, `u32::MAX` otherwise.
    pub backend: u32,
    /// Thread group of the process that connected.
    pub tgid: u32,
    /// Cgroup id of the process that connected.
    pub cgroup: u64,
    /// Cookie of the connecting socket.
    pub cookie: u64,
    /// When it connected: CLOCK_MONOTONIC, nanoseconds.
    pub connect_ns: u64,
    /// When it was established, 0 before: CLOCK_MONOTONIC, nanoseconds.
    pub established_ns: u64,
}
plain!(
    Flow,
    64,
    [Addr, u16, u8, u8, u32, u32, u32, u64, u64, u64, u64]
);

/// `Flow::state`: the SYN is on its way.
pub const CONNECTING: u8 = 0;
/// `Flow::state`: the handshake is done.
pub const ESTABLISHED: u8 = 1;

/// The connection was left alone.
pub const VERDICT_PASS: u8 = 0;
/// The kernel chose the endpoint and rewrote the destination.
pub const VERDICT_KERNEL: u8 = 1;
/// The connection was captured for the proxy.
pub const VERDICT_PROXY: u8 = 2;
/// `Flow::backend` when no backend was chosen.
pub const BACKEND_NONE: u32 = u32::MAX;

/// What the connect hook decided. Value of `INTENT`, kept with the socket itself where the kernel
/// chose the endpoint; of `INTENTS`, by the socket's cookie, where the connection is captured.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Intent {
    /// Address that the application asked for.
    pub asked: Addr,
    /// Port that the application asked for, host order.
    pub asked_port: u16,
    /// Like [`Flow::verdict`].
    pub verdict: u8,
    /// [`INTENT_LOOPBACK`], [`INTENT_GUARDED`], [`INTENT_CONFIRMED`], [`INTENT_RELEASED`].
    pub flags: u8,
    /// The workload.
    pub pod_id: u32,
    /// Service number, 0 when none.
    pub service_id: u32,
    /// Backend number, [`BACKEND_NONE`] when none.
    pub backend: u32,
    /// Thread group of the caller.
    pub tgid: u32,
    /// Number of the connection cap in `CAPS` where this connection holds one place, 0: none.
    pub cap: u32,
    /// Cgroup id of the caller.
    pub cgroup: u64,
    /// CLOCK_MONOTONIC, nanoseconds.
    pub connect_ns: u64,
}
plain!(
    Intent,
    56,
    [Addr, u16, u8, u8, u32, u32, u32, u32, u32, u64, u64]
);

/// `Intent::flags`: the connection was rewritten to the workload's loopback.
pub const INTENT_LOOPBACK: u8 = 1;
/// `Intent::flags`: the workload is guarded, its own connection needs a grant.
pub const INTENT_GUARDED: u8 = 2;
/// `Intent::flags`: the SYN is on its way, so the socket will report its end to `flow_ops`.
pub const INTENT_CONFIRMED: u8 = 1 << 6;
/// `Intent::flags`: the application has let the socket go.
pub const INTENT_RELEASED: u8 = 1 << 7;

/// Value of `PROXY_FLOWS`: a connection that the agent itself opened.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProxyFlow {
    /// The workload from whose namespace it was dialled, 0 when none.
    pub pod_id: u32,
    /// [`PROXY_UP`] or [`PROXY_APP`].
    pub kind: u8,
    /// Like [`Flow::state`].
    pub state: u8,
    #[doc(hidden)]
    pub _pad: [u8; 2],
    /// CLOCK_MONOTONIC, nanoseconds.
    pub connect_ns: u64,
}
plain!(ProxyFlow, 16, [u32, u8, u8, [u8; 2], u64]);

/// `ProxyFlow::kind`: towards an endpoint.
pub const PROXY_UP: u8 = 0;
/// `ProxyFlow::kind`: towards the application of the workload, for an inbound connection.
pub const PROXY_APP: u8 = 1;

/// Value of `LOOP_FLOWS`, by the tuple on the workload's loopback, and of `ORIGIN`, with the agent's
/// accepted socket: where a connection was going that the connect hook sent there. It decides
/// correctness, so it never lives in an LRU; `flow_ops` deletes the former at close.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoopFlow {
    /// Address that the application asked for.
    pub asked: Addr,
    /// Port that the application asked for, host order.
    pub asked_port: u16,
    #[doc(hidden)]
    pub _pad: [u8; 6],
    /// CLOCK_MONOTONIC, nanoseconds.
    pub connect_ns: u64,
}
plain!(LoopFlow, 32, [Addr, u16, [u8; 6], u64]);

/// Value of `GRANTS`, by 4-tuple: a connection that the connect hook let a guarded workload open
/// itself. It grants passage, so `flow_ops` deletes it at close.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grant {
    /// The workload.
    pub pod_id: u32,
    #[doc(hidden)]
    pub _pad: u32,
    /// CLOCK_MONOTONIC, nanoseconds.
    pub connect_ns: u64,
}
plain!(Grant, 16, [u32, u32, u64]);
