//! Addresses as they stand in maps.

use core::{
    cmp::Ordering,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use crate::plain::plain;

/// The third word of every v4-mapped address.
const MAPPED: u32 = 0xffff_u32.to_be();

/// An IP address: 16 bytes in network order, IPv4 as v4-mapped IPv6 (RFC 4291, section 2.5.5.2).
///
/// One form for both families, so that a v4-mapped socket and a plain IPv4 socket meet the same
/// map entry. Kept as the four words that kernel contexts hold: from bytes, the BPF target would
/// move and compare it byte by byte.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Addr([u32; 4]);
plain!(Addr, 16, [[u32; 4]]);

impl Addr {
    /// All zero: the unspecified address.
    pub const UNSPECIFIED: Self = Self([0; 4]);

    /// `127.0.0.1`.
    pub const LOOPBACK_V4: Self = Self([0, 0, MAPPED, 0x7f00_0001_u32.to_be()]);
    /// `::1`.
    pub const LOOPBACK_V6: Self = Self([0, 0, 0, 1_u32.to_be()]);

    /// From an IPv4 address in network order, as contexts of the kernel hold it.
    #[inline(always)]
    pub const fn from_v4_be(be: u32) -> Self {
        Self([0, 0, MAPPED, be])
    }

    /// From an IPv6 address in network order, as contexts of the kernel hold it.
    #[inline(always)]
    pub const fn from_v6_be(words: [u32; 4]) -> Self {
        Self(words)
    }

    /// From 16 bytes in network order.
    pub const fn from_octets(o: [u8; 16]) -> Self {
        Self([
            u32::from_ne_bytes([o[0], o[1], o[2], o[3]]),
            u32::from_ne_bytes([o[4], o[5], o[6], o[7]]),
            u32::from_ne_bytes([o[8], o[9], o[10], o[11]]),
            u32::from_ne_bytes([o[12], o[13], o[14], o[15]]),
        ])
    }

    /// From an address of either family.
    pub const fn from_ip(ip: IpAddr) -> Self {
        match ip {
            IpAddr::V4(v4) => Self::from_octets(v4.to_ipv6_mapped().octets()),
            IpAddr::V6(v6) => Self::from_octets(v6.octets()),
        }
    }

    /// The 16 bytes in network order.
    #[inline(always)]
    pub const fn octets(&self) -> [u8; 16] {
        let (a, b) = (self.0[0].to_ne_bytes(), self.0[1].to_ne_bytes());
        let (c, d) = (self.0[2].to_ne_bytes(), self.0[3].to_ne_bytes());
        [
            a[0], a[1], a[2], a[3], b[0], b[1], b[2], b[3], c[0], c[1], c[2], c[3], d[0], d[1],
            d[2], d[3],
        ]
    }

    /// The four words in network order, as `bpf_sock_addr.user_ip6` wants them.
    #[inline(always)]
    pub const fn v6_be(&self) -> [u32; 4] {
        self.0
    }

    /// The IPv4 address in network order, as `bpf_sock_addr.user_ip4` wants it.
    ///
    /// Meaningful only when [`Addr::is_v4`].
    #[inline(always)]
    pub const fn v4_be(&self) -> u32 {
        self.0[3]
    }

    /// The leading bits that `mask` names, of a word in network order.
    #[inline(always)]
    const fn starts(word: u32, mask: u32, with: u32) -> bool {
        word & mask.to_be() == with.to_be()
    }

    /// Whether it is an IPv4 address (v4-mapped).
    ///
    /// Bits, not branches, here and below: the verifier walks what follows once for each way out
    /// of a branch.
    #[inline(always)]
    pub const fn is_v4(&self) -> bool {
        let w = &self.0;
        (w[0] | w[1] | (w[2] ^ MAPPED)) == 0
    }

    /// Whether it is a loopback address: `127.0.0.0/8` or `::1`.
    #[inline(always)]
    pub const fn is_loopback(&self) -> bool {
        let w = &self.0;
        let v6 = (w[0] | w[1] | w[2] | (w[3] ^ 1_u32.to_be())) == 0;
        (self.is_v4() & Self::starts(w[3], 0xff00_0000, 0x7f00_0000)) | v6
    }

    /// Whether it is link-local: `169.254.0.0/16` or `fe80::/10`.
    #[inline(always)]
    pub const fn is_link_local(&self) -> bool {
        let w = &self.0;
        (self.is_v4() & Self::starts(w[3], 0xffff_0000, 0xa9fe_0000))
            | Self::starts(w[0], 0xffc0_0000, 0xfe80_0000)
    }

    /// Whether it is unspecified: `0.0.0.0` or `::`. The kernel connects such sockets to loopback.
    #[inline(always)]
    pub const fn is_unspecified(&self) -> bool {
        let w = &self.0;
        (w[0] | w[1] | w[3]) == 0 && (w[2] == 0) | (w[2] == MAPPED)
    }

    /// The address in its own family: v4-mapped becomes IPv4.
    pub const fn to_ip(self) -> IpAddr {
        if self.is_v4() {
            let [a, b, c, d] = self.v4_be().to_ne_bytes();
            IpAddr::V4(Ipv4Addr::new(a, b, c, d))
        } else {
            IpAddr::V6(Ipv6Addr::from_octets(self.octets()))
        }
    }

    /// With a port, as a socket address in its own family.
    pub const fn with_port(self, port: u16) -> SocketAddr {
        SocketAddr::new(self.to_ip(), port)
    }
}

/// By the bytes in network order, as addresses are sorted for people.
impl Ord for Addr {
    fn cmp(&self, other: &Self) -> Ordering {
        self.octets().cmp(&other.octets())
    }
}

impl PartialOrd for Addr {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
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

    /// Without it: tables of addresses are sorted by the machine's byte order.
    #[test]
    fn addrs_are_ordered_as_numbers() {
        let sorted = ["10.0.0.2", "10.0.1.1", "10.1.0.0", "fd00::2", "fd00::1:1"];
        let addrs = sorted.map(|s| Addr::from_ip(s.parse().unwrap()));
        assert!(addrs.is_sorted(), "{addrs:?}");
    }

    #[test]
    fn addr_classes_are_told_apart() {
        let class = |s: &str| {
            let a = Addr::from_ip(s.parse().unwrap());
            (a.is_loopback(), a.is_link_local(), a.is_unspecified())
        };
        assert_eq!(Addr::LOOPBACK_V4.to_ip(), IpAddr::V4(Ipv4Addr::LOCALHOST));
        assert_eq!(Addr::LOOPBACK_V6.to_ip(), IpAddr::V6(Ipv6Addr::LOCALHOST));
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
