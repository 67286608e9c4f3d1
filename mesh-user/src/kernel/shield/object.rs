//! The shield's object: embedded, loaded against its own pins below the instance's.
//!
//! ```text
//! <bpffs>/mesh/<instance>/v<ABI>/shield/MAP           every map of mesh_common::shield
//! <bpffs>/mesh/<instance>/v<ABI>/shield/links/HOW-N   HOW: xdp, frags, tcx; N: the interface's number
//! ```

use std::{
    fs, io,
    os::fd::{AsFd, OwnedFd},
    path::PathBuf,
};

use aya::{
    Ebpf, EbpfLoader,
    programs::{Program, ProgramError},
};
use mesh_common::shield::{MAPS, TC, XDP, XDP_FRAGS};

use super::super::{
    error::KernelError,
    object::chain,
    pins::{Pins, check_layout},
};

/// The object's bytes; empty: it was not built when this binary was.
#[cfg(mesh_bpf_shield_object)]
static OBJECT: &[u8] = aya::include_bytes_aligned!(env!("MESH_BPF_SHIELD_OBJECT_FILE"));
#[cfg(not(mesh_bpf_shield_object))]
static OBJECT: &[u8] = &[];

/// Where the shield of an instance is pinned.
#[derive(Clone, Debug)]
pub(super) struct Place(PathBuf);

impl Place {
    pub(super) fn of(pins: &Pins) -> Self {
        Self(pins.root.join("shield"))
    }

    pub(super) fn map(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    fn links(&self) -> PathBuf {
        self.0.join("links")
    }

    pub(super) fn link(&self, how: &str, interface: u32) -> PathBuf {
        self.links().join(format!("{how}-{interface}"))
    }

    /// Every pinned link: how, interface number, path.
    pub(super) fn all_links(&self) -> Vec<(String, u32, PathBuf)> {
        let mut found = Vec::new();
        for entry in fs::read_dir(self.links()).into_iter().flatten().flatten() {
            let file = entry.file_name();
            let split = file.to_str().and_then(|name| name.rsplit_once('-'));
            if let Some((how, Ok(number))) = split.map(|(how, number)| (how, number.parse())) {
                found.push((how.to_owned(), number, entry.path()));
            }
        }
        found.sort();
        found
    }

    pub(super) fn exists(&self) -> bool {
        self.0.exists()
    }

    fn make(&self) -> Result<(), KernelError> {
        let dir = self.links();
        fs::create_dir_all(&dir).map_err(|source| KernelError::PinsRefused { dir, source })
    }

    /// Removes every pin: links first, so that no program runs without its maps' names.
    pub(super) fn remove(&self) -> io::Result<Vec<String>> {
        let mut removed = Vec::new();
        for (how, number, path) in self.all_links() {
            fs::remove_file(&path)?;
            removed.push(format!("link {how}-{number}"));
        }
        if self.exists() {
            fs::remove_dir_all(&self.0)?;
            removed.push(format!("{}", self.0.display()));
        }
        Ok(removed)
    }
}

/// The loaded programs.
pub(super) struct Programs {
    pub(super) xdp: OwnedFd,
    pub(super) tc: OwnedFd,
    /// None: the kernel refused it (before 5.18 it does), and why.
    pub(super) frags: Result<OwnedFd, String>,
}

/// Loads the object against the pinned maps; those that are missing are made and pinned.
pub(super) fn load(place: &Place) -> Result<Programs, KernelError> {
    if OBJECT.is_empty() {
        return Err(KernelError::NotBuilt);
    }
    place.make()?;
    let mut loader = EbpfLoader::new();
    // No CO-RE relocations in the object: the kernel's own types are not needed.
    loader.btf(None);
    for spec in MAPS {
        let path = place.map(spec.name);
        if path.exists() {
            check_layout(spec, Some(spec.capacity), &path)?;
        }
        loader.map_pin_path(spec.name, path);
    }
    let mut object = loader.load(OBJECT).map_err(|error| KernelError::Load {
        what: "the shield's eBPF object".to_owned(),
        why: chain(&error),
    })?;
    let refused = |name: &str| {
        let what = format!("program {name}");
        move |why: String| KernelError::Load { what, why }
    };
    Ok(Programs {
        xdp: load_one(&mut object, XDP).map_err(refused(XDP))?,
        tc: load_one(&mut object, TC).map_err(refused(TC))?,
        frags: load_one(&mut object, XDP_FRAGS),
    })
}

fn load_one(object: &mut Ebpf, name: &str) -> Result<OwnedFd, String> {
    let program = object.program_mut(name).ok_or("the object lacks it")?;
    let loaded = match program {
        Program::Xdp(program) => program.load(),
        Program::SchedClassifier(program) => program.load(),
        _ => Err(ProgramError::UnexpectedProgramType),
    };
    loaded.map_err(|error| chain(&error))?;
    let fd = program.fd().map_err(|error| chain(&error))?;
    fd.as_fd()
        .try_clone_to_owned()
        .map_err(|error| error.to_string())
}
