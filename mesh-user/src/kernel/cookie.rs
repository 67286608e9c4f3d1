//! Cookie of the calling thread's network namespace: the socket option where the kernel has it
//! (Linux 5.14), else through a connect that a hook of a few instructions records.
//!
//! The hook stands at the process's own cgroup for the time of one connect of a datagram socket,
//! which sends nothing. It lets every connect through, and writes the namespace of each by the
//! socket's cookie, so connects of other threads meanwhile are no harm (docs/decisions/0056).

use std::{
    fs::{self, File},
    io,
    net::{Ipv4Addr, SocketAddr},
    os::fd::{AsFd as _, AsRawFd as _, OwnedFd},
};

use socket2::{Domain, Socket, Type};

use super::{
    features::{EXIT, SOCK_ADDR, call, mov_r0},
    mounts,
    sockets::{self, option_u64},
    sys::{self, AttachType},
};

const SO_COOKIE: libc::c_int = 57;
const HASH: u32 = 1;
/// Connects of the whole process during ours; one more finds no room, which is seen.
const ROOM: u32 = 256;

/// Cookie of the calling thread's network namespace.
pub(super) fn own() -> io::Result<u64> {
    match sockets::own_netns_cookie() {
        Err(error) if error.raw_os_error() == Some(libc::ENOPROTOOPT) => recorded(),
        other => other,
    }
}

/// By the hook.
fn recorded() -> io::Result<u64> {
    let map = sys::map_create(HASH, 8, 8, ROOM, 0)?;
    let program = sys::prog_load(SOCK_ADDR, AttachType::Connect4 as u32, &recorder(&map))?;
    let link = sys::link_create(&program, own_cgroup()?, AttachType::Connect4)?;
    let socket = Socket::new(Domain::IPV4, Type::DGRAM.cloexec(), None)?;
    // The discard port of the loopback. Whether there is a route is not asked before the hook.
    let _ = socket.connect(&SocketAddr::from((Ipv4Addr::LOCALHOST, 9)).into());
    drop(link);
    let cookie = option_u64(&socket, SO_COOKIE)?;
    let found = sys::batch::lookup::<_, u64>(map.as_fd(), &cookie)?;
    found.ok_or_else(|| io::Error::other("the hook at the own cgroup saw no connect"))
}

/// The cgroup of this process in the unified hierarchy.
fn own_cgroup() -> io::Result<File> {
    let table = fs::read_to_string("/proc/self/cgroup")?;
    let path = table.lines().find_map(|line| line.strip_prefix("0::/"));
    let (Some(path), Some(mount)) = (path, mounts::cgroup2()?) else {
        return Err(io::Error::other("no cgroup2 hierarchy"));
    };
    File::open(mount.join(path))
}

/// `map[socket cookie] = netns cookie; return 1`
fn recorder(map: &OwnedFd) -> [u64; 16] {
    // op, destination and source register, offset, immediate.
    const fn insn(op: u64, dst: u64, src: u64, offset: i16, value: i32) -> u64 {
        op | dst << 8 | src << 12 | (offset as u16 as u64) << 16 | (value as u32 as u64) << 32
    }
    const COPY: u64 = 0xbf;
    const ADD: u64 = 0x07;
    const STORE: u64 = 0x7b;
    const FRAME: u64 = 10;
    [
        insn(COPY, 6, 1, 0, 0),
        call(46), // bpf_get_socket_cookie
        insn(STORE, FRAME, 0, -8, 0),
        insn(COPY, 1, 6, 0, 0),
        call(122), // bpf_get_netns_cookie
        insn(STORE, FRAME, 0, -16, 0),
        // The map, by descriptor: two slots.
        insn(0x18, 1, 1, 0, map.as_raw_fd()),
        0,
        insn(COPY, 2, FRAME, 0, 0),
        insn(ADD, 2, 0, 0, -8),
        insn(COPY, 3, FRAME, 0, 0),
        insn(ADD, 3, 0, 0, -16),
        insn(0xb7, 4, 0, 0, 0), // any: an entry may be there
        call(2),                // bpf_map_update_elem
        mov_r0(1),
        EXIT,
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// On a kernel that has both ways: they agree.
    #[test]
    fn recorded_cookie_is_the_socket_options() {
        if !nix::unistd::geteuid().is_root() {
            panic!("needs root: it attaches a hook to the own cgroup");
        }
        let option = sockets::own_netns_cookie().expect("Linux 5.14");
        assert_eq!(recorded().expect("recorded"), option);
    }
}
