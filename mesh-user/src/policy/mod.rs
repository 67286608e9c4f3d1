//! The decisions: which version, which endpoint, whether at all.
//!
//! Pure functions of (`&Snapshot`, the request, the state, the time). No tokio, hyper, aya, clock
//! or randomness inside; `mesh explain` calls the same functions with a recording [`Observer`].
//!
//! Order for a request: [`route::decide`] (rule, then version by weight) -> [`rate_limit::admit`]
//! (once per request) -> for each attempt: [`balance::pick`] -> [`breaker::Breaker::request`]
//! (last, so that a refused request never spends a permit) -> forward -> [`Snapshot::record`].

pub mod balance;
pub mod breaker;
pub mod describe;
pub mod ejection;
pub mod explain;
pub mod observe;
pub mod rate_limit;
pub mod reject;
pub mod request;
pub mod retry;
pub mod rng;
pub mod route;
pub mod snapshot;
pub mod split;

pub use observe::{NoObserver, Observer};
pub use reject::Reject;
pub use request::{HeaderView, RequestView};
pub use snapshot::{EndpointIx, PortIx, RuleIx, Snapshot, SourceIx, VersionIx};
