//! Socket options that neither std nor socket2 knows.

use std::{
    io,
    mem::MaybeUninit,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::{AsFd, AsRawFd as _},
};

/// The bytes of an option's value: at most `N`, as many as the kernel says.
pub(crate) fn get<const N: usize>(
    socket: impl AsFd,
    level: i32,
    name: i32,
) -> io::Result<([u8; N], usize)> {
    let mut value = MaybeUninit::<[u8; N]>::zeroed();
    let mut length = N as libc::socklen_t;
    #[expect(unsafe_code, reason = "an option without a safe call")]
    // SAFETY: `value` is writable memory of `length` bytes; both live for the call.
    let result = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            level,
            name,
            value.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    #[expect(unsafe_code, reason = "memory that was zeroed")]
    // SAFETY: bytes, all of them zeroed before.
    let value = unsafe { value.assume_init() };
    Ok((value, length as usize))
}

/// Sets an option to bytes.
pub(crate) fn set(socket: impl AsFd, level: i32, name: i32, value: &[u8]) -> io::Result<()> {
    #[expect(unsafe_code, reason = "an option without a safe call")]
    // SAFETY: the kernel reads at most the slice's length at its address, for the call only.
    let result = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            level,
            name,
            value.as_ptr().cast(),
            value.len() as libc::socklen_t,
        )
    };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// `SO_ORIGINAL_DST`, of either family.
pub(crate) fn original_dst(socket: impl AsFd) -> Option<SocketAddr> {
    let socket = socket.as_fd();
    if let Ok((v, 16)) = get::<16>(socket, libc::SOL_IP, libc::SO_ORIGINAL_DST) {
        assert_eq!(u16::from_ne_bytes([v[0], v[1]]), libc::AF_INET as u16);
        let ip = Ipv4Addr::new(v[4], v[5], v[6], v[7]);
        return Some(SocketAddr::new(ip.into(), u16::from_be_bytes([v[2], v[3]])));
    }
    if let Ok((v, 28)) = get::<28>(socket, libc::SOL_IPV6, libc::SO_ORIGINAL_DST) {
        assert_eq!(u16::from_ne_bytes([v[0], v[1]]), libc::AF_INET6 as u16);
        let ip: [u8; 16] = std::array::from_fn(|at| v[8 + at]);
        let ip = Ipv6Addr::from(ip);
        return Some(SocketAddr::new(ip.into(), u16::from_be_bytes([v[2], v[3]])));
    }
    None
}

/// Cookie of the network namespace of a socket.
pub(crate) fn netns_cookie(socket: impl AsFd) -> u64 {
    const SO_NETNS_COOKIE: i32 = 71;
    let (value, _) = get::<8>(socket, libc::SOL_SOCKET, SO_NETNS_COOKIE).expect("Linux 5.14");
    u64::from_ne_bytes(value)
}
