//! Somebody else's programs, and what the kernel says of ours. Straight bpf(2), by no code of the
//! product.

use std::{
    io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    path::Path,
    time::Duration,
};

const PROG_LOAD: i32 = 5;
const OBJ_GET: i32 = 7;
const TEST_RUN: i32 = 10;
const PROG_BY_ID: i32 = 13;
const OBJ_INFO: i32 = 15;
const LINK_CREATE: i32 = 28;
const SCHED_CLS: u64 = 3;
const XDP: u64 = 6;
const AT_XDP: u64 = 37;
const AT_TCX_INGRESS: u64 = 46;

/// bpf(2) with an attribute of 64-bit words; what it points to must outlive the call.
fn bpf(command: i32, attr: &mut [u64]) -> io::Result<i32> {
    #[expect(unsafe_code, reason = "a raw system call")]
    // SAFETY: the kernel reads and writes `attr` for its length; every address inside it is that of
    // a value that the callers below hold until the call is back, of the size that they state.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, command, attr.as_mut_ptr(), size_of_val(attr)) };
    i32::try_from(result)
        .ok()
        .filter(|result| *result >= 0)
        .ok_or_else(io::Error::last_os_error)
}

fn own(fd: i32) -> OwnedFd {
    #[expect(unsafe_code, reason = "the kernel has just given it to us")]
    // SAFETY: a fresh descriptor that nobody else knows.
    unsafe {
        OwnedFd::from_raw_fd(fd)
    }
}

fn pair(low: u64, high: u64) -> u64 {
    low | high << 32
}

fn raw(fd: &OwnedFd) -> u64 {
    fd.as_raw_fd() as u64
}

/// `return verdict`, under a name.
fn program(kind: u64, name: &[u8; 16], verdict: i32) -> OwnedFd {
    let program = [0xb7 | u64::from(verdict as u32) << 32, 0x95];
    let license = c"GPL";
    let mut attr = [0_u64; 9];
    attr[0] = pair(kind, program.len() as u64);
    attr[1] = program.as_ptr() as u64;
    attr[2] = license.as_ptr() as u64;
    let (first, second) = name.split_at(8);
    attr[6] = u64::from_ne_bytes(first.try_into().unwrap());
    attr[7] = u64::from_ne_bytes(second.try_into().unwrap());
    own(bpf(PROG_LOAD, &mut attr).expect("a program of two instructions"))
}

/// A program of somebody else; it stands as long as the value lives.
pub(crate) struct Foreign {
    link: OwnedFd,
}

impl Foreign {
    /// In the driver of an interface of the calling thread's namespace; lets everything pass.
    pub(crate) fn xdp(interface: u32) -> Self {
        let program = program(XDP, b"somebody_elses\0\0", 2);
        Self::attach(&program, interface, AT_XDP, 1 << 2)
    }

    /// At tcx ingress, behind whoever stands there.
    pub(crate) fn tcx(interface: u32, verdict: i32) -> Self {
        let program = program(SCHED_CLS, b"somebody_elses\0\0", verdict);
        Self::attach(&program, interface, AT_TCX_INGRESS, 0)
    }

    fn attach(program: &OwnedFd, interface: u32, at: u64, flags: u64) -> Self {
        let mut attr = [
            pair(raw(program), u64::from(interface)),
            pair(at, flags),
            0,
            0,
        ];
        Self {
            link: own(bpf(LINK_CREATE, &mut attr).expect("a link")),
        }
    }

    /// Whether it still stands: a link without its interface says 0.
    pub(crate) fn stands(&self) -> bool {
        link(&self.link)[2] as u32 != 0
    }

    pub(crate) fn program_id(&self) -> u32 {
        link(&self.link)[1] as u32
    }
}

/// `struct bpf_link_info` in words of 64 bits: type and id, program, interface.
fn link(fd: &OwnedFd) -> [u64; 8] {
    let mut words = [0_u64; 8];
    let mut attr = [
        pair(raw(fd), size_of_val(&words) as u64),
        words.as_mut_ptr() as u64,
    ];
    bpf(OBJ_INFO, &mut attr).expect("a link");
    words
}

fn pinned(path: &Path) -> OwnedFd {
    let path = std::ffi::CString::new(path.to_str().expect("text")).expect("no zero in it");
    own(bpf(OBJ_GET, &mut [path.as_ptr() as u64, 0, 0]).expect("a pin"))
}

/// Id of a pinned link and of its program.
pub(crate) fn pinned_link(path: &Path) -> (u32, u32) {
    let words = link(&pinned(path));
    ((words[0] >> 32) as u32, words[1] as u32)
}

/// Runs a loaded program over a frame; what it returns, and how long it took each time.
pub(crate) fn run(program_id: u32, frame: &[u8], repeat: u32) -> (i32, Duration) {
    let program = own(bpf(PROG_BY_ID, &mut [u64::from(program_id), 0, 0]).expect("a program"));
    let mut attr = [
        pair(raw(&program), 0),
        pair(frame.len() as u64, 0),
        frame.as_ptr() as u64,
        0,
        pair(u64::from(repeat), 0),
    ];
    bpf(TEST_RUN, &mut attr).expect("it runs");
    let took = Duration::from_nanos(attr[4] >> 32);
    ((attr[0] >> 32) as i32, took)
}
