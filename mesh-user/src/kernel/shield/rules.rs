//! Numbers of rules: the same name keeps its number, and with it its counters, over reloads and
//! restarts.

use std::collections::{BTreeSet, HashMap};

use mesh_common::shield::{RULE_NAME_MAX, RULES_MAX};

use super::{super::error::KernelError, tables::Tables};

/// Which name has which number.
#[derive(Debug, Default)]
pub(super) struct Rules {
    names: Vec<String>,
    numbers: HashMap<String, u32>,
}

impl Rules {
    /// What the map says.
    pub(super) fn adopt(tables: &Tables) -> Result<Self, KernelError> {
        let names = tables.rule_names()?;
        let numbers = (0..)
            .zip(&names)
            .filter(|(_, name)| !name.is_empty())
            .map(|(number, name)| (name.clone(), number))
            .collect();
        Ok(Self { names, numbers })
    }

    /// The number of a name that [`Rules::want`] was told of.
    pub(super) fn number(&self, name: &str) -> Option<u32> {
        self.numbers.get(&*fitting(name)).copied()
    }

    /// The name of a number; empty: it is free.
    pub(super) fn name(&self, number: u32) -> &str {
        self.names.get(number as usize).map_or("", String::as_str)
    }

    /// Gives numbers to names that have none. Nothing is freed where there is room: entries may
    /// still say the old ones.
    pub(super) fn want(
        &mut self,
        tables: &mut Tables,
        wanted: &BTreeSet<String>,
    ) -> Result<(), KernelError> {
        if wanted.len() > RULES_MAX as usize {
            return Err(full(wanted.len()));
        }
        let new = wanted
            .iter()
            .filter(|name| !self.numbers.contains_key(&*fitting(name)));
        if self.numbers.len() + new.count() > RULES_MAX as usize {
            // Old and new together have no room: for a moment, what the old ones still drop counts
            // for the new.
            self.free(tables, wanted)?;
        }
        let mut free = 0;
        for name in wanted {
            let name = fitting(name);
            if self.numbers.contains_key(&*name) {
                continue;
            }
            while self.names.get(free).is_some_and(|name| !name.is_empty()) {
                free += 1;
            }
            if free >= self.names.len() {
                return Err(full(self.numbers.len() + 1));
            }
            tables.name_rule(free as u32, &name)?;
            self.names[free] = name.to_string();
            self.numbers.insert(name.into_owned(), free as u32);
        }
        Ok(())
    }

    /// Gives a number to one name.
    pub(super) fn want_one(&mut self, tables: &mut Tables, name: &str) -> Result<(), KernelError> {
        let name = fitting(name);
        if self.numbers.contains_key(&*name) {
            return Ok(());
        }
        let free = self.names.iter().position(String::is_empty);
        let free = free.ok_or_else(|| full(self.numbers.len() + 1))?;
        tables.name_rule(free as u32, &name)?;
        self.names[free] = name.to_string();
        self.numbers.insert(name.into_owned(), free as u32);
        Ok(())
    }

    /// Frees the number of one name, once no entry says it.
    pub(super) fn free_one(&mut self, tables: &mut Tables, name: &str) -> Result<(), KernelError> {
        if let Some(number) = self.numbers.remove(&*fitting(name)) {
            self.names[number as usize].clear();
            tables.name_rule(number, "")?;
        }
        Ok(())
    }

    /// Frees the numbers of names that nobody wants, once no entry says them.
    pub(super) fn free(
        &mut self,
        tables: &mut Tables,
        wanted: &BTreeSet<String>,
    ) -> Result<(), KernelError> {
        let wanted: BTreeSet<_> = wanted.iter().map(|name| fitting(name)).collect();
        let over: Vec<(String, u32)> = self
            .numbers
            .iter()
            .filter(|(name, _)| !wanted.contains(name.as_str()))
            .map(|(name, number)| (name.clone(), *number))
            .collect();
        for (name, number) in over {
            tables.name_rule(number, "")?;
            self.names[number as usize].clear();
            self.numbers.remove(&name);
        }
        Ok(())
    }
}

fn full(needed: usize) -> KernelError {
    KernelError::Full {
        map: "SHIELD_RULES",
        needed,
        capacity: RULES_MAX as usize,
    }
}

/// A name as the map holds it: of a longer one (a path) the end, which tells files apart.
fn fitting(name: &str) -> std::borrow::Cow<'_, str> {
    if name.len() <= RULE_NAME_MAX {
        return name.into();
    }
    const MARK: &str = "…";
    let mut start = name.len() - (RULE_NAME_MAX - MARK.len());
    while !name.is_char_boundary(start) {
        start += 1;
    }
    format!("{MARK}{}", &name[start..]).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_name_keeps_its_end_and_fits() {
        let long = format!("/{}é/list.txt", "x".repeat(200));
        let name = fitting(&long);
        assert!(name.len() <= RULE_NAME_MAX && name.ends_with("é/list.txt"));
        assert_eq!(fitting("short"), "short");
    }
}
