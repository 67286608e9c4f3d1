//! The shield: drops frames at the node's interfaces before the kernel makes anything of them.
//!
//! An object of its own, loaded only where it is configured. State first, programs second: lists
//! and settings stand before the first frame meets them. What it makes is pinned, so it goes on
//! without an agent, and the next start adopts it. Decisions are in `mesh_ebpf::decide::shield`.

mod attach;
mod clsact;
mod content;
mod interface;
mod lists;
mod object;
mod offloads;
mod rules;
mod tables;
mod view;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};

use mesh_common::{
    abi::ABI_VERSION,
    shield::{MANUAL_MAX, Manual, Settings},
};

pub use self::view::{Check, Count, Holder, InterfaceStatus, Overview, RuleRow, SourceRow};
use self::{
    attach::{Attacher, How, Stand},
    content::Described,
    interface::{Interface, Uplinks},
    lists::Line,
    object::{Place, Programs},
    rules::Rules,
    tables::Tables,
};
use super::{Instance, KernelError, cleanup::Report, pins::Pins, route::Netlink};
use crate::{
    clock::{self, MonoNanos},
    model::shield::{Mode, Net, Rate, Shield as Wanted},
};

/// A list file's content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileList {
    /// Its path: the name of its rule.
    pub path: String,
    /// Its ranges.
    pub nets: Arc<[Net]>,
}

/// Where an entry comes from.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Origin {
    Manual,
    Config,
    File,
}

impl Origin {
    const fn label(&self) -> &'static str {
        match self {
            Self::Manual => "cli",
            Self::Config => "config",
            Self::File => "file",
        }
    }
}

/// How an operator's entry is refused.
#[derive(Debug, thiserror::Error)]
pub enum ManualError {
    /// No entry of an operator has this range.
    #[error("no entry {0} was added by the command line: `mesh shield list` shows what was")]
    Unknown(Net),
    /// There are too many.
    #[error(
        "there are {MANUAL_MAX} entries of the command line already: put lists into a file (shield.deny-files)"
    )]
    TooMany,
    /// The kernel side refused.
    #[error(transparent)]
    Kernel(#[from] KernelError),
}

/// The shield of one instance, loaded and pinned. Dropping it leaves everything in force.
pub struct Shield {
    instance: Instance,
    place: Place,
    programs: Programs,
    tables: Tables,
    rules: Rules,
    /// What the rules of entries are.
    described: Described,
    /// What stands in the trie; none: a write failed half-way, it must be read.
    installed: Option<Vec<Line>>,
    manual: BTreeMap<Net, Manual>,
    wanted: Wanted,
    files: Vec<FileList>,
    stands: BTreeMap<String, (u32, Stand)>,
    /// What `auto` means.
    uplinks: Uplinks,
    /// The next look at the interfaces is at all of them.
    anew: bool,
    tcx: bool,
}

impl std::fmt::Debug for Shield {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shield")
            .field("instance", &self.instance)
            .field("stands", &self.stands)
            .finish_non_exhaustive()
    }
}

/// What the shield is started with.
#[derive(Clone, Debug)]
pub struct ShieldOptions {
    /// The instance.
    pub instance: Instance,
    /// Whether tcx is used; without it, as on Linux before 6.6, a filter of clsact.
    pub tcx: bool,
}

impl Shield {
    /// Loads the object and adopts what is pinned: lists, counters, an operator's entries. Nothing
    /// is attached that was not; [`Shield::apply`] does.
    ///
    /// # Errors
    /// The object or a feature is missing, a pinned map has another layout: by name.
    pub fn start(options: &ShieldOptions) -> Result<Self, KernelError> {
        let pins = Pins::make(&options.instance)?;
        let place = Place::of(&pins);
        let programs = object::load(&place)?;
        let tables = Tables::open(&place)?;
        let rules = Rules::adopt(&tables)?;
        // Where an agent before us left it: the default route may be away just now.
        let mut uplinks = Uplinks::default();
        let left = place.all_links().into_iter();
        let left = left.filter_map(|(_, index, _)| interface::name(index));
        uplinks.follow(left.collect(), clock::now(), interface::exists);
        let manual = tables.manual.iter().flatten();
        let manual = manual
            .map(|(key, entry)| (lists::net(&key), entry))
            .collect();
        Ok(Self {
            instance: options.instance.clone(),
            installed: Some(tables.installed()?),
            described: HashMap::new(),
            place,
            programs,
            tables,
            rules,
            manual,
            wanted: Wanted::default(),
            files: Vec::new(),
            stands: BTreeMap::new(),
            uplinks,
            anew: true,
            tcx: options.tcx,
        })
    }

