//! Which offloads of an interface are on: attaching to a driver must not turn any off (a veth's
//! peer loses TSO, a virtio NIC its LRO).

use std::{collections::BTreeSet, ffi::CStr, io, os::fd::AsRawFd as _};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

/// `SIOCETHTOOL`.
const ETHTOOL: libc::Ioctl = 0x8946;
const GET_SET_INFO: u32 = 0x37;
const GET_STRINGS: u32 = 0x1b;
const GET_FEATURES: u32 = 0x3a;
const SET_FEATURES: u32 = 0x3b;
/// `ETH_SS_FEATURES`.
const FEATURES: u32 = 4;
/// Most features that are read: the kernel has some 60, in words of 32.
const WORDS_MAX: usize = 8;
const NAME: usize = 32;

#[repr(C)]
struct SetInfo {
    command: u32,
    _reserved: u32,
    mask: u64,
    counts: [u32; 1],
}

#[repr(C)]
struct Strings {
    command: u32,
    set: u32,
    len: u32,
    data: [u8; WORDS_MAX * 32 * NAME],
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Block {
    available: u32,
    requested: u32,
    active: u32,
    never_changed: u32,
}

#[repr(C)]
struct Features {
    command: u32,
    size: u32,
    blocks: [Block; WORDS_MAX],
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Change {
    valid: u32,
    requested: u32,
}

#[repr(C)]
struct Changes {
    command: u32,
    size: u32,
    blocks: [Change; WORDS_MAX],
}

/// Names of the features that are on.
pub(super) fn active(interface: &str) -> io::Result<BTreeSet<String>> {
    let names = names(interface)?;
    let mut features = Features {
        command: GET_FEATURES,
        size: names.len().div_ceil(32) as u32,
        blocks: [Block::default(); WORDS_MAX],
    };
    ask(interface, &mut features)?;
    let on = |bit: &usize| features.blocks[bit / 32].active >> (bit % 32) & 1 == 1;
    let bits = (0..names.len()).filter(on);
    Ok(bits.map(|bit| names[bit].clone()).collect())
}

/// Turns features on.
pub(super) fn turn_on(interface: &str, features: &[&str]) -> io::Result<()> {
    let names = names(interface)?;
    let mut changes = Changes {
        command: SET_FEATURES,
        size: names.len().div_ceil(32) as u32,
        blocks: [Change::default(); WORDS_MAX],
    };
    for (bit, _) in names
        .iter()
        .enumerate()
        .filter(|(_, name)| features.contains(&name.as_str()))
    {
        changes.blocks[bit / 32].valid |= 1 << (bit % 32);
        changes.blocks[bit / 32].requested |= 1 << (bit % 32);
    }
    ask(interface, &mut changes)
}

/// The features' names, by bit.
fn names(interface: &str) -> io::Result<Vec<String>> {
    let mut info = SetInfo {
        command: GET_SET_INFO,
        _reserved: 0,
        mask: 1 << FEATURES,
        counts: [0],
    };
    ask(interface, &mut info)?;
    let count = (info.counts[0] as usize).min(WORDS_MAX * 32);
    let mut strings = Box::new(Strings {
        command: GET_STRINGS,
        set: FEATURES,
        len: count as u32,
        data: [0; WORDS_MAX * 32 * NAME],
    });
    ask(interface, &mut *strings)?;
    let name = |bytes: &[u8]| {
        let text = CStr::from_bytes_until_nul(bytes).unwrap_or_default();
        text.to_string_lossy().into_owned()
    };
    Ok(strings.data.chunks(NAME).take(count).map(name).collect())
}

/// One question to the driver: `T` begins with its command, and has room for all that the command
/// writes.
fn ask<T>(interface: &str, question: &mut T) -> io::Result<()> {
    let socket = socket(
        AddressFamily::Inet,
        SockType::Datagram,
        SockFlag::SOCK_CLOEXEC,
        None,
    )?;
    let name = interface.as_bytes();
    if name.len() >= libc::IFNAMSIZ {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let mut request = libc::ifreq {
        ifr_name: [0; libc::IFNAMSIZ],
        ifr_ifru: libc::__c_anonymous_ifr_ifru {
            ifru_data: (&raw mut *question).cast(),
        },
    };
    for (to, from) in request.ifr_name.iter_mut().zip(name) {
        *to = *from as libc::c_char;
    }
    #[expect(unsafe_code, reason = "a raw system call")]
    // SAFETY: `request` names an interface and points to a live, exclusively borrowed question; the
    // callers above size each for what its command writes: one count, `len` strings, `size` blocks.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), ETHTOOL, &raw mut request) };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `lo` is everywhere and its checksums are never off.
    #[test]
    fn offloads_of_loopback_are_read_by_name() {
        let active = active("lo").expect("ethtool");
        assert!(active.contains("highdma"), "{active:?}");
        assert!(super::active("no-such-interface").is_err());
    }

    /// In a namespace of its own, which goes with the thread.
    #[test]
    fn offloads_that_were_turned_off_are_turned_on_again() {
        std::thread::spawn(|| {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("root");
            let before = active("lo").expect("ethtool");
            let feature = "tx-tcp-segmentation";
            assert!(before.contains(feature), "{before:?}");
            let names = names("lo").expect("ethtool");
            let bit = names
                .iter()
                .position(|name| name == feature)
                .expect("there");
            let mut off = Changes {
                command: SET_FEATURES,
                size: names.len().div_ceil(32) as u32,
                blocks: [Change::default(); WORDS_MAX],
            };
            off.blocks[bit / 32].valid = 1 << (bit % 32);
            ask("lo", &mut off).expect("off");
            assert!(!active("lo").expect("ethtool").contains(feature));
            turn_on("lo", &[feature]).expect("on");
            assert_eq!(active("lo").expect("ethtool"), before);
        })
        .join()
        .expect("no panic");
    }
}
