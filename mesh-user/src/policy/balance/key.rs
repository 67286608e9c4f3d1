//! The key of a request, by which a table finds its endpoint.

use std::hash::Hasher as _;

use twox_hash::XxHash64;

use super::super::{
    HeaderView, RequestView, Snapshot, attribute::Asker, request::Client, route::Plan,
};

/// The hash of the attributes that the version's policy names, in its order. None when the version
/// is not balanced by a key, or when the request has none of them: any endpoint will do.
pub fn key<H: HeaderView>(
    snapshot: &Snapshot,
    plan: &Plan,
    client: Client,
    request: Option<&RequestView<'_, H>>,
) -> Option<u64> {
    let version = snapshot.version(plan.version);
    if !version.balance.is_hashed() {
        return None;
    }
    let policy = &version.table.more.as_deref()?.policy;
    let asker = Asker::of(snapshot, plan, client, request);
    let mut hash = XxHash64::with_seed(u64::from(policy.seed));
    let mut any = false;
    for (at, attribute) in (1_u64..).zip(&policy.hash) {
        let mut length = 0_u64;
        let there = asker.attribute(attribute, |part| {
            hash.write(part);
            length += part.len() as u64;
        });
        if there {
            any = true;
            // `a` and `bc` are not `ab` and `c`, nor one attribute another.
            hash.write_u64(length << 8 | at);
        }
    }
    any.then(|| hash.finish())
}