    /// What a list file that can't be read now said when it was last put in force, also by an agent
    /// before this one. Ranges that another list shadowed are not among it.
    pub fn last_of_file(&self, path: &str) -> Arc<[Net]> {
        let Some(number) = self.rules.number(path) else {
            return Arc::new([]);
        };
        let lines = self.installed.iter().flatten();
        lines
            .filter(|line| line.entry.is_deny() && line.entry.rule() == Some(number))
            .map(|line| line.net)
            .collect()
    }

    /// Puts settings and lists in force, then the programs on their interfaces.
    ///
    /// Lists are changed by their difference: at no moment is a range free that both the old and the
    /// new lists deny.
    ///
    /// # Errors
    /// The lists don't fit: the old ones stay in force, everything else is done.
    pub fn apply(&mut self, wanted: &Wanted, files: Vec<FileList>) -> Result<(), KernelError> {
        self.anew = true;
        self.apply_lists(wanted, files)
    }

    /// The same, but an interface where it stands is not looked at again: what was tried there and
    /// refused costs a driver its offloads for a moment each time.
    ///
    /// # Errors
    /// As [`Shield::apply`].
    pub fn apply_lists(
        &mut self,
        wanted: &Wanted,
        files: Vec<FileList>,
    ) -> Result<(), KernelError> {
        let before = std::mem::replace(&mut self.files, files);
        let wanted_before = std::mem::replace(&mut self.wanted, wanted.clone());
        let lists = self.relist();
        if lists.is_err() {
            self.files = before;
            self.wanted.allow = wanted_before.allow;
            self.wanted.deny = wanted_before.deny;
        }
        let settings = settings(&self.wanted);
        self.tables
            .config
            .set(0, settings, 0)
            .map_err(tables::failed("SHIELD_CONFIG"))?;
        self.attach(self.anew, clock::now())?;
        self.anew = false;
        lists
    }

    /// Lets go of entries whose time is over, and looks after the interfaces: one that was made
    /// anew gets its program again.
    ///
    /// # Errors
    /// The kernel refused a write.
    pub fn tick(&mut self, now: MonoNanos) -> Result<(), KernelError> {
        let over: Vec<Net> = self
            .manual
            .iter()
            .filter(|(_, manual)| manual.expires_ns != 0 && manual.expires_ns <= now.0)
            .map(|(net, _)| *net)
            .collect();
        let mut first = Ok(());
        for net in over {
            // One that fails stays, and is tried again by the next tick.
            match self.drop_manual(net) {
                Ok(()) => tracing::info!(%net, "the time of a shield entry is over"),
                Err(error) => first = first.and(Err(error)),
            }
        }
        first.and(self.attach(false, now))
    }

    /// Interfaces by name, as the configuration means them.
    fn interfaces(&mut self, now: MonoNanos) -> Result<BTreeSet<String>, KernelError> {
        let mut names = BTreeSet::new();
        if self.wanted.mode == Mode::Off {
            return Ok(names);
        }
        for name in &self.wanted.interfaces {
            if name == "auto" {
                let found = interface::of_default_routes();
                let found = found.map_err(KernelError::io("default routes"))?;
                names.extend(self.uplinks.follow(found, now, interface::exists));
            } else {
                names.insert(name.clone());
            }
        }
        Ok(names)
    }

    /// Brings the programs to where they are wanted; `anew`: also where they stand already, since
    /// what is best there may have changed.
    fn attach(&mut self, anew: bool, now: MonoNanos) -> Result<(), KernelError> {
        let names = self.interfaces(now)?;
        let mut netlink = Netlink::open().map_err(KernelError::io("netlink"))?;
        let mut attacher = Attacher {
            instance: &self.instance,
            place: &self.place,
            programs: &self.programs,
            netlink: &mut netlink,
            tcx: self.tcx,
        };
        let mut stands = BTreeMap::new();
        for name in &names {
            let found = Interface::find(attacher.netlink, name).map_err(KernelError::io(name))?;
            let before = self.stands.get(name);
            let stand = match found {
                None => (0, Stand::missing()),
                Some(found) => match before {
                    Some((index, stand))
                        if !anew && *index == found.index && attacher.stands(&found, stand) =>
                    {
                        (*index, stand.clone())
                    }
                    _ => (found.index, attacher.attach(&found, self.wanted.mode)),
                },
            };
            if before != Some(&stand) {
                tell(name, &stand.1);
            }
            stands.insert(name.clone(), stand);
        }
        let wanted: BTreeSet<u32> = stands.values().map(|(index, _)| *index).collect();
        let pinned = self.place.all_links().into_iter().map(|link| link.1);
        let known = self.stands.values().map(|(index, _)| *index);
        let leave: BTreeSet<u32> = pinned
            .chain(known)
            .filter(|index| *index != 0 && !wanted.contains(index))
            .collect();
        for index in leave {
            attacher.remove_but(index, None);
        }
        self.stands = stands;
        Ok(())
    }
}

