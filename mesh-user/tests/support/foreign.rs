//! Others on the same machine: a socket load balancer as a CNI has one, and whoever fills maps.
//! Straight bpf(2), by no code of the product.

use std::{
    fs::File,
    io,
    net::SocketAddrV4,
    os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd},
    path::Path,
};

use mesh_common::listener::ListenerKey;

const MAP_UPDATE: i32 = 2;
const PROG_LOAD: i32 = 5;
const OBJ_GET: i32 = 7;
const LINK_CREATE: i32 = 28;
const SOCK_ADDR: u64 = 18;
const CONNECT4: u64 = 10;

/// bpf(2) with an attribute of 64-bit words; what it points to must outlive the call.
fn bpf(command: i32, attr: &[u64]) -> io::Result<i32> {
    #[expect(unsafe_code, reason = "a raw system call")]
    // SAFETY: the kernel reads `attr` for its length; every address inside it is that of a value
    // that the callers below hold until the call is back, of the size that the command wants.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, attr.as_ptr(), size_of_val(attr)) };
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

/// A socket load balancer at a cgroup: connects to one address and port go to another. Stands as
/// long as the value lives.
pub(crate) struct LoadBalancer {
    _link: OwnedFd,
}

impl LoadBalancer {
    pub(crate) fn at(cgroup: &Path, from: SocketAddrV4, to: SocketAddrV4) -> Self {
        let ip = |addr: &SocketAddrV4| u32::from_ne_bytes(addr.ip().octets());
        let port = |addr: &SocketAddrV4| u32::from(addr.port().to_be());
        // opcode, destination and source register, offset, immediate
        let insn = |code: u8, dst: u8, src: u8, off: i16, imm: u32| {
            u64::from(code)
                | u64::from(dst | src << 4) << 8
                | u64::from(off as u16) << 16
                | u64::from(imm) << 32
        };
        let (load, store, mov, mov32, not_equal32, exit) = (0x61, 0x63, 0xb7, 0xb4, 0x5e, 0x95);
        let program = [
            insn(load, 2, 1, 4, 0),
            insn(mov32, 3, 0, 0, ip(&from)),
            insn(not_equal32, 2, 3, 7, 0),
            insn(load, 2, 1, 24, 0),
            insn(mov32, 3, 0, 0, port(&from)),
            insn(not_equal32, 2, 3, 4, 0),
            insn(mov32, 2, 0, 0, ip(&to)),
            insn(store, 1, 2, 4, 0),
            insn(mov32, 2, 0, 0, port(&to)),
            insn(store, 1, 2, 24, 0),
            insn(mov, 0, 0, 0, 1),
            insn(exit, 0, 0, 0, 0),
        ];
        let license = c"GPL";
        let mut attr = [0_u64; 9];
        attr[0] = pair(SOCK_ADDR, program.len() as u64);
        attr[1] = program.as_ptr() as u64;
        attr[2] = license.as_ptr() as u64;
        // The name is 16 bytes from byte 48 on, then the interface and the attach type.
        attr[8] = pair(0, CONNECT4);
        let program = own(bpf(PROG_LOAD, &attr).expect("a program of twelve instructions"));
        let cgroup = File::open(cgroup).expect("a cgroup");
        let attr = [pair(raw(&program), raw(&cgroup)), pair(CONNECT4, 0)];
        Self {
            _link: own(bpf(LINK_CREATE, &attr).expect("a link")),
        }
    }
}

/// A program of somebody else at a network interface, that lets everything pass. Stands as long as
/// the value lives, or until somebody takes it away.
pub(crate) struct DeviceProgram {
    link: OwnedFd,
}

impl DeviceProgram {
    /// XDP in its generic mode.
    pub(crate) fn xdp(interface: u32) -> Self {
        const XDP: u64 = 6;
        Self::attach(XDP, 37, 2, 1 << 1, interface)
    }

    /// tc by a tcx link, on the way in.
    pub(crate) fn tcx(interface: u32) -> Self {
        const SCHED_CLS: u64 = 3;
        Self::attach(SCHED_CLS, 46, u32::MAX, 0, interface)
    }

    fn attach(kind: u64, place: u64, pass: u32, flags: u64, interface: u32) -> Self {
        // r0 = pass; exit
        let program = [0xb7 | u64::from(pass) << 32, 0x95];
        let license = c"GPL";
        let mut attr = [0_u64; 9];
        attr[0] = pair(kind, program.len() as u64);
        attr[1] = program.as_ptr() as u64;
        attr[2] = license.as_ptr() as u64;
        attr[8] = pair(0, place);
        let program = own(bpf(PROG_LOAD, &attr).expect("a program of two instructions"));
        let attr = [pair(raw(&program), interface.into()), pair(place, flags)];
        Self {
            link: own(bpf(LINK_CREATE, &attr).expect("a link at the interface")),
        }
    }

    /// The interface at which it still stands; 0: it was taken away.
    pub(crate) fn interface(&self) -> u32 {
        const OBJ_INFO: i32 = 15;
        // Type, id, program, padding; the interface.
        let mut info = [0_u32; 8];
        let size = size_of_val(&info) as u64;
        let attr = [pair(raw(&self.link), size), info.as_mut_ptr() as u64];
        bpf(OBJ_INFO, &attr).expect("the link's own description");
        info[4]
    }
}

fn raw(fd: &impl AsFd) -> u64 {
    fd.as_fd().as_raw_fd() as u64
}

/// Puts a socket into a pinned sockhash with keys of `ListenerKey` and values of eight bytes.
pub(crate) fn fill_listeners(
    pin: &Path,
    keys: impl Iterator<Item = ListenerKey>,
    socket: &impl AsFd,
) {
    let path = std::ffi::CString::new(pin.to_str().expect("text")).expect("no zero in it");
    let map = own(bpf(OBJ_GET, &[path.as_ptr() as u64, 0]).expect("a pin"));
    let value = raw(socket);
    for key in keys {
        let attr = [
            raw(&map),
            (&raw const key) as u64,
            (&raw const value) as u64,
            0,
        ];
        bpf(MAP_UPDATE, &attr).unwrap_or_else(|error| panic!("{key:?}: {error}"));
    }
}

/// Somebody else's tc program: leaves every packet to the next.
pub(crate) struct Classifier {
    program: OwnedFd,
    _link: Option<OwnedFd>,
    pin: Option<std::path::PathBuf>,
}

impl Classifier {
    const SCHED_CLS: u64 = 3;
    const TCX_INGRESS: u64 = 46;
    const BEFORE: u64 = 1 << 3;
    const OBJ_PIN: i32 = 6;

    fn load() -> OwnedFd {
        // r0 = -1 (TCX_NEXT, TC_ACT_UNSPEC); exit
        let program = [0xffff_ffff_0000_00b7_u64, 0x95];
        let license = c"GPL";
        let mut attr = [0_u64; 9];
        attr[0] = pair(Self::SCHED_CLS, program.len() as u64);
        attr[1] = program.as_ptr() as u64;
        attr[2] = license.as_ptr() as u64;
        own(bpf(PROG_LOAD, &attr).expect("a program of two instructions"))
    }

    /// By a tcx link at an interface of the calling thread's namespace, before or after all others.
    pub(crate) fn tcx(interface: u32, before: bool) -> Self {
        let program = Self::load();
        let flags = if before { Self::BEFORE } else { 0 };
        let attr = [
            pair(raw(&program), u64::from(interface)),
            pair(Self::TCX_INGRESS, flags),
        ];
        let link = own(bpf(LINK_CREATE, &attr).expect("a link"));
        Self {
            program,
            _link: Some(link),
            pin: None,
        }
    }

    /// Pinned, for the tc command.
    pub(crate) fn pinned(pin: &Path) -> Self {
        let program = Self::load();
        let path = std::ffi::CString::new(pin.to_str().expect("text")).expect("no zero in it");
        let attr = [path.as_ptr() as u64, raw(&program)];
        bpf(Self::OBJ_PIN, &attr).expect("a pin");
        Self {
            program,
            _link: None,
            pin: Some(pin.to_owned()),
        }
    }

    /// How often it ran; counted while BPF statistics are on.
    pub(crate) fn runs(&self) -> u64 {
        let path = format!("/proc/self/fdinfo/{}", self.program.as_raw_fd());
        let text = std::fs::read_to_string(path).expect("fdinfo");
        let line = text.lines().find_map(|line| line.strip_prefix("run_cnt:"));
        line.expect("Linux 5.1").trim().parse().expect("a number")
    }
}

impl Drop for Classifier {
    fn drop(&mut self) {
        if let Some(pin) = &self.pin {
            let _ = std::fs::remove_file(pin);
        }
    }
}
