//! Loads every program of the object by itself, whatever its kind, and says what the kernel made
//! of it: for `mesh check`, and for the matrix of kernels (`cargo xtask kernels`), which attaches
//! each one at a scratch place too.
//!
//! Nothing here knows a program by name: what is added to the object is surveyed without a change.

use std::{
    fs::File,
    path::{Path, PathBuf},
};

use aya::programs::{
    CgroupAttachMode, LinkOrder, Program, ProgramError, SchedClassifier, TcAttachType, XdpMode,
    tc::{self, NlOptions, TcAttachOptions},
};
use serde::Serialize;

use super::{
    error::KernelError,
    features::{Features, Role},
    object::{OPTIONAL_HOOKS, chain, loader, open as open_object, present},
};

/// Where programs are attached for a moment: places that nobody else uses.
#[derive(Clone, Debug)]
pub struct Scratch {
    /// A cgroup of the unified hierarchy without processes.
    pub cgroup: PathBuf,
    /// An interface of the calling thread's network namespace.
    pub interface: String,
}

/// What the kernel made of one program.
#[derive(Clone, Debug, Serialize)]
pub struct Surveyed {
    /// Its name in the object.
    pub program: String,
    /// Its type, as the kernel's headers call it, in lower case.
    pub kind: String,
    /// Whether the verifier took it.
    pub loaded: bool,
    /// Instructions that the verifier walked (Linux 5.16 and newer tell).
    pub verified: Option<u32>,
    /// Instructions after the kernel's translation.
    pub instructions: Option<u32>,
    /// How it was attached to the scratch place: `link`, `tcx`, `clsact`; `None` when it was not.
    pub attached: Option<String>,
    /// Why it was not loaded or not attached.
    pub error: Option<String>,
    /// Whether an agent does without it, as documented, where the kernel refuses it.
    pub optional: bool,
}

/// Loads every program, each with its own outcome; attaches each at `scratch`, if given. Leaves
/// nothing behind.
///
/// # Errors
/// The object is not in this build, or the kernel refuses one of its maps.
pub fn survey(scratch: Option<&Scratch>) -> Result<Vec<Surveyed>, KernelError> {
    present()?;
    let features = Features::probe();
    let mut object = open_object(&mut loader(features, Role::Workloads))?;
    let mut found: Vec<Surveyed> = object
        .programs_mut()
        .map(|(name, program)| one(name, program, scratch))
        .collect();
    found.sort_by(|a, b| a.program.cmp(&b.program));
    Ok(found)
}

fn one(name: &str, program: &mut Program, scratch: Option<&Scratch>) -> Surveyed {
    let mut row = Surveyed {
        program: name.to_owned(),
        kind: format!("{:?}", program.prog_type()),
        loaded: false,
        verified: None,
        instructions: None,
        attached: None,
        error: None,
        optional: OPTIONAL_HOOKS.iter().any(|(other, _)| *other == name),
    };
    if let Err(error) = load(program) {
        row.error = Some(chain(&error));
        return row;
    }
    row.loaded = true;
    if let Ok(info) = program.info() {
        row.verified = info.verified_instruction_count();
        // The kernel counts bytes, 8 for an instruction.
        row.instructions = info.size_translated().map(|bytes| bytes / 8);
    }
    if let Some(scratch) = scratch {
        match attach(program, scratch) {
            Ok(how) => row.attached = Some(how.to_owned()),
            Err(error) => row.error = Some(error),
        }
    }
    row
}

/// Loads a program of any kind that the object may hold.
pub(super) fn load(program: &mut Program) -> Result<(), ProgramError> {
    match program {
        Program::CgroupSockAddr(program) => program.load(),
        Program::CgroupSock(program) => program.load(),
        Program::CgroupSockopt(program) => program.load(),
        Program::CgroupSkb(program) => program.load(),
        Program::SockOps(program) => program.load(),
        Program::SkLookup(program) => program.load(),
        Program::SchedClassifier(program) => program.load(),
        Program::Xdp(program) => program.load(),
        _ => Err(ProgramError::UnexpectedProgramType),
    }
}

/// The links go with the object that the program belongs to.
fn attach(program: &mut Program, scratch: &Scratch) -> Result<&'static str, String> {
    let said = |error: &ProgramError| chain(error);
    let cgroup = || open(&scratch.cgroup);
    // A cgroup link takes no «allow multi»: it always is.
    let single = CgroupAttachMode::Single;
    match program {
        Program::CgroupSockAddr(program) => {
            let done = program.attach(cgroup()?, single);
            done.map(|_| "link").map_err(|error| said(&error))
        }
        Program::CgroupSock(program) => {
            let done = program.attach(cgroup()?, single);
            done.map(|_| "link").map_err(|error| said(&error))
        }
        Program::CgroupSockopt(program) => {
            let done = program.attach(cgroup()?, single);
            done.map(|_| "link").map_err(|error| said(&error))
        }
        Program::SockOps(program) => {
            let done = program.attach(cgroup()?, single);
            done.map(|_| "link").map_err(|error| said(&error))
        }
        Program::SkLookup(program) => {
            let done = program.attach(open(Path::new("/proc/thread-self/ns/net"))?);
            done.map(|_| "link").map_err(|error| said(&error))
        }
        Program::SchedClassifier(program) => classifier(program, &scratch.interface),
        Program::Xdp(program) => {
            let done = program.attach(&scratch.interface, XdpMode::Skb);
            done.map(|_| "link").map_err(|error| said(&error))
        }
        _ => Err("nobody knows where to attach a program of this kind".to_owned()),
    }
}

/// tcx where the kernel has it, a clsact filter elsewhere: found by trying.
fn classifier(program: &mut SchedClassifier, interface: &str) -> Result<&'static str, String> {
    let ingress = TcAttachType::Ingress;
    let tcx = TcAttachOptions::TcxOrder(LinkOrder::default());
    let why = match program.attach_with_options(interface, ingress, tcx) {
        Ok(_) => return Ok("tcx"),
        Err(error) => chain(&error),
    };
    // There may be one already: then the filter tells whether it will do.
    let qdisc = tc::qdisc_add_clsact(interface);
    let filter = TcAttachOptions::Netlink(NlOptions::default());
    let done = program.attach_with_options(interface, ingress, filter);
    done.map(|_| "clsact").map_err(|error| {
        let qdisc = qdisc.err().map(|error| chain(&error)).unwrap_or_default();
        format!("{why}; clsact: {}; {qdisc}", chain(&error))
    })
}

fn open(path: &Path) -> Result<File, String> {
    File::open(path).map_err(|error| format!("{}: {error}", path.display()))
}
