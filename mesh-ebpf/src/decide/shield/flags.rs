//! Which TCP flags no TCP sends together.

/// FIN.
pub const FIN: u8 = 0x01;
/// SYN.
pub const SYN: u8 = 0x02;
/// RST.
pub const RST: u8 = 0x04;
/// ACK.
pub const ACK: u8 = 0x10;
/// URG.
pub const URG: u8 = 0x20;

/// The combinations that exist, of FIN, SYN, RST, ACK and URG: the table of Linux' connection
/// tracking (`tcp_valid_flags` in `nf_conntrack_proto_tcp.c`), which takes them from the state
/// diagram of RFC 9293 §3.3.2. PSH and the ECN flags (RFC 3168, RFC 9768) may stand in any of them.
///
/// What is left is what scanners and floods send: none at all («NULL»), FIN without ACK («FIN
/// scan»), FIN with PSH and URG («XMAS»), SYN with FIN or RST, FIN with RST, RST with URG.
pub const VALID: [u8; 9] = [
    SYN,
    SYN | URG,
    SYN | ACK,
    RST,
    RST | ACK,
    FIN | ACK,
    FIN | ACK | URG,
    ACK,
    ACK | URG,
];

/// One bit for each combination of [`VALID`], so that a look-up is a shift.
const SET: u64 = {
    let mut set = 0;
    let mut i = 0;
    while i < VALID.len() {
        set |= 1 << VALID[i];
        i += 1;
    }
    set
};

/// Whether no TCP sends these flags (byte 13 of the header).
#[inline(always)]
pub const fn bogus(flags: u8) -> bool {
    let judged = flags & (FIN | SYN | RST | ACK | URG);
    (SET >> judged) & 1 == 0
}

/// Whether it asks for a connection.
#[inline(always)]
pub const fn opens(flags: u8) -> bool {
    flags & (SYN | ACK) == SYN
}

#[cfg(test)]
mod tests {
    use super::*;

    const PSH: u8 = 0x08;
    const ECE: u8 = 0x40;
    const CWR: u8 = 0x80;

    /// Without it: a scan passes, or a connection breaks in the middle.
    #[test]
    fn shield_flags_of_every_combination_are_judged_by_the_table() {
        for flags in 0..=u8::MAX {
            let judged = flags & !(PSH | ECE | CWR);
            assert_eq!(bogus(flags), !VALID.contains(&judged), "{flags:#04x}");
        }
    }

    #[test]
    fn shield_flags_that_scanners_send_are_bogus() {
        for (name, flags) in [
            ("null", 0),
            ("fin", FIN),
            ("xmas", FIN | PSH | URG),
            ("full xmas", 0xff),
            ("syn fin", SYN | FIN),
            ("syn fin ack", SYN | FIN | ACK),
            ("syn rst", SYN | RST),
            ("fin rst", FIN | RST | ACK),
            ("psh alone", PSH),
        ] {
            assert!(bogus(flags), "{name}");
        }
    }

    #[test]
    fn shield_flags_of_real_connections_pass() {
        for flags in [
            SYN,
            SYN | ECE | CWR,
            SYN | ACK,
            SYN | ACK | ECE,
            ACK,
            ACK | PSH,
            ACK | PSH | URG,
            FIN | ACK,
            FIN | ACK | PSH,
            RST,
            RST | ACK,
            RST | ACK | PSH,
        ] {
            assert!(!bogus(flags), "{flags:#04x}");
        }
        assert!(opens(SYN | ECE | CWR) && !opens(SYN | ACK) && !opens(ACK));
    }
}
