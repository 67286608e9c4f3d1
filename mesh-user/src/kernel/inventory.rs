//! Which of our objects are in the kernel: to prove that nothing was left.

use std::{io, path::PathBuf};

use mesh_common::{maps, shield};

use super::{Instance, mounts, object};

/// Those of the shield.
const SHIELD_PROGRAMS: [&str; 3] = [shield::XDP, shield::XDP_FRAGS, shield::TC];

/// Programs and maps that carry our names, as `name#id`, whatever instance they belong to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Objects {
    /// Programs.
    pub programs: Vec<String>,
    /// Maps.
    pub maps: Vec<String>,
}

/// Lists them by walking the kernel's ids. Needs CAP_SYS_ADMIN.
///
/// # Errors
/// No permission. An object that goes away during the walk is left out.
pub fn loaded_objects() -> io::Result<Objects> {
    let mut objects = Objects::default();
    for program in aya::programs::loaded_programs() {
        // ENOENT: gone since its id was read.
        let Ok(program) = program else { continue };
        let name = program.name_as_str().unwrap_or_default().to_owned();
        if object::names().any(|ours| ours == name) || SHIELD_PROGRAMS.contains(&name.as_str()) {
            objects.programs.push(format!("{name}#{}", program.id()));
        }
    }
    for map in aya::maps::loaded_maps() {
        let Ok(map) = map else { continue };
        let name = map.name_as_str().unwrap_or_default().to_owned();
        let mut ours = maps::ALL.iter().chain(shield::MAPS);
        if ours.any(|spec| spec.name == name) {
            objects.maps.push(format!("{name}#{}", map.id()));
        }
    }
    Ok(objects)
}

/// The pins of an instance, of every ABI, as paths. Empty when there is none, or no bpffs.
pub fn pins(instance: &Instance) -> Vec<PathBuf> {
    let Ok(Some(bpffs)) = mounts::bpffs() else {
        return Vec::new();
    };
    let mut found = Vec::new();
    walk(&bpffs.join("mesh").join(instance.name()), &mut found);
    found.sort();
    found
}

/// The maps that an instance has pinned, as `name#id`.
pub fn pinned_maps(instance: &Instance) -> Vec<String> {
    pins(instance)
        .iter()
        .filter(|pin| {
            let name = pin.file_name().unwrap_or_default();
            maps::ALL.iter().any(|spec| name == spec.name)
        })
        .filter_map(|pin| aya::maps::MapInfo::from_pin(pin).ok())
        .map(|info| format!("{}#{}", info.name_as_str().unwrap_or_default(), info.id()))
        .collect()
}

fn walk(dir: &std::path::Path, found: &mut Vec<PathBuf>) {
    let Ok(entries) = std::fs::read_dir(dir) else {
        return;
    };
    for entry in entries.flatten() {
        let path = entry.path();
        if path.is_dir() {
            walk(&path, found)
        } else {
            found.push(path)
        }
    }
}
