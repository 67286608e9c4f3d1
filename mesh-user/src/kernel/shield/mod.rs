//! The shield: drops frames at the node's interfaces before the kernel makes anything of them.
//!
//! An object of its own, loaded only where it is configured. State first, programs second: lists
//! and settings stand before the first frame meets them. What it makes is pinned, so it goes on
//! without an agent, and the next start adopts it. Decisions are in `mesh_ebpf::decide::shield`.

mod attach;
mod clsact;
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
    shield::{Entry, MANUAL_MAX, Manual, PREFIXES_MAX, Settings},
};

pub use self::view::{Check, Count, Holder, InterfaceStatus, Overview, RuleRow, SourceRow};
use self::{
    attach::{Attacher, How, Stand},
    interface::Interface,
    lists::Line,
    object::{Place, Programs},
    rules::Rules,
    tables::Tables,
};
use super::{Instance, KernelError, cleanup::Report, pins::Pins, route::Netlink};
use crate::{
    clock::MonoNanos,
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

/// Rules by number: where from, allowed or denied, how many ranges.
type Described = HashMap<u32, (Origin, bool, usize)>;

/// One thing that was asked for.
struct Said<'a> {
    net: Net,
    allow: bool,
    origin: Origin,
    rule: std::borrow::Cow<'a, str>,
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
        self.attach(true)?;
        lists
    }

    /// What an operator, the configuration and the files say, in the order in which the first of
    /// equal ranges wins.
    fn said(&self) -> impl Iterator<Item = Said<'_>> {
        let manual = self.manual.iter().map(|(net, manual)| {
            let allow = manual.entry.is_allow();
            Said {
                net: *net,
                allow,
                origin: Origin::Manual,
                rule: rule_name(Origin::Manual, allow, *net).into(),
            }
        });
        let allow = self.wanted.allow.iter().map(|net| Said {
            net: (*net).into(),
            allow: true,
            origin: Origin::Config,
            rule: rule_name(Origin::Config, true, (*net).into()).into(),
        });
        let deny = self.wanted.deny.iter().map(|deny| Said {
            net: deny.cidr.into(),
            allow: false,
            origin: Origin::Config,
            rule: match &deny.rule {
                Some(rule) => rule.as_str().into(),
                None => rule_name(Origin::Config, false, deny.cidr.into()).into(),
            },
        });
        let files = self.files.iter().flat_map(|file| {
            file.nets.iter().map(|net| Said {
                net: *net,
                allow: false,
                origin: Origin::File,
                rule: file.path.as_str().into(),
            })
        });
        manual.chain(allow).chain(deny).chain(files)
    }

    /// Brings the trie to what is said. An operator's entries have room beside full lists.
    fn relist(&mut self) -> Result<(), KernelError> {
        let total = self.files.iter().map(|file| file.nets.len()).sum::<usize>()
            + self.wanted.allow.len()
            + self.wanted.deny.len();
        if total > PREFIXES_MAX {
            return Err(KernelError::Full {
                map: "SHIELD_PREFIXES",
                needed: total,
                capacity: PREFIXES_MAX,
            });
        }
        let mut names: BTreeSet<String> = self.files.iter().map(|file| file.path.clone()).collect();
        names.extend(
            self.said()
                .take_while(|said| said.origin != Origin::File)
                .map(|said| said.rule.into_owned()),
        );
        self.rules.want(&mut self.tables, &names)?;
        let (new, described) = self.lines();
        let old = match self.installed.take() {
            Some(old) => old,
            None => self.tables.installed()?,
        };
        // Left out until the write is through: after a failure the map is read again.
        self.tables.change(lists::difference(&old, &new))?;
        self.installed = Some(new);
        self.described = described;
        self.rules.free(&mut self.tables, &names)
    }

    /// The trie's new content, and what each rule in it is.
    fn lines(&self) -> (Vec<Line>, Described) {
        let mut described = Described::new();
        let mut lines = Vec::new();
        let mut last: Option<(String, u32)> = None;
        for said in self.said() {
            // A file's ranges have one name: it is looked up once.
            let number = match &last {
                Some((name, number)) if *name == *said.rule => *number,
                _ => {
                    let Some(number) = self.rules.number(&said.rule) else {
                        continue;
                    };
                    last = Some((said.rule.to_string(), number));
                    number
                }
            };
            described
                .entry(number)
                .or_insert((said.origin.clone(), said.allow, 0))
                .2 += 1;
            lines.push(line(&said, number));
        }
        (lists::compile(lines), described)
    }

    /// Adds an operator's entry, or changes it.
    ///
    /// # Errors
    /// Too many, or the kernel refused: nothing was changed.
    pub fn add(
        &mut self,
        net: Net,
        allow: bool,
        expires: Option<MonoNanos>,
    ) -> Result<(), ManualError> {
        if !self.manual.contains_key(&net) && self.manual.len() >= MANUAL_MAX as usize {
            return Err(ManualError::TooMany);
        }
        let entry = Manual {
            expires_ns: expires.map_or(0, |at| at.0),
            // The number stands in the trie; here only what is done counts.
            entry: if allow {
                Entry::allow(0)
            } else {
                Entry::deny(0)
            },
            _pad: 0,
        };
        let before = self.manual.insert(net, entry);
        let done = self.keep_manual(net, Some(entry));
        if let Err(error) = done {
            match before {
                Some(before) => self.manual.insert(net, before),
                None => self.manual.remove(&net),
            };
            // The map as it was; the error is told already.
            let _second = self.keep_manual(net, before);
            return Err(error.into());
        }
        Ok(())
    }

    /// Removes an operator's entry.
    ///
    /// # Errors
    /// There is none, or the kernel refused.
    pub fn remove(&mut self, net: Net, allow: bool) -> Result<(), ManualError> {
        let known = self.manual.get(&net);
        if known.is_none_or(|manual| manual.entry.is_allow() != allow) {
            return Err(ManualError::Unknown(net));
        }
        self.manual.remove(&net);
        self.keep_manual(net, None)?;
        let rule = rule_name(Origin::Manual, allow, net);
        Ok(self.forget_manual(&rule)?)
    }

    fn keep_manual(&mut self, net: Net, entry: Option<Manual>) -> Result<(), KernelError> {
        let key = lists::prefix(net);
        let done = match entry {
            Some(entry) => self.tables.manual.insert(key, entry, 0),
            None => self.tables.manual.remove(&key),
        };
        done.map_err(tables::failed("SHIELD_MANUAL"))?;
        if let Some(entry) = entry {
            let allow = entry.entry.is_allow();
            // What the range said before, if anything, is said no more.
            self.forget_manual(&rule_name(Origin::Manual, !allow, net))?;
            let rule = rule_name(Origin::Manual, allow, net);
            self.rules.want_one(&mut self.tables, &rule)?;
            if let Some(number) = self.rules.number(&rule) {
                self.described.insert(number, (Origin::Manual, allow, 1));
            }
        }
        self.relist_inside(net)
    }

    fn forget_manual(&mut self, rule: &str) -> Result<(), KernelError> {
        if let Some(number) = self.rules.number(rule) {
            self.described.remove(&number);
        }
        self.rules.free_one(&mut self.tables, rule)
    }

    /// Brings the trie to what is said of one range and of what is inside: an operator under attack
    /// does not wait for a million others.
    fn relist_inside(&mut self, net: Net) -> Result<(), KernelError> {
        let installed = self.installed.take();
        let place = installed
            .as_deref()
            .and_then(|lines| lists::inside(lines, net));
        let (Some(mut installed), Some(place)) = (installed, place) else {
            return self.relist();
        };
        let mut covered = false;
        let mut new = Vec::new();
        for said in self.said() {
            if net.holds(said.net)
                && let Some(number) = self.rules.number(&said.rule)
            {
                new.push(line(&said, number));
            } else if said.allow && said.net.holds(net) {
                covered = true;
            }
        }
        let mut new = lists::without_shadowed(new);
        if covered {
            new.retain(|line| line.entry.is_allow());
        }
        self.tables
            .change(lists::difference(&installed[place.clone()], &new))?;
        installed.splice(place, new);
        self.installed = Some(installed);
        Ok(())
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
        for net in over {
            if let Some(manual) = self.manual.remove(&net) {
                self.keep_manual(net, None)?;
                self.forget_manual(&rule_name(Origin::Manual, manual.entry.is_allow(), net))?;
                tracing::info!(%net, "the time of a shield entry is over");
            }
        }
        self.attach(false)
    }

    /// Interfaces by name, as the configuration means them.
    fn interfaces(&self) -> Result<BTreeSet<String>, KernelError> {
        let mut names = BTreeSet::new();
        if self.wanted.mode == Mode::Off {
            return Ok(names);
        }
        for name in &self.wanted.interfaces {
            if name == "auto" {
                names.extend(
                    interface::of_default_routes().map_err(KernelError::io("default routes"))?,
                );
            } else {
                names.insert(name.clone());
            }
        }
        Ok(names)
    }

    /// Brings the programs to where they are wanted; `anew`: also where they stand already, since
    /// what is best there may have changed.
    fn attach(&mut self, anew: bool) -> Result<(), KernelError> {
        let names = self.interfaces()?;
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

fn line(said: &Said<'_>, number: u32) -> Line {
    Line {
        net: said.net,
        entry: if said.allow {
            Entry::allow(number)
        } else {
            Entry::deny(number)
        },
    }
}

fn tell(interface: &str, stand: &Stand) {
    let why = stand.why.as_deref().unwrap_or_default();
    match stand.how {
        Some(how) => tracing::info!(interface, how = how.label(), why, "the shield stands"),
        None => tracing::warn!(interface, why, "the shield does not stand"),
    }
}

/// Its name in counters.
fn rule_name(origin: Origin, allow: bool, net: Net) -> String {
    let by = match origin {
        Origin::Manual => "cli ",
        Origin::Config | Origin::File => "",
    };
    let action = if allow { "allow " } else { "" };
    format!("{by}{action}{net}")
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
