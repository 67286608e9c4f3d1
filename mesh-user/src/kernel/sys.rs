//! The bpf(2) commands that aya 0.14 lacks: link create and update for every program type, pinning
//! and link information, sockhash values of 8 bytes, queries. All `unsafe` of bpf(2) is here.

use std::{
    ffi::CString,
    io,
    mem::MaybeUninit,
    os::{
        fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
    ptr,
    sync::Once,
};

use mesh_common::plain::Plain;
use nix::{
    libc::RLIM_INFINITY,
    sys::resource::{Resource, setrlimit},
};

pub(super) mod batch;
pub(super) mod device;

/// `enum bpf_cmd`.
#[derive(Clone, Copy)]
#[repr(i32)]
enum Command {
    MapCreate = 0,
    MapLookup = 1,
    MapUpdate = 2,
    MapDelete = 3,
    MapNext = 4,
    ProgLoad = 5,
    ObjPin = 6,
    ObjGet = 7,
    ObjInfo = 15,
    ProgQuery = 16,
    MapLookupBatch = 24,
    MapUpdateBatch = 26,
    MapDeleteBatch = 27,
    LinkCreate = 28,
    LinkUpdate = 29,
}

/// Calls bpf(2).
///
/// # Safety
/// Every address inside `attr` must be valid for the command: readable or writable memory of the
/// size that the command and the object imply, for the time of the call.
#[expect(unsafe_code, reason = "a raw system call")]
unsafe fn bpf<T>(command: Command, attr: &mut T) -> io::Result<i64> {
    let attr: *mut T = attr;
    // SAFETY: `attr` is a live, initialised, exclusively borrowed value of the size given; the
    // kernel takes any size and treats the rest as zero. What it points to is the caller's proof.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, command as libc::c_int, attr, size_of::<T>()) };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

#[expect(
    unsafe_code,
    reason = "takes ownership of a descriptor from the kernel"
)]
fn own(fd: i64) -> io::Result<OwnedFd> {
    let fd = RawFd::try_from(fd).map_err(io::Error::other)?;
    // SAFETY: the kernel has just made this descriptor for us; nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// By reference: a descriptor handed over would be closed before the call that it is for.
fn raw(fd: &impl AsFd) -> u32 {
    // Descriptors of live objects are never negative.
    fd.as_fd().as_raw_fd() as u32
}

fn c_path(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(io::Error::other)
}

/// Where a program can be attached: `enum bpf_attach_type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(super) enum AttachType {
    SockOps = 3,
    Bind4 = 8,
    Bind6 = 9,
    Connect4 = 10,
    Connect6 = 11,
    Sendmsg4 = 14,
    Sendmsg6 = 15,
    Getsockopt = 21,
    SetSockopt = 22,
    GetPeername4 = 29,
    GetPeername6 = 30,
    GetSockname4 = 31,
    GetSockname6 = 32,
    SockRelease = 34,
    SkLookup = 36,
    Xdp = 37,
    TcxIngress = 46,
}

#[repr(C)]
#[derive(Default)]
struct LinkCreate {
    prog: u32,
    target: u32,
    attach_type: u32,
    flags: u32,
}

/// Attaches a program to a cgroup or a network namespace; the link lives as long as a descriptor
/// or a pin of it.
pub(super) fn link_create(
    prog: impl AsFd,
    target: impl AsFd,
    attach: AttachType,
) -> io::Result<OwnedFd> {
    let mut attr = LinkCreate {
        prog: raw(&prog),
        target: raw(&target),
        attach_type: attach as u32,
        flags: 0,
    };
    #[expect(unsafe_code, reason = "a raw system call")]
    // SAFETY: the command takes no addresses for these attach types.
    let result = unsafe { bpf(Command::LinkCreate, &mut attr) };
    own(result?)
}

