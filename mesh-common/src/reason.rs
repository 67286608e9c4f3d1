//! Why the programs did what they did: counter indexes and event records.

use crate::{addr::Addr, plain::plain};

macro_rules! reasons {
    ($($(#[$doc:meta])* $name:ident = $code:literal, $label:literal, $refusal:literal;)+) => {
        /// Why a program decided as it did. Also the index into `COUNTERS`.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(u32)]
        pub enum Reason {
            $($(#[$doc])* $name = $code,)+
        }

        impl Reason {
            /// Every reason, by code.
            pub const ALL: &'static [Reason] = &[$(Reason::$name),+];

            /// Its name in metrics, events, the CLI and the docs.
            pub const fn label(self) -> &'static str {
                match self { $(Reason::$name => $label,)+ }
            }

            /// Whether the connection was refused for it.
            pub const fn is_refusal(self) -> bool {
                match self { $(Reason::$name => $refusal,)+ }
            }

            /// From a code that stands in a map; `None` for one that this build doesn't know.
            pub const fn decode(code: u32) -> Option<Reason> {
                match code { $($code => Some(Reason::$name),)+ _ => None }
            }
        }
    };
}

reasons! {
    /// Captured for the proxy.
    Captured = 0, "captured", false;
    /// The agent's own socket.
    PassAgent = 1, "pass_agent", false;
    /// Network namespace not enrolled.
    PassUnknown = 2, "pass_unknown_netns", false;
    /// Loopback or unspecified destination.
    PassLoopback = 3, "pass_loopback", false;
    /// Not a service of the model.
    PassOutside = 4, "pass_outside_model", false;
    /// A service that has nothing to decide.
    PassService = 5, "pass_service", false;
    /// An address of an enrolled workload: no routing applies to pod addresses.
    PassPod = 6, "pass_pod_address", false;
    /// Capture is paused (`mesh redirect off`), or off for this workload.
    PassPaused = 7, "pass_paused", false;
    /// An outbound rule says pass.
    PassRule = 8, "pass_rule", false;
    /// Agent gone, failure mode open: sent as the platform routes it.
    BypassAgentGone = 9, "bypass_agent_gone", false;
    /// Agent gone, failure mode open: sent to an endpoint of the last split.
    DirectAgentGone = 10, "direct_agent_gone", false;
    /// Agent gone, failure mode closed.
    RefuseAgentGone = 11, "refuse_agent_gone", true;
    /// Network namespace not enrolled, and `unknown-netns: refuse`.
    RefuseUnknown = 12, "refuse_unknown_netns", true;
    /// An outbound rule says deny.
    RefuseRule = 13, "refuse_rule", true;
    /// The socket could not be marked or its intent not stored, failure mode open.
    BypassState = 14, "bypass_state_failed", false;
    /// The socket could not be marked or its intent not stored, failure mode closed.
    RefuseState = 15, "refuse_state_failed", true;
    /// The kernel chose an endpoint.
    Kernel = 16, "kernel_l4", false;
    /// `steer` gave a captured SYN to a listener.
    SteerOut = 17, "steer_out", false;
    /// `steer` let a connection to a workload through.
    SteerPassIn = 18, "steer_pass_in", false;
    /// `steer` let through what is none of its business.
    SteerPassOther = 19, "steer_pass_other", false;
    /// `steer` found no live listener: failure mode open, lookup goes on.
    SteerMissOpen = 20, "steer_miss_open", false;
    /// `steer` found no live listener: failure mode closed, dropped.
    SteerMissClosed = 21, "steer_miss_closed", true;
    /// `steer` took shard 0 since the hashed shard had no listener.
    SteerFallback = 22, "steer_shard_fallback", false;
    /// A flow was written at connect.
    FlowOpened = 23, "flow_opened", false;
    /// A flow was established.
    FlowEstablished = 24, "flow_established", false;
    /// A flow was removed at close.
    FlowClosed = 25, "flow_closed", false;
    /// `FLOWS` took no entry.
    FlowFull = 26, "flow_map_full", false;
    /// A dial of the agent was recorded.
    ProxyFlowOpened = 27, "proxy_flow_opened", false;
    /// A dial of the agent ended.
    ProxyFlowClosed = 28, "proxy_flow_closed", false;
    /// `PROXY_FLOWS` took no entry.
    ProxyFlowFull = 29, "proxy_flow_map_full", false;
    /// An event found no room in `EVENTS`.
    EventLost = 30, "event_lost", false;
    /// `CONFIG` was not there or of another ABI: the programs do nothing.
    NoConfig = 31, "no_config", false;
    /// Not a TCP stream socket.
    PassNotTcp = 32, "pass_not_tcp", false;
    /// The kernel decides for the service, and none of its endpoints can be reached by a socket of
    /// this family.
    RefuseNoEndpoint = 33, "refuse_no_endpoint", true;
    /// `steer` gave a SYN from outside to the workload's inbound listener.
    SteerIn = 34, "steer_in", false;
    /// An inbound rule says deny: dropped by `steer`.
    RefuseInbound = 35, "refuse_inbound_rule", true;
    /// `steer` let a probe of the kubelet through, by its exact tuple.
    SteerPassProbe = 36, "steer_pass_probe", false;
    /// `steer` let a workload talk to itself.
    SteerPassSelf = 37, "steer_pass_self", false;
    /// `steer` let a dial of the agent through to the application.
    SteerPassProxied = 38, "steer_pass_proxied", false;
    /// The connection cap of the chosen version is reached: ECONNREFUSED.
    RefuseCap = 39, "refuse_connection_cap", true;
    /// `egress_guard` saw a SYN that neither the agent opened nor the connect hook let through.
    RefuseGuardSyn = 40, "refuse_guard_syn", true;
    /// `egress_guard` saw a source address that is not the workload's.
    RefuseGuardSource = 41, "refuse_guard_source", true;
    /// `egress_guard` saw a TCP fragment.
    RefuseGuardFragment = 42, "refuse_guard_fragment", true;
    /// `egress_guard` saw headers that it can't follow to the transport header.
    RefuseGuardHeader = 43, "refuse_guard_header", true;
    /// `egress_guard` saw a datagram that an outbound rule denies.
    RefuseGuardRule = 44, "refuse_guard_rule", true;
    /// `egress_guard` let a SYN through.
    GuardPass = 45, "guard_pass", false;
    /// A guarded workload wanted to touch our mark bits: EPERM.
    RefuseMark = 46, "refuse_mark", true;
    /// `GRANTS` took no entry: `egress_guard` will drop the SYN.
    GrantFull = 47, "grant_map_full", false;
    /// Captured by a rewrite to the workload's loopback (mode `loopback`).
    CapturedLoopback = 48, "captured_loopback", false;
    /// `LOOP_FLOWS` took no entry: the proxy refuses the connection.
    LoopFlowFull = 49, "loop_flow_map_full", false;
    /// A probe of the kubelet was recorded.
    ProbeFlowOpened = 50, "probe_flow_opened", false;
    /// A bind was given SO_REUSEADDR, so that our accepted sockets don't stand in its way.
    BindReuse = 51, "bind_reuse", false;
    /// An outbound rule denies the datagram.
    RefuseDatagram = 52, "refuse_datagram", true;
    /// `egress_guard` saw data on a connection of the agent's that the agent's socket did not send.
    RefuseGuardForged = 53, "refuse_guard_forged", true;
    /// The agent's audit put something back that was missing.
    Repaired = 54, "repaired", false;
    /// The agent's audit could not put something back: the failure mode of the workload holds.
    RepairFailed = 55, "repair_failed", false;
    /// The agent's audit saw something of others that runs before ours.
    Interference = 56, "interference", false;
    /// A captured connection ended whose entry `FLOWS` had given to a newer one.
    FlowLost = 57, "flow_lost", false;
}

/// Capacity of `COUNTERS`; room for reasons to come.
pub const COUNTERS_MAX: u32 = 128;

/// A record in `EVENTS`. Only what an operator may have to act on: refusals, bypasses, misses.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    /// CLOCK_MONOTONIC, nanoseconds.
    pub time_ns: u64,
    /// Cookie of the network namespace, 0 where the hook can't know it.
    pub netns: u64,
    /// Source address where known.
    pub src: Addr,
    /// Destination address.
    pub dst: Addr,
    /// Source port, host order, 0 where not known.
    pub sport: u16,
    /// Destination port, host order.
    pub dport: u16,
    /// Code of a [`Reason`].
    pub reason: u32,
    /// The workload, 0 when none.
    pub pod_id: u32,
    /// Thread group of the caller, 0 where the hook can't know it.
    pub tgid: u32,
}
plain!(Event, 64, [u64, u64, Addr, Addr, u16, u16, u32, u32, u32]);

impl Event {
    /// From a record of the ring buffer, in the byte order of the machine; `None` when it is not
    /// of this size.
    pub fn from_bytes(record: &[u8]) -> Option<Self> {
        let record: &[u8; 64] = record.try_into().ok()?;
        Some(Self {
            time_ns: u64::from_ne_bytes(part(record, 0)),
            netns: u64::from_ne_bytes(part(record, 8)),
            src: Addr::from_octets(part(record, 16)),
            dst: Addr::from_octets(part(record, 32)),
            sport: u16::from_ne_bytes(part(record, 48)),
            dport: u16::from_ne_bytes(part(record, 50)),
            reason: u32::from_ne_bytes(part(record, 52)),
            pod_id: u32::from_ne_bytes(part(record, 56)),
            tgid: u32::from_ne_bytes(part(record, 60)),
        })
    }
}

fn part<const N: usize>(record: &[u8; 64], at: usize) -> [u8; N] {
    core::array::from_fn(|i| record[at + i])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reason_codes_are_dense_and_decode_to_themselves() {
        for (index, reason) in Reason::ALL.iter().enumerate() {
            assert_eq!(*reason as usize, index);
            assert_eq!(Reason::decode(*reason as u32), Some(*reason));
        }
        assert_eq!(Reason::decode(Reason::ALL.len() as u32), None);
        assert!(Reason::ALL.len() <= COUNTERS_MAX as usize);
    }

    #[test]
    fn event_of_another_size_is_no_event() {
        let record: [u8; 64] = core::array::from_fn(|i| i as u8);
        let event = Event::from_bytes(&record).unwrap();
        assert_eq!(event.time_ns, u64::from_ne_bytes([0, 1, 2, 3, 4, 5, 6, 7]));
        assert_eq!(event.dst.octets()[0], 32);
        assert_eq!(event.tgid, u32::from_ne_bytes([60, 61, 62, 63]));
        assert_eq!(Event::from_bytes(&record[..63]), None);
        assert_eq!(Event::from_bytes(&[0; 65]), None);
    }

    #[test]
    fn refusals_say_so_in_their_name() {
        for reason in Reason::ALL {
            let named =
                reason.label().starts_with("refuse") || reason.label() == "steer_miss_closed";
            assert_eq!(reason.is_refusal(), named, "{}", reason.label());
        }
    }
}
