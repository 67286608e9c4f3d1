//! Tables in which a key finds its endpoint: a ring of hashes, or Maglev's.
//!
//! A table is a pure function of the endpoints' addresses and weights and of the policy: nodes that
//! know the same endpoints choose alike, in whatever order they were told of them. Endpoints that
//! are sick stay in it and are passed over, so that only their own keys move, and all of these come
//! back with them.

use std::{
    net::SocketAddr,
    sync::{Arc, OnceLock},
};

use twox_hash::XxHash64;

use crate::{
    model::{Balance, BalancePolicy, balance::is_prime},
    policy::snapshot::EndpointState,
};

/// Tables with more entries are built with the snapshot instead of by the first request: so many
/// take about 10 ms.
const LAZY_MAX: u64 = 1 << 18;

/// Entries that are tried one after the other, before the endpoints are asked one by one.
const STEPS_MAX: u32 = 64;

/// What a table is made of; equal ones are shared.
#[derive(Debug, PartialEq, Eq)]
struct Recipe {
    /// Sorted by address.
    members: Box<[(SocketAddr, u32)]>,
    algorithm: Balance,
    seed: u32,
    sizes: (u32, u32),
}

/// A table of one priority.
#[derive(Debug)]
pub(super) struct Hashed {
    recipe: Recipe,
    /// Position in the version's endpoints of each member.
    places: Box<[u32]>,
    built: OnceLock<Arc<Built>>,
}

#[derive(Debug)]
enum Built {
    /// Hashes in order, each with its member.
    Ring(Box<[(u64, u32)]>),
    /// A member for each remainder.
    Maglev(Box<[u32]>),
}

impl Hashed {
    /// `members`: positions in `endpoints`, sick ones included, those of weight 0 not.
    /// `previous`: tables of the last snapshot, one of which may still be right.
    pub(super) fn new(
        endpoints: &[Arc<EndpointState>],
        members: &[u32],
        policy: &BalancePolicy,
        previous: &[Self],
    ) -> Self {
        let mut places: Box<[u32]> = members.into();
        places.sort_by_key(|at| endpoints[*at as usize].address);
        let member = |at: &u32| {
            let endpoint = &endpoints[*at as usize];
            (endpoint.address, endpoint.weight)
        };
        let recipe = Recipe {
            members: places.iter().map(member).collect(),
            algorithm: policy.algorithm,
            seed: policy.seed,
            sizes: match policy.algorithm {
                // The configuration refuses other sizes; with one of them no fill would end.
                Balance::Maglev if is_prime(policy.table_size) => (policy.table_size, 0),
                Balance::Maglev => (BalancePolicy::default().table_size, 0),
                _ => (policy.ring_min, policy.ring_max),
            },
        };
        let same = previous.iter().find(|table| table.recipe == recipe);
        let built = match same.and_then(|table| table.built.get()) {
            Some(built) => OnceLock::from(Arc::clone(built)),
            // The last one was in use: no request shall wait for this one.
            None if recipe.entries() > LAZY_MAX || previous.iter().any(Self::is_built) => {
                OnceLock::from(Arc::new(recipe.build()))
            }
            None => OnceLock::new(),
        };
        Self {
            recipe,
            places,
            built,
        }
    }

    fn is_built(&self) -> bool {
        self.built.get().is_some()
    }

    /// The endpoint of a key (by its position in the version's endpoints): the first that `may`,
    /// from the key's place on; when many may not, one of those that may, by the key again.
    pub(super) fn find(&self, key: u64, may: impl Fn(u32) -> bool) -> Option<u32> {
        let built = self.built.get_or_init(|| Arc::new(self.recipe.build()));
        let place = |member: u32| self.places[member as usize];
        let near = match &**built {
            Built::Ring(ring) if !ring.is_empty() => {
                let first = ring.partition_point(|(hash, _)| *hash < key);
                (0..STEPS_MAX as usize)
                    .map(|step| place(ring[(first + step) % ring.len()].1))
                    .find(|at| may(*at))
            }
            Built::Maglev(table) if !table.is_empty() => {
                let first = (key % table.len() as u64) as usize;
                (0..STEPS_MAX as usize)
                    .map(|step| place(table[(first + step) % table.len()]))
                    .find(|at| may(*at))
            }
            Built::Ring(_) | Built::Maglev(_) => None,
        };
        near.or_else(|| self.by_rank(key, may))
    }

