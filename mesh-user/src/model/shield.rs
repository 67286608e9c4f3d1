//! What the shield is told: settings, address ranges, lists of them.

use std::{
    fmt,
    net::{IpAddr, Ipv6Addr},
    path::PathBuf,
    str::FromStr,
    time::Duration,
};

use ipnet::IpNet;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

/// The shield of this node's interfaces.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Shield {
    /// Names of interfaces; `auto`: those of the default routes.
    pub interfaces: Vec<String>,
    /// Where the programs are attached.
    pub mode: Mode,
    /// Ranges whose frames always pass.
    pub allow: Vec<IpNet>,
    /// Ranges whose frames are dropped.
    pub deny: Vec<Deny>,
    /// Files with one range a line whose frames are dropped.
    pub deny_files: Vec<PathBuf>,
    /// How many SYNs each source may send; none: as many as it likes.
    pub syn_rate: Option<Rate>,
    /// How many TCP connections each source may open; none: as many as it likes.
    pub connection_rate: Option<Rate>,
    /// Whether frames with TCP flags that no TCP sends are dropped.
    pub drop_bogus: bool,
}

impl Default for Shield {
    fn default() -> Self {
        Self {
            interfaces: vec!["auto".to_owned()],
            mode: Mode::Auto,
            allow: Vec::new(),
            deny: Vec::new(),
            deny_files: Vec::new(),
            syn_rate: None,
            connection_rate: None,
            drop_bogus: true,
        }
    }
}

/// A range that is denied.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Deny {
    /// The range.
    pub cidr: IpNet,
    /// The rule under which it is counted; none: the range itself.
    pub rule: Option<String>,
}

/// So many in a time, and so many at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Rate {
    /// How many in `per`, at least 1.
    pub count: u64,
    /// The time.
    pub per: Duration,
    /// How many at once, at least 1.
    pub burst: u32,
}

/// Where the programs are attached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// In the driver where it can be done well, else at tc ingress.
    #[default]
    Auto,
    /// In the driver, or not at all; never on a veth.
    Native,
    /// In the driver, on a veth too.
    ForceNative,
    /// At tc ingress.
    Tc,
    /// Nowhere.
    Off,
}

/// An address range as the shield's map holds it: 128 bits, IPv4 as v4-mapped.
///
/// Sorted, a range stands before all ranges inside it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Net {
    high: u64,
    low: u64,
    bits: u8,
}

/// Bits of a v4-mapped address before its IPv4 address.
const MAPPED_BITS: u8 = 96;

impl Net {
    /// All of IPv4.
    pub const V4: Self = Self {
        high: 0,
        low: 0xffff_0000_0000,
        bits: MAPPED_BITS,
    };

    /// From the 128-bit form; bits behind the prefix are cleared.
    pub fn new(address: u128, bits: u8) -> Self {
        let bits = bits.min(128);
        let masked = address & mask(bits);
        Self {
            high: (masked >> 64) as u64,
            low: masked as u64,
            bits,
        }
    }

    /// The address in its 128-bit form.
    pub fn address(self) -> u128 {
        u128::from(self.high) << 64 | u128::from(self.low)
    }

    /// Bits that count, of 128.
    pub fn bits(self) -> u8 {
        self.bits
    }

    /// The last address inside.
    pub fn last(self) -> u128 {
        self.address() | !mask(self.bits)
    }

    /// Whether it is a range of IPv4.
    pub fn is_v4(self) -> bool {
        self.bits >= MAPPED_BITS && self.high == 0 && self.low >> 32 == 0xffff
    }

    /// Whether `other` lies inside (or is the same), in the same family.
    pub fn holds(self, other: Self) -> bool {
        self.is_v4() == other.is_v4()
            && self.bits <= other.bits
            && other.address() & mask(self.bits) == self.address()
    }
}

const fn mask(bits: u8) -> u128 {
    match bits {
        0 => 0,
        bits => u128::MAX << (128 - bits as u32),
    }
}

