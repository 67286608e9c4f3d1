//! Addresses as they stand in maps.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::plain::plain;

/// An IP address: 16 bytes in network order, IPv4 as v4-mapped IPv6 (RFC 4291, section 2.5.5.2).
///
/// One form for both families, so that a v4-mapped socket and a plain IPv4 socket meet the same
/// map entry. Aligned like the words that kernel contexts hold: on the BPF target, anything less
/// would be moved byte by byte.
#[repr(C, align(4))]
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Addr([u8; 16]);
plain!(Addr, 16, [[u8; 16]]);

impl Addr {
    /// All zero: the unspecified address.
    pub const UNSPECIFIED: Self = Self([0; 16]);

    /// From an IPv4 address in network order, as contexts of the kernel hold it.
    #[inline(always)]
    pub const fn from_v4_be(be: u32) -> Self {
        let b = be.to_ne_bytes();
        Self([
            0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, b[0], b[1], b[2], b[3],
        ])
    }

    /// From an IPv6 address in network order, as contexts of the kernel hold it.
    #[inline(always)]
    pub const fn from_v6_be(words: [u32; 4]) -> Self {
        let (a, b) = (words[0].to_ne_bytes(), words[1].to_ne_bytes());
        let (c, d) = (words[2].to_ne_bytes(), words[3].to_ne_bytes());
        Self([
            a[0], a[1], a[2], a[3], b[0], b[1], b[2], b[3], c[0], c[1], c[2], c[3], d[0], d[1],
            d[2], d[3],
        ])
    }

    /// From 16 bytes in network order.
    pub const fn from_octets(octets: [u8; 16]) -> Self {
        Self(octets)
    }

    /// From an address of either family.
    pub const fn from_ip(ip: IpAddr) -> Self {
        match ip {
            IpAddr::V4(v4) => Self(v4.to_ipv6_mapped().octets()),
            IpAddr::V6(v6) => Self(v6.octets()),
        }
    }

    /// The 16 bytes in network order.
    pub const fn octets(&self) -> [u8; 16] {
        self.0
    }

    /// The four words in network order, as `bpf_sock_addr.user_ip6` wants them.
    #[inline(always)]
    pub const fn v6_be(&self) -> [u32; 4] {
        let o = &self.0;
        [
            u32::from_ne_bytes([o[0], o[1], o[2], o[3]]),
            u32::from_ne_bytes([o[4], o[5], o[6], o[7]]),
            u32::from_ne_bytes([o[8], o[9], o[10], o[11]]),
            u32::from_ne_bytes([o[12], o[13], o[14], o[15]]),
        ]
    }

    /// The IPv4 address in network order, as `bpf_sock_addr.user_ip4` wants it.
    ///
    /// Meaningful only when [`Addr::is_v4`].
    #[inline(always)]
    pub const fn v4_be(&self) -> u32 {
        self.v6_be()[3]
    }

    /// Whether it is an IPv4 address (v4-mapped).
    #[inline(always)]
    pub const fn is_v4(&self) -> bool {
        let w = self.v6_be();
        w[0] == 0 && w[1] == 0 && w[2] == 0xffff_u32.to_be()
    }

    /// Whether it is a loopback address: `127.0.0.0/8` or `::1`.
    #[inline(always)]
    pub const fn is_loopback(&self) -> bool {
        let w = self.v6_be();
        (self.is_v4() && self.0[12] == 127)
            || (w[0] == 0 && w[1] == 0 && w[2] == 0 && w[3] == 1_u32.to_be())
    }

    /// Whether it is link-local: `169.254.0.0/16` or `fe80::/10`.
    #[inline(always)]
    pub const fn is_link_local(&self) -> bool {
        (self.is_v4() && self.0[12] == 169 && self.0[13] == 254)
            || (self.0[0] == 0xfe && self.0[1] & 0xc0 == 0x80)
    }

    /// Whether it is unspecified: `0.0.0.0` or `::`. The kernel connects such sockets to loopback.
    #[inline(always)]
    pub const fn is_unspecified(&self) -> bool {
        let w = self.v6_be();
        w[0] == 0 && w[1] == 0 && w[3] == 0 && (w[2] == 0 || w[2] == 0xffff_u32.to_be())
    }

    /// The address in its own family: v4-mapped becomes IPv4.
    pub const fn to_ip(self) -> IpAddr {
        if self.is_v4() {
            IpAddr::V4(Ipv4Addr::new(
                self.0[12], self.0[13], self.0[14], self.0[15],
            ))
        } else {
            IpAddr::V6(Ipv6Addr::from_octets(self.0))
        }
    }

    /// With a port, as a socket address in its own family.
    pub const fn with_port(self, port: u16) -> SocketAddr {
        SocketAddr::new(self.to_ip(), port)
    }
}

impl core::fmt::Debug for Addr {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        core::fmt::Display::fmt(&self.to_ip(), f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addr_from_kernel_words_equals_addr_from_ip() {
        let v4 = Ipv4Addr::new(10, 96, 0, 1);
        let be = u32::from_ne_bytes(v4.octets());
        assert_eq!(Addr::from_v4_be(be), Addr::from_ip(IpAddr::V4(v4)));
        assert_eq!(Addr::from_v4_be(be).v4_be(), be);
        let v6: Ipv6Addr = "fd00:96::10".parse().unwrap();
        let a = Addr::from_ip(IpAddr::V6(v6));
        assert_eq!(Addr::from_v6_be(a.v6_be()), a);
        assert_eq!(a.to_ip(), IpAddr::V6(v6));
        assert!(!a.is_v4());
        assert!(Addr::from_v4_be(be).is_v4());
    }

    #[test]
    fn addr_classes_are_told_apart() {
        let class = |s: &str| {
            let a = Addr::from_ip(s.parse().unwrap());
            (a.is_loopback(), a.is_link_local(), a.is_unspecified())
        };
        assert_eq!(class("127.0.0.1"), (true, false, false));
        assert_eq!(class("127.255.3.1"), (true, false, false));
        assert_eq!(class("::1"), (true, false, false));
        assert_eq!(class("169.254.1.1"), (false, true, false));
        assert_eq!(class("fe80::1"), (false, true, false));
        assert_eq!(class("febf::1"), (false, true, false));
        assert_eq!(class("fec0::1"), (false, false, false));
        assert_eq!(class("0.0.0.0"), (false, false, true));
        assert_eq!(class("::"), (false, false, true));
        assert_eq!(class("10.0.0.1"), (false, false, false));
        assert_eq!(class("::2"), (false, false, false));
    }
}
