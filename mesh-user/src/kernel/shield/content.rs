//! What stands in the trie: what an operator, the configuration and the files say, together.

use std::{
    borrow::Cow,
    collections::{BTreeSet, HashMap},
};

use mesh_common::shield::{Entry, MANUAL_MAX, Manual, PREFIXES_MAX};

use super::{
    super::error::KernelError,
    ManualError, Origin, Shield,
    lists::{self, Line},
    tables,
};
use crate::{clock::MonoNanos, model::shield::Net};

/// Rules by number: where from, allowed or denied, how many ranges.
pub(super) type Described = HashMap<u32, (Origin, bool, usize)>;

/// One thing that was asked for.
pub(super) struct Said<'a> {
    pub(super) net: Net,
    pub(super) allow: bool,
    pub(super) origin: Origin,
    pub(super) rule: Cow<'a, str>,
}

impl Shield {
    /// What an operator, the configuration and the files say, in the order in which the first of
    /// equal ranges wins.
    pub(super) fn said(&self) -> impl Iterator<Item = Said<'_>> {
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
    pub(super) fn relist(&mut self) -> Result<(), KernelError> {
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
        Ok(self.drop_manual(net)?)
    }

    /// Lets an entry go. After a failure it is still known, so that this can be tried again.
    pub(super) fn drop_manual(&mut self, net: Net) -> Result<(), KernelError> {
        let Some(manual) = self.manual.remove(&net) else {
            return Ok(());
        };
        let rule = rule_name(Origin::Manual, manual.entry.is_allow(), net);
        let done = self
            .keep_manual(net, None)
            .and_then(|()| self.forget_manual(&rule));
        if done.is_err() {
            self.manual.insert(net, manual);
        }
        done
    }

    fn keep_manual(&mut self, net: Net, entry: Option<Manual>) -> Result<(), KernelError> {
        let key = lists::prefix(net);
        let done = match entry {
            Some(entry) => self.tables.manual.insert(key, entry, 0),
            None => match self.tables.manual.remove(&key) {
                Err(error) if tables::is_absent(&error) => Ok(()),
                removed => removed,
            },
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

/// Its name in counters.
pub(super) fn rule_name(origin: Origin, allow: bool, net: Net) -> String {
    let by = match origin {
        Origin::Manual => "cli ",
        Origin::Config | Origin::File => "",
    };
    let action = if allow { "allow " } else { "" };
    format!("{by}{action}{net}")
}
