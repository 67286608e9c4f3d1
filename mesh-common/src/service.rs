//! Services as the connect hook sees them.

use crate::{addr::Addr, plain::plain};

/// Key of `SERVICES`: one address and port of a service.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ServiceKey {
    /// Virtual address.
    pub addr: Addr,
    /// Port, host order.
    pub port: u16,
    /// IP protocol: 6 for TCP.
    pub proto: u8,
    #[doc(hidden)]
    pub _pad: u8,
}
plain!(ServiceKey, 20, [Addr, u16, u8, u8]);

/// Value of `SERVICES`: who decides, and the last kernel-side split.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServiceEntry {
    /// Service port number: index into `SPLIT_SEQ`, 1 to [`SERVICE_PORTS_MAX`] - 1.
    pub service_id: u32,
    /// [`DECIDE_PASS`], [`DECIDE_KERNEL`] or [`DECIDE_PROXY`].
    pub decision: u32,
    /// First slot in `SLOTS`.
    pub slots_off: u32,
    /// How many slots; 0: the kernel can't choose an endpoint.
    pub slots_len: u32,
    /// Bit 0: [`FLAG_ROUTABLE`].
    pub flags: u32,
    #[doc(hidden)]
    pub _pad: u32,
}
plain!(ServiceEntry, 24, [u32, u32, u32, u32, u32, u32]);

/// Nothing to decide: the connection is not touched.
pub const DECIDE_PASS: u32 = 0;
/// The connect hook chooses the endpoint.
pub const DECIDE_KERNEL: u32 = 1;
/// The proxy decides.
pub const DECIDE_PROXY: u32 = 2;

/// The platform routes the virtual address itself (kube-proxy and friends). Without it, a
/// fail-open connect uses the slots, for nobody else knows the address (DESIGN §10.8).
pub const FLAG_ROUTABLE: u32 = 1;

/// Capacity of `SPLIT_SEQ`: service ports, one of them (0) unused.
pub const SERVICE_PORTS_MAX: u32 = 131_072;

/// Value of `BACKENDS`: one endpoint.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backend {
    /// Its address.
    pub addr: Addr,
    /// Its port, host order.
    pub port: u16,
    /// [`BACKEND_OUT`], [`BACKEND_ON`] or [`BACKEND_REFUSE`].
    pub state: u16,
    /// Node-wide number of the service port's version that it was put here for: no two versions
    /// share an entry, so counters and caps are theirs alone.
    pub version_id: u32,
    /// Number of its version's connection cap in `CAPS` and `CAP_LIMITS`, 0: none.
    pub cap: u32,
    #[doc(hidden)]
    pub _pad: u32,
}
plain!(Backend, 32, [Addr, u16, u16, u32, u32, u32]);

/// `Backend::state`: free, or out of rotation: the next slot is tried.
pub const BACKEND_OUT: u16 = 0;
/// `Backend::state`: may be chosen.
pub const BACKEND_ON: u16 = 1;
/// `Backend::state`: stands for a version without any endpoint: its share is refused, not given to
/// others (the proxy answers it with 503).
pub const BACKEND_REFUSE: u16 = 2;

/// Capacity of `CAPS` and `CAP_LIMITS`: versions with a connection cap, one number (0) unused.
pub const CAPS_MAX: u32 = 16_384;

/// Value of `CAPS`: the connections that the kernel opened for one version. The limit stands in
/// `CAP_LIMITS`, for the agent can't write one word of a value.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Cap {
    /// Connections that hold a place now.
    pub active: u64,
    /// Connections that were refused for it.
    pub refused: u64,
}
plain!(Cap, 16, [u64, u64]);

/// Value of `EP_STATS`: what happened to connections that the kernel sent to a backend.
///
/// Not per CPU: a hundred CPUs times the map's capacity would be most of a gigabyte, and the agent
/// would need a system call for each backend in each tick. Connections that are under way:
/// `opened - failed - abandoned - closed`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct EndpointStats {
    /// Connections begun.
    pub opened: u64,
    /// Connections established.
    pub established: u64,
    /// Connections that ended before they were established: refused, unreachable, or without an
    /// answer to the first SYN when the application gave up.
    pub failed: u64,
    /// Established connections that ended.
    pub closed: u64,
    /// Bytes that ended connections sent to it and had acknowledged, one off at most for each
    /// connection that was reset.
    pub bytes_out: u64,
    /// Bytes that ended connections received from it, one off at most for each connection that was
    /// reset, or closed by the application before the endpoint ended.
    pub bytes_in: u64,
    /// Connections that the application closed before an answer could be missed: they say nothing
    /// about the endpoint.
    pub abandoned: u64,
}
plain!(EndpointStats, 56, [u64, u64, u64, u64, u64, u64, u64]);