/// Attaches a program to what enters by an interface, before all others (`BPF_F_BEFORE` and nothing
/// to stand before), in the calling thread's network namespace. EINVAL below Linux 6.6.
pub(super) fn link_create_tcx_first(prog: impl AsFd, interface: u32) -> io::Result<OwnedFd> {
    const BEFORE: u32 = 1 << 3;
    let mut attr = LinkCreate {
        prog: raw(&prog),
        target: interface,
        attach_type: AttachType::TcxIngress as u32,
        flags: BEFORE,
    };
    #[expect(unsafe_code, reason = "a raw system call")]
    // SAFETY: the command takes no addresses for this attach type.
    let result = unsafe { bpf(Command::LinkCreate, &mut attr) };
    own(result?)
}

#[repr(C)]
struct LinkUpdate {
    link: u32,
    new_prog: u32,
    flags: u32,
    old_prog: u32,
}

/// Puts another program in a link's place, atomically: no connection meets a gap.
pub(super) fn link_update(link: impl AsFd, prog: impl AsFd) -> io::Result<()> {
    let mut attr = LinkUpdate {
        link: raw(&link),
        new_prog: raw(&prog),
        flags: 0,
        old_prog: 0,
    };
    #[expect(unsafe_code, reason = "a raw system call")]
    // SAFETY: the command takes no addresses.
    let result = unsafe { bpf(Command::LinkUpdate, &mut attr) };
    result.map(drop)
}

#[repr(C)]
struct Object {
    path: u64,
    fd: u32,
    flags: u32,
}

/// Pins a program, map or link.
pub(super) fn pin(fd: impl AsFd, path: &Path) -> io::Result<()> {
    let path = c_path(path)?;
    let mut attr = Object {
        path: path.as_ptr() as u64,
        fd: raw(&fd),
        flags: 0,
    };
    #[expect(unsafe_code, reason = "a raw system call")]
    // SAFETY: `path` is a NUL-terminated string that outlives the call.
    let result = unsafe { bpf(Command::ObjPin, &mut attr) };
    result.map(drop)
}

/// Opens a pin.
pub(super) fn open_pin(path: &Path) -> io::Result<OwnedFd> {
    let path = c_path(path)?;
    let mut attr = Object {
        path: path.as_ptr() as u64,
        fd: 0,
        flags: 0,
    };
    #[expect(unsafe_code, reason = "a raw system call")]
    // SAFETY: `path` is a NUL-terminated string that outlives the call.
    let result = unsafe { bpf(Command::ObjGet, &mut attr) };
    own(result?)
}

#[repr(C)]
struct Info {
    fd: u32,
    len: u32,
    info: u64,
}

/// The head of the kernel's `struct bpf_link_info`; the last two words are a union by type.
#[repr(C)]
#[derive(Default)]
struct RawLinkInfo {
    kind: u32,
    id: u32,
    prog_id: u32,
    _pad: u32,
    union_a: u64,
    union_b: u64,
}

/// A link, as the kernel describes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct LinkInfo {
    pub(super) id: u32,
    pub(super) prog_id: u32,
    pub(super) target: LinkTarget,
}

/// What a link is attached to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LinkTarget {
    /// A cgroup by its id; 0: it was removed.
    Cgroup(u64),
    /// A network namespace by its inode; 0: it is gone.
    Netns(u32),
    /// A network interface by its number; 0: it is gone.
    Interface(u32),
    /// Something that we never make.
    Other,
}

const LINK_CGROUP: u32 = 3;
const LINK_NETNS: u32 = 5;
const LINK_XDP: u32 = 6;
const LINK_TCX: u32 = 11;

/// Describes a link.
pub(super) fn link_info(link: impl AsFd) -> io::Result<LinkInfo> {
    let mut info = RawLinkInfo::default();
    let mut attr = Info {
        fd: raw(&link),
        len: size_of::<RawLinkInfo>() as u32,
        info: (&raw mut info) as u64,
    };
    #[expect(unsafe_code, reason = "a raw system call")]
    // SAFETY: `info` is writable memory of `len` bytes that outlives the call; the kernel writes
    // integers, for which every bit pattern is valid.
    let result = unsafe { bpf(Command::ObjInfo, &mut attr) };
    result?;
    let target = match info.kind {
        LINK_CGROUP => LinkTarget::Cgroup(info.union_a),
        LINK_NETNS => LinkTarget::Netns(info.union_a as u32),
        LINK_XDP | LINK_TCX => LinkTarget::Interface(info.union_a as u32),
        _ => LinkTarget::Other,
    };
    Ok(LinkInfo {
        id: info.id,
        prog_id: info.prog_id,
        target,
    })
}