fn tell(interface: &str, stand: &Stand) {
    let why = stand.why.as_deref().unwrap_or_default();
    match stand.how {
        Some(how) => tracing::info!(interface, how = how.label(), why, "the shield stands"),
        None => tracing::warn!(interface, why, "the shield does not stand"),
    }
}

fn settings(wanted: &Wanted) -> Settings {
    let (syn_interval_ns, syn_tolerance_ns) = bucket(wanted.syn_rate);
    let (connection_interval_ns, connection_tolerance_ns) = bucket(wanted.connection_rate);
    Settings {
        abi: ABI_VERSION,
        drop_bogus: u32::from(wanted.drop_bogus),
        syn_interval_ns,
        syn_tolerance_ns,
        connection_interval_ns,
        connection_tolerance_ns,
        _reserved: [0; 3],
    }
}

/// What one event costs, and how far ahead of the clock they may be together. Rounded so that no
/// more pass than the rate says: one nanosecond too much for each.
fn bucket(rate: Option<Rate>) -> (u64, u64) {
    let Some(rate) = rate else { return (0, 0) };
    let per = u64::try_from(rate.per.as_nanos()).unwrap_or(u64::MAX);
    let interval = per.div_ceil(rate.count.max(1)).max(1);
    let tolerance = interval.saturating_mul(u64::from(rate.burst.max(1) - 1));
    (interval, tolerance)
}

/// Removes the shield of an instance: programs, then maps, with an operator's entries. Nothing
/// happens where there is none.
///
/// # Errors
/// What could not be removed.
pub fn remove(instance: &Instance) -> Result<(), KernelError> {
    let Some(pins) = Pins::find(instance).map_err(KernelError::io("/proc/self/mountinfo"))? else {
        return Ok(());
    };
    let place = Place::of(&pins);
    if !place.exists() {
        return Ok(());
    }
    let mut report = Report::default();
    clean(instance, &pins, false, &mut report);
    place
        .remove()
        .map_err(KernelError::io("the shield's pins"))?;
    match report.failed.first() {
        None => Ok(()),
        Some(failed) => Err(KernelError::Io {
            what: "the shield".to_owned(),
            source: std::io::Error::other(failed.clone()),
        }),
    }
}

/// The part of a cleanup that a directory of pins doesn't show: links by name, and filters of
/// clsact, which are no pins at all.
pub(super) fn clean(instance: &Instance, pins: &Pins, dry_run: bool, report: &mut Report) {
    for (name, root) in pins.every() {
        let place = Place::of(&root);
        if name != instance.name() {
            continue;
        }
        for (how, number, path) in place.all_links() {
            let result = if dry_run {
                Ok(())
            } else {
                std::fs::remove_file(&path)
            };
            report.note(format!("shield link {how}-{number}"), result);
        }
    }
    let found = Netlink::open().and_then(|mut netlink| {
        for index in clsact::everywhere(&mut netlink, instance)? {
            let result = if dry_run {
                Ok(())
            } else {
                clsact::detach(&mut netlink, instance, index).map(drop)
            };
            report.note(format!("shield filter of interface {index}"), result);
        }
        Ok(())
    });
    if let Err(error) = found {
        report.failed.push(format!("filters of clsact: {error}"));
    }
}

/// How long after its addition an entry ends.
pub fn expiry(now: MonoNanos, after: Option<Duration>) -> Option<MonoNanos> {
    after.map(|after| now.after(after))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bucket_never_lets_more_pass_than_its_rate() {
        let rate = |count, seconds, burst| {
            bucket(Some(Rate {
                count,
                per: Duration::from_secs(seconds),
                burst,
            }))
        };
        assert_eq!(rate(100, 1, 1), (10_000_000, 0));
        assert_eq!(rate(3, 1, 4), (333_333_334, 3 * 333_333_334));
        assert_eq!(rate(u64::MAX, 1, 2), (1, 1));
        assert_eq!(bucket(None), (0, 0));
    }
}
