//! Finds mounted file systems by `/proc/self/mountinfo`, never by a hard-coded path.

use std::{ffi::OsString, fs, io, os::unix::ffi::OsStringExt, path::PathBuf};

const MOUNTINFO: &str = "/proc/self/mountinfo";

/// The mount point of the unified cgroup hierarchy (cgroup v2), also on hybrid machines where it
/// does not stand at `/sys/fs/cgroup`.
///
/// # Errors
/// The mount table can't be read. `Ok(None)`: there is none.
pub fn cgroup2() -> io::Result<Option<PathBuf>> {
    Ok(find(&fs::read(MOUNTINFO)?, b"cgroup2"))
}

/// The mount point of a bpffs; `/sys/fs/bpf` wins where there are several.
///
/// # Errors
/// The mount table can't be read. `Ok(None)`: there is none.
pub fn bpffs() -> io::Result<Option<PathBuf>> {
    let table = fs::read(MOUNTINFO)?;
    let mut all = of_type(&table, b"bpf").map(|(_, point)| point);
    let first = all.next();
    let usual = PathBuf::from("/sys/fs/bpf");
    Ok(if all.any(|point| point == usual) {
        Some(usual)
    } else {
        first
    })
}

/// A mount that shows the whole hierarchy (root `/`) wins over a bind mount of a part of it.
fn find(table: &[u8], kind: &[u8]) -> Option<PathBuf> {
    let mut first = None;
    for (root, point) in of_type(table, kind) {
        if root == b"/" {
            return Some(point);
        }
        first.get_or_insert(point);
    }
    first
}

/// (root, mount point) of each mount of that type: proc_pid_mountinfo(5). The optional fields end
/// at a lone `-`, the type follows.
fn of_type<'a>(table: &'a [u8], kind: &'a [u8]) -> impl Iterator<Item = (&'a [u8], PathBuf)> {
    table.split(|&b| b == b'\n').filter_map(move |line| {
        let mut fields = line.split(|&b| b == b' ').skip(3);
        let (root, point) = (fields.next()?, fields.next()?);
        fields.find(|field| *field == b"-")?;
        (fields.next()? == kind).then(|| (root, unescape(point)))
    })
}

/// Space, tab, newline and backslash stand as three octal digits.
fn unescape(field: &[u8]) -> PathBuf {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&byte, tail)) = rest.split_first() {
        rest = tail;
        let octal = (byte == b'\\')
            .then(|| tail.get(..3))
            .flatten()
            .and_then(|digits| {
                let text = str::from_utf8(digits).ok()?;
                u8::from_str_radix(text, 8).ok()
            });
        if let Some(value) = octal {
            out.push(value);
            rest = &tail[3..];
        } else {
            out.push(byte);
        }
    }
    PathBuf::from(OsString::from_vec(out))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &[u8] = b"\
29 1 0:26 / /sys rw - sysfs sysfs rw
40 31 0:38 /part /somewhere rw - cgroup2 cgroup2 rw
41 31 0:38 / /sys/fs/cgroup\\040two rw,relatime shared:3 master:1 - cgroup2 cgroup2 rw
42 31 0:39 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu
";

    #[test]
    fn whole_hierarchy_wins_over_bind_mount_of_a_part() {
        assert_eq!(
            find(HYBRID, b"cgroup2"),
            Some(PathBuf::from("/sys/fs/cgroup two"))
        );
        assert_eq!(find(b"", b"cgroup2"), None);
        assert_eq!(find(HYBRID, b"bpf"), None);
    }

    #[test]
    fn damaged_mount_table_is_no_panic() {
        for line in [
            &b"1 2"[..],
            b"1 2 3 / /x rw -",
            b"1 2 3 / /x rw - cgroup2",
            b"\\",
        ] {
            let _ = find(line, b"cgroup2");
        }
        assert_eq!(unescape(b"a\\04"), PathBuf::from("a\\04"));
        assert_eq!(unescape(b"a\\777b"), PathBuf::from("a\\777b"));
        assert_eq!(unescape(b"a\\134b"), PathBuf::from("a\\b"));
    }
}