#[repr(C)]
struct Element {
    map: u32,
    _pad: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// Stores a socket in a sockhash whose values are 8 bytes (so that cookies can be read back):
/// aya's own call hands in 4.
pub(super) fn sockhash_insert<K: Plain>(
    map: impl AsFd,
    key: &K,
    socket: impl AsFd,
) -> io::Result<()> {
    let value = u64::from(raw(&socket));
    let mut attr = Element {
        map: raw(&map),
        _pad: 0,
        key: ptr::from_ref(key) as u64,
        value: (&raw const value) as u64,
        flags: 0,
    };
    #[expect(unsafe_code, reason = "a raw system call")]
    // SAFETY: key and value are initialised plain memory of the map's key and value sizes (the
    // table in `mesh_common::maps`, compared with the map when it was opened).
    let result = unsafe { bpf(Command::MapUpdate, &mut attr) };
    result.map(drop)
}

/// Removes an entry.
pub(super) fn map_delete<K: Plain>(map: impl AsFd, key: &K) -> io::Result<()> {
    let mut attr = Element {
        map: raw(&map),
        _pad: 0,
        key: ptr::from_ref(key) as u64,
        value: 0,
        flags: 0,
    };
    #[expect(unsafe_code, reason = "a raw system call")]
    // SAFETY: the key is initialised plain memory of the map's key size.
    let result = unsafe { bpf(Command::MapDelete, &mut attr) };
    result.map(drop)
}

/// The key after `key`, or the first; `None` at the end.
pub(super) fn map_next<K: Plain + aya::Pod>(
    map: impl AsFd,
    key: Option<&K>,
) -> io::Result<Option<K>> {
    let mut next = MaybeUninit::<K>::zeroed();
    let mut attr = Element {
        map: raw(&map),
        _pad: 0,
        key: key.map_or(0, |key| ptr::from_ref(key) as u64),
        value: next.as_mut_ptr() as u64,
        flags: 0,
    };
    #[expect(unsafe_code, reason = "a raw system call")]
    // SAFETY: the key is null or plain memory of the map's key size; `next` is writable memory of
    // the same size that outlives the call.
    let result = unsafe { bpf(Command::MapNext, &mut attr) };
    match result {
        Ok(_) => {
            #[expect(unsafe_code, reason = "memory that the kernel filled")]
            // SAFETY: `aya::Pod`: any bit pattern is a valid value, and it was zeroed before.
            Ok(Some(unsafe { next.assume_init() }))
        }
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

/// What is stored with a socket in a map of socket storage.
pub(super) fn storage_lookup<V: Plain + aya::Pod>(
    map: impl AsFd,
    socket: impl AsFd,
) -> io::Result<Option<V>> {
    let key = socket.as_fd().as_raw_fd();
    let mut value = MaybeUninit::<V>::zeroed();
    let mut attr = Element {
        map: raw(&map),
        _pad: 0,
        key: (&raw const key) as u64,
        value: value.as_mut_ptr() as u64,
        flags: 0,
    };
    #[expect(unsafe_code, reason = "a raw system call")]
    // SAFETY: such a map's key is a descriptor of 4 bytes; `value` is writable memory of the map's
    // value size (the table in `mesh_common::maps`, compared with the map when it was opened). Both
    // outlive the call.
    let result = unsafe { bpf(Command::MapLookup, &mut attr) };
    match result {
        Ok(_) => {
            #[expect(unsafe_code, reason = "memory that the kernel filled")]
            // SAFETY: `aya::Pod`: any bit pattern is a valid value, and it was zeroed before.
            Ok(Some(unsafe { value.assume_init() }))
        }
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

#[repr(C)]
struct MapCreate {
    kind: u32,
    key: u32,
    value: u32,
    entries: u32,
    flags: u32,
}

/// Before Linux 5.11 maps and programs count against RLIMIT_MEMLOCK. Later kernels don't look at it,
/// so that a refusal (no `CAP_SYS_RESOURCE`) is no error here.
fn raise_memlock() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let _refused = setrlimit(Resource::RLIMIT_MEMLOCK, RLIM_INFINITY, RLIM_INFINITY);
    });
}

/// Makes a map, to see whether the kernel has its type.
pub(super) fn map_create(
    kind: u32,
    key: u32,
    value: u32,
    entries: u32,
    flags: u32,
) -> io::Result<OwnedFd> {
    raise_memlock();
    let mut attr = MapCreate {
        kind,
        key,
        value,
        entries,
        flags,
    };
    #[expect(unsafe_code, reason = "a raw system call")]
    // SAFETY: the command takes no addresses here.
    let result = unsafe { bpf(Command::MapCreate, &mut attr) };
    own(result?)
}

#[repr(C)]
#[derive(Default)]
struct ProgLoad {
    kind: u32,
    insn_count: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
    name: [u8; 16],
    ifindex: u32,
    attach_type: u32,
}

/// Loads a program of raw instructions, to see whether the kernel takes it.
pub(super) fn prog_load(kind: u32, attach_type: u32, insns: &[u64]) -> io::Result<OwnedFd> {
    raise_memlock();
    let license = c"Apache-2.0";
    let mut attr = ProgLoad {
        kind,
        insn_count: insns.len() as u32,
        insns: insns.as_ptr() as u64,
        license: license.as_ptr() as u64,
        attach_type,
        ..ProgLoad::default()
    };
    #[expect(unsafe_code, reason = "a raw system call")]
    // SAFETY: `insns` is `insn_count` instructions of 8 bytes, `license` a NUL-terminated string;
    // no log buffer is given. All outlive the call.
    let result = unsafe { bpf(Command::ProgLoad, &mut attr) };
    own(result?)
}

#[repr(C)]
struct ProgQuery {
    target: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    ids: u64,
    count: u32,
    _pad: u32,
}

/// Ids of the programs that run for sockets of a cgroup (its ancestors' included), at most 64.
pub(super) fn effective(cgroup: impl AsFd, attach: AttachType) -> io::Result<Vec<u32>> {
    const EFFECTIVE: u32 = 1;
    query(cgroup, attach, EFFECTIVE)
}

/// Ids of the programs that choose listeners in a network namespace, at most 64 (the kernel's own
/// limit).
pub(super) fn steering(netns: impl AsFd) -> io::Result<Vec<u32>> {
    query(netns, AttachType::SkLookup, 0)
}

/// Ids of the programs that run for what enters by an interface, in their order, at most 64 (the
/// kernel's own limit), in the calling thread's network namespace.
pub(super) fn tcx(interface: u32) -> io::Result<Vec<u32>> {
    query_number(interface, AttachType::TcxIngress, 0)
}

fn query(target: impl AsFd, attach: AttachType, query_flags: u32) -> io::Result<Vec<u32>> {
    query_number(raw(&target), attach, query_flags)
}

fn query_number(target: u32, attach: AttachType, query_flags: u32) -> io::Result<Vec<u32>> {
    let mut ids = [0_u32; 64];
    let mut attr = ProgQuery {
        target,
        attach_type: attach as u32,
        query_flags,
        attach_flags: 0,
        ids: ids.as_mut_ptr() as u64,
        count: ids.len() as u32,
        _pad: 0,
    };
    #[expect(unsafe_code, reason = "a raw system call")]
    // SAFETY: `ids` is writable memory for `count` numbers that outlives the call.
    let result = unsafe { bpf(Command::ProgQuery, &mut attr) };
    result?;
    Ok(ids.into_iter().take(attr.count as usize).collect())
}