    /// Rendezvous: the highest hash of key and address among those that may.
    #[cold]
    fn by_rank(&self, key: u64, may: impl Fn(u32) -> bool) -> Option<u32> {
        let members = self.recipe.members.iter().zip(&self.places);
        members
            .filter(|(_, at)| may(**at))
            .max_by_key(|((address, _), _)| hash_of(key, *address, 0))
            .map(|(_, at)| *at)
    }

    #[cfg(test)]
    pub(super) fn is_shared_with(&self, other: &Self) -> bool {
        match (self.built.get(), other.built.get()) {
            (Some(one), Some(other)) => Arc::ptr_eq(one, other),
            _ => false,
        }
    }
}

/// Of an address, the same on every node: 16 bytes of address, port, and a number.
fn hash_of(seed: u64, address: SocketAddr, number: u32) -> u64 {
    let mut bytes = [0; 22];
    let ip = match address.ip() {
        std::net::IpAddr::V4(ip) => ip.to_ipv6_mapped(),
        std::net::IpAddr::V6(ip) => ip,
    };
    bytes[..16].copy_from_slice(&ip.octets());
    bytes[16..18].copy_from_slice(&address.port().to_be_bytes());
    bytes[18..].copy_from_slice(&number.to_be_bytes());
    XxHash64::oneshot(seed, &bytes)
}

impl Recipe {
    /// About how many entries it makes.
    fn entries(&self) -> u64 {
        match self.algorithm {
            Balance::Maglev => u64::from(self.sizes.0),
            _ => self.ring_counts().sum(),
        }
    }

    fn build(&self) -> Built {
        match self.algorithm {
            Balance::Maglev => Built::Maglev(self.maglev()),
            _ => Built::Ring(self.ring()),
        }
    }

    /// Entries of each member, by weight: the lightest has the least power of two that makes a ring
    /// of at least the least size. So one endpoint more or less leaves the entries of the others as
    /// they are, but for where a power is passed (Envoy, with any number, moves a few more keys).
    fn ring_counts(&self) -> impl Iterator<Item = u64> {
        let (min, max) = (u64::from(self.sizes.0), u64::from(self.sizes.1));
        let weights = || self.members.iter().map(|(_, weight)| u64::from(*weight));
        let total = weights().sum::<u64>().max(1);
        let least = weights().min().unwrap_or(1).max(1);
        let mut each = (min * least).div_ceil(total).next_power_of_two();
        while each > 1 && each * total / least > max {
            each /= 2;
        }
        // Even with one for the lightest it may be too large: then by share, but nobody has none.
        let (part, whole) = if each * total / least > max {
            (max, total)
        } else {
            (each, least)
        };
        weights().map(move |weight| ((weight * part + whole / 2) / whole).max(1))
    }

    fn ring(&self) -> Box<[(u64, u32)]> {
        let mut ring = Vec::new();
        for ((member, (address, _)), count) in (0_u32..).zip(&self.members).zip(self.ring_counts())
        {
            ring.extend(
                (0..count as u32)
                    .map(|number| (hash_of(u64::from(self.seed), *address, number), member)),
            );
        }
        ring.sort_unstable();
        ring.into()
    }

    /// Eisenbud et al., «Maglev», NSDI 2016, §3.4, with weights as Envoy: in each round a member
    /// takes a turn when its weight times the round has reached what it has taken so far.
    fn maglev(&self) -> Box<[u32]> {
        let size = u64::from(self.sizes.0);
        let heaviest = self.members.iter().map(|(_, weight)| *weight).max();
        let Some(heaviest) = heaviest.filter(|weight| *weight > 0) else {
            return Box::default();
        };
        struct Turns {
            next: u64,
            skip: u64,
            taken: u64,
            weight: u64,
        }
        let seed = u64::from(self.seed);
        let mut turns: Vec<Turns> = self
            .members
            .iter()
            .map(|(address, weight)| Turns {
                next: hash_of(seed, *address, 0) % size,
                skip: hash_of(seed, *address, 1) % (size - 1) + 1,
                taken: 0,
                weight: u64::from(*weight),
            })
            .collect();
        let mut table = vec![u32::MAX; size as usize];
        let mut left = size;
        for round in 1_u64.. {
            for (member, turn) in (0_u32..).zip(&mut turns) {
                if round * turn.weight < turn.taken {
                    continue;
                }
                turn.taken += u64::from(heaviest);
                while table[turn.next as usize] != u32::MAX {
                    turn.next += turn.skip;
                    turn.next -= if turn.next >= size { size } else { 0 };
                }
                table[turn.next as usize] = member;
                left -= 1;
                if left == 0 {
                    return table.into();
                }
            }
        }
        table.into()
    }
}

#[cfg(test)]
mod tests;