impl From<IpNet> for Net {
    fn from(net: IpNet) -> Self {
        match net {
            IpNet::V4(v4) => Self::new(
                u128::from(v4.addr().to_ipv6_mapped()),
                MAPPED_BITS + v4.prefix_len(),
            ),
            IpNet::V6(v6) => Self::new(u128::from(v6.addr()), v6.prefix_len()),
        }
    }
}

impl From<IpAddr> for Net {
    fn from(address: IpAddr) -> Self {
        IpNet::from(address).into()
    }
}

impl fmt::Display for Net {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let v6 = Ipv6Addr::from(self.address());
        match v6.to_ipv4_mapped() {
            Some(v4) if self.is_v4() => write!(f, "{v4}/{}", self.bits - MAPPED_BITS),
            _ => write!(f, "{v6}/{}", self.bits),
        }
    }
}

impl fmt::Debug for Net {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for Net {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Net {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse()
            .map_err(|error| D::Error::custom(format!("`{text}` {error}")))
    }
}

/// Why a text is no range.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NetError {
    /// Something else.
    #[error("is no address range: expected one such as 203.0.113.0/24 or 2001:db8::/32")]
    Syntax,
    /// The address is inside the range, not its beginning.
    #[error("has bits set after its prefix: did you mean {0}?")]
    Bits(IpNet),
}

impl FromStr for Net {
    type Err = NetError;

    /// Reads a range; a lone address is a range of one.
    fn from_str(text: &str) -> Result<Self, NetError> {
        if let Ok(net) = text.parse::<IpNet>() {
            let trimmed = net.trunc();
            return if trimmed == net {
                Ok(net.into())
            } else {
                Err(NetError::Bits(trimmed))
            };
        }
        let address: IpAddr = text.parse().map_err(|_| NetError::Syntax)?;
        Ok(address.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn net(text: &str) -> Net {
        text.parse().expect(text)
    }

    #[test]
    fn net_shows_what_was_read() {
        for text in [
            "203.0.113.0/24",
            "0.0.0.0/0",
            "2001:db8::/32",
            "::/0",
            "10.0.0.1/32",
        ] {
            assert_eq!(net(text).to_string(), text);
        }
        assert_eq!(net("10.0.0.1").to_string(), "10.0.0.1/32");
        assert_eq!(net("::1").to_string(), "::1/128");
        assert_eq!(net("::ffff:10.0.0.0/104").to_string(), "10.0.0.0/8");
    }

    #[test]
    fn net_slips_are_named() {
        let error = |text: &str| text.parse::<Net>().unwrap_err().to_string();
        assert!(error("10.0.0.1/8").contains("did you mean 10.0.0.0/8"));
        for bad in [
            "",
            "10.0.0/8",
            "10.0.0.0/33",
            "example.org",
            "10.0.0.0/8 # x",
        ] {
            assert!(error(bad).contains("no address range"), "{bad}");
        }
    }

    #[test]
    fn net_ranges_hold_their_own_family_only() {
        assert!(net("10.0.0.0/8").holds(net("10.1.0.0/16")));
        assert!(net("10.0.0.0/8").holds(net("10.0.0.0/8")));
        assert!(!net("10.1.0.0/16").holds(net("10.0.0.0/8")));
        assert!(net("::/0").holds(net("2001:db8::/32")));
        assert!(!net("::/0").holds(net("10.0.0.0/8")));
        assert_eq!(net("10.0.0.0/8").last() as u32, 0x0aff_ffff);
    }

    #[test]
    fn net_ranges_sort_before_what_is_inside() {
        let mut nets = ["10.0.0.1", "10.0.0.0/8", "::/0", "10.0.0.0/24"].map(net);
        nets.sort();
        assert_eq!(
            nets,
            ["::/0", "10.0.0.0/8", "10.0.0.0/24", "10.0.0.1"].map(net)
        );
    }
}
