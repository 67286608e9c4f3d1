//! Many map entries in one call, and one by one where the kernel takes no batches for the type.

use std::{io, marker::PhantomData, os::fd::AsFd, ptr};

use mesh_common::plain::Plain;

use super::{Command, Element, bpf, map_delete, map_next, raw};

/// `union bpf_attr` of the batch commands.
#[repr(C)]
struct Batch {
    from: u64,
    to: u64,
    keys: u64,
    values: u64,
    count: u32,
    map: u32,
    element_flags: u64,
    flags: u64,
}

/// Entries in one call: large enough that the call costs nothing beside the entries, small enough
/// that the kernel's copies stay small.
const CHUNK: usize = 8_192;

/// `ENOTSUPP`, which has no name in user space: the map's type knows no batches.
const NOT_SUPPORTED: i32 = 524;

fn no_batches(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EINVAL | libc::EOPNOTSUPP | NOT_SUPPORTED)
    )
}

/// Writes entries: all of them, or those before the one that the error is about.
pub(in crate::kernel) fn update<K: Plain, V: Plain>(
    map: impl AsFd,
    keys: &[K],
    values: &[V],
) -> io::Result<()> {
    assert_eq!(keys.len(), values.len(), "a value for each key");
    for (keys, values) in keys.chunks(CHUNK).zip(values.chunks(CHUNK)) {
        let mut attr = batch(
            &map,
            keys.as_ptr() as u64,
            values.as_ptr() as u64,
            keys.len(),
        );
        #[expect(unsafe_code, reason = "a raw system call")]
        // SAFETY: keys and values are `count` initialised plain values of the map's key and value
        // sizes, which the caller's types state; the kernel only reads them.
        let result = unsafe { bpf(Command::MapUpdateBatch, &mut attr) };
        match result {
            Ok(_) => {}
            Err(error) if no_batches(&error) => {
                for (key, value) in keys.iter().zip(values) {
                    set(&map, key, value)?;
                }
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Removes entries. One that is not there is no error.
pub(in crate::kernel) fn delete<K: Plain>(map: impl AsFd, keys: &[K]) -> io::Result<()> {
    for keys in keys.chunks(CHUNK) {
        let mut attr = batch(&map, keys.as_ptr() as u64, 0, keys.len());
        #[expect(unsafe_code, reason = "a raw system call")]
        // SAFETY: as in `update`, without values.
        let result = unsafe { bpf(Command::MapDeleteBatch, &mut attr) };
        if result.is_ok() {
            continue;
        }
        // The batch stopped somewhere, or there are none: one by one, which also skips the missing.
        for key in keys {
            match map_delete(&map, key) {
                Err(error) if error.raw_os_error() != Some(libc::ENOENT) => return Err(error),
                _ => {}
            }
        }
    }
    Ok(())
}

/// Writes one entry.
pub(in crate::kernel) fn set<K: Plain, V: Plain>(
    map: impl AsFd,
    key: &K,
    value: &V,
) -> io::Result<()> {
    let mut attr = Element {
        map: raw(&map),
        _pad: 0,
        key: ptr::from_ref(key) as u64,
        value: ptr::from_ref(value) as u64,
        flags: 0,
    };
    #[expect(unsafe_code, reason = "a raw system call")]
    // SAFETY: key and value are initialised plain memory of the map's sizes.
    let result = unsafe { bpf(Command::MapUpdate, &mut attr) };
    result.map(drop)
}

/// Reads one entry, of a map that is not per CPU.
pub(in crate::kernel) fn lookup<K: Plain, V: Plain + aya::Pod>(
    map: impl AsFd,
    key: &K,
) -> io::Result<Option<V>> {
    let mut value = zeroed::<V>();
    let mut attr = Element {
        map: raw(&map),
        _pad: 0,
        key: ptr::from_ref(key) as u64,
        value: (&raw mut value) as u64,
        flags: 0,
    };
    #[expect(unsafe_code, reason = "a raw system call")]
    // SAFETY: the key is plain memory of the map's key size; `value` is writable memory of the
    // map's value size, for which every bit pattern is valid (`Plain`).
    let result = unsafe { bpf(Command::MapLookup, &mut attr) };
    match result {
        Ok(_) => Ok(Some(value)),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

fn batch(map: impl AsFd, keys: u64, values: u64, count: usize) -> Batch {
    Batch {
        from: 0,
        to: 0,
        keys,
        values,
        count: count as u32,
        map: raw(&map),
        element_flags: 0,
        flags: 0,
    }
}

/// Walks all entries of a map whose cursor is its key (tries), in batches.
pub(in crate::kernel) struct Walk<'m, M, K, V> {
    map: &'m M,
    cursor: Option<K>,
    done: bool,
    value: PhantomData<V>,
}

impl<'m, M: AsFd, K: Plain + aya::Pod, V: Plain + aya::Pod> Walk<'m, M, K, V> {
    pub(in crate::kernel) fn new(map: &'m M) -> Self {
        Self {
            map,
            cursor: None,
            done: false,
            value: PhantomData,
        }
    }

    /// The next entries; `None` behind the last.
    pub(in crate::kernel) fn next(&mut self) -> io::Result<Option<(Vec<K>, Vec<V>)>> {
        if self.done {
            return Ok(None);
        }
        let mut keys = vec![zeroed::<K>(); CHUNK];
        let mut values = vec![zeroed::<V>(); CHUNK];
        let mut after = zeroed::<K>();
        let mut attr = batch(
            self.map,
            keys.as_mut_ptr() as u64,
            values.as_mut_ptr() as u64,
            CHUNK,
        );
        attr.from = self
            .cursor
            .as_ref()
            .map_or(0, |key| ptr::from_ref(key) as u64);
        attr.to = (&raw mut after) as u64;
        #[expect(unsafe_code, reason = "a raw system call")]
        // SAFETY: `from` is null or a key; `to`, keys and values are writable memory for one key
        // and `count` plain values of the map's sizes.
        let result = unsafe { bpf(Command::MapLookupBatch, &mut attr) };
        match result {
            Ok(_) => {}
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => self.done = true,
            Err(error) if no_batches(&error) => return self.single(),
            Err(error) => return Err(error),
        }
        keys.truncate(attr.count as usize);
        values.truncate(attr.count as usize);
        self.cursor = Some(after);
        Ok(Some((keys, values)))
    }

    /// One entry, on a kernel without batches for this type.
    fn single(&mut self) -> io::Result<Option<(Vec<K>, Vec<V>)>> {
        let Some(key) = map_next::<K>(self.map, self.cursor.as_ref())? else {
            return Ok(None);
        };
        self.cursor = Some(key);
        let value = lookup::<K, V>(self.map, &key)?;
        Ok(Some((vec![key], value.into_iter().collect())))
    }
}

/// Room for what the kernel writes.
fn zeroed<T: aya::Pod>() -> T {
    #[expect(unsafe_code, reason = "plain memory")]
    // SAFETY: `aya::Pod`: every bit pattern is a valid value, that of zeros too.
    unsafe {
        std::mem::zeroed()
    }
}
