//! The decisions: which version, which endpoint, whether at all.
//!
//! Pure functions of (`&Snapshot`, the request, the state, the time). No tokio, hyper, aya, clock
//! or randomness inside; `mesh explain` calls the same functions with a recording [`Observer`].
//!
//! Order for a request: [`route::decide`] (rule, then version by weight) -> [`rate_limit::admit`]
//! (once per request) -> for each attempt: [`balance::pick`] -> [`breaker::Breaker::request`]
//! (last, so that a refused request never spends a permit) -> forward -> [`Snapshot::record`].

pub mod action;
pub mod adaptive;
pub mod arena;
mod attribute;
pub mod balance;
pub mod breaker;
pub mod budget;
mod choice;
mod compile;
pub mod describe;
pub mod effective;
pub mod ejection;
pub mod explain;
mod hash;
pub mod health;
pub mod held;
mod histogram;
pub mod inbound;
mod index;
mod matcher;
pub mod observe;
pub mod rate_limit;
pub mod reject;
pub mod request;
pub mod retry;
pub mod rng;
pub mod route;
pub mod session;
mod slots;
pub mod snapshot;
mod sni;
pub mod split;
mod sticky;
pub mod terms;
mod unit;
mod value;

#[cfg(test)]
mod fixture;

pub use observe::{NoObserver, Observer};
pub use reject::Reject;
pub use request::{Client, HeaderView, RequestView};
pub use snapshot::{EndpointIx, PortIx, RuleIx, Snapshot, SourceIx, VersionIx};

/// A number that no other endpoint, split or ejection of this process has or had.
fn next_id() -> u64 {
    static NEXT: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(1);
    NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed)
}
