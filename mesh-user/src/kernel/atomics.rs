//! Programs for kernels without fetching atomics (before Linux 5.12).
//!
//! Those kernels refuse a program that merely contains such an instruction, also where it can't be
//! reached, so no constant can switch it off: the loader rewrites it. `fetch_add` in the programs'
//! `count.rs` is three instructions for this:
//!
//! ```text
//! before = *(u64 *)(slot + 0)
//! by = atomic_fetch_add((u64 *)(slot + 0), by)     -> lock *(u64 *)(slot + 0) += by
//! before = by                                      -> before = before
//! ```
//!
//! What is left may hand the same number to two CPUs at once: the split is off by one connection
//! then, and a cap may be overdrawn by as many connections as CPUs were between these lines.

use std::io;

use super::sys;

const WORD: usize = size_of::<u64>();

/// Whether the kernel takes fetching atomics: found by trying.
pub(super) fn fetching() -> io::Result<bool> {
    // SOCKET_FILTER (1): r1 = 0; *(r10 - 8) = r1; r1 = atomic_fetch_add(r10 - 8, r1); r0 = 0; exit
    let program = [
        0x0000_0000_0000_01b7,
        0x0000_0000_fff8_1a7b,
        0x0000_0001_fff8_1adb,
        0x0000_0000_0000_00b7,
        0x0000_0000_0000_0095,
    ];
    match sys::prog_load(1, 0, &program) {
        Ok(_) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok(false),
        Err(error) => Err(error),
    }
}

/// The object without fetching atomics, and how many there were.
pub fn without_fetch(object: &[u8]) -> (Vec<u8>, usize) {
    let mut patched = object.to_vec();
    let mut found = 0;
    // Code stands at multiples of an instruction's size. Three instructions that fit each other,
    // registers included: no data looks like that.
    for at in (0..object.len().saturating_sub(3 * WORD - 1)).step_by(WORD) {
        let part = &mut patched[at..at + 3 * WORD];
        if let Some(plain) = plain(part) {
            part.copy_from_slice(&plain);
            found += 1;
        }
    }
    (patched, found)
}

/// The three instructions of `fetch_add` without the fetch; none for anything else.
fn plain(part: &[u8]) -> Option<[u8; 3 * WORD]> {
    let mut code: [u8; 3 * WORD] = part.try_into().ok()?;
    let low = |registers: u8| registers & 0x0f;
    let (slot, by) = (low(code[9]), code[9] >> 4);
    let before = low(code[1]);
    let same = code[0] == 0x79
        && code[1] >> 4 == slot
        && code[2..8] == [0; 6]
        && code[8] == 0xdb
        && code[10..16] == [0, 0, 1, 0, 0, 0]
        && code[16] == 0xbf
        && code[17] == (by << 4 | before)
        && code[18..24] == [0; 6];
    if !same {
        return None;
    }
    code[12] = 0;
    code[17] = before << 4 | before;
    Some(code)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `r3 = *(r1); r2 = atomic_fetch_add(r1, r2); r3 = r2`.
    const FETCH: [u8; 24] = [
        0x79, 0x13, 0, 0, 0, 0, 0, 0, 0xdb, 0x21, 0, 0, 1, 0, 0, 0, 0xbf, 0x23, 0, 0, 0, 0, 0, 0,
    ];

    #[test]
    fn fetching_addition_becomes_a_plain_one_and_keeps_the_first_read() {
        let mut code = vec![0; 8];
        code.extend(FETCH);
        code.extend([0x95, 0, 0, 0, 0, 0, 0, 0]);
        let (patched, found) = without_fetch(&code);
        assert_eq!(found, 1);
        assert_eq!(patched[..16], code[..16]);
        assert_eq!(patched[16..24], [0xdb, 0x21, 0, 0, 0, 0, 0, 0]);
        assert_eq!(patched[24..32], [0xbf, 0x33, 0, 0, 0, 0, 0, 0]);
        assert_eq!(patched[32..], code[32..]);
        assert_eq!(without_fetch(&patched), (patched, 0));
    }

    #[test]
    fn what_is_no_fetching_addition_stays_as_it_is() {
        for (at, byte) in [
            (0, 0x61),
            (1, 0x23),
            (12, 0),
            (9, 0x31),
            (16, 0xb7),
            (17, 0x13),
        ] {
            let mut code = FETCH;
            code[at] = byte;
            assert_eq!(without_fetch(&code), (code.to_vec(), 0), "{at}");
        }
        // Not where an instruction begins, and cut short.
        let shifted: Vec<u8> = [0; 4].into_iter().chain(FETCH).collect();
        assert_eq!(without_fetch(&shifted).1, 0);
        assert_eq!(without_fetch(&FETCH[..23]).1, 0);
        assert_eq!(without_fetch(&[]).1, 0);
    }

    /// Without it: a compiler that moves the three instructions apart is found on an old kernel.
    #[test]
    fn every_fetching_atomic_of_the_object_can_be_taken_out() {
        let object = super::super::object::OBJECT;
        if object.is_empty() {
            return;
        }
        let (patched, found) = without_fetch(object);
        assert!(
            found >= 4,
            "sequence and cap, in both connect hooks: {found}"
        );
        assert_eq!(patched.len(), object.len());
    }
}
