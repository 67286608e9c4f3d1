//! The one place that tells aya that our types may be copied to and from map memory.

/// Marker of a type that is plain map data: `repr(C)`, no padding, every bit pattern valid.
///
/// Implemented by the macro `plain!` below, which asserts size and alignment.
pub trait Plain: Copy + 'static {
    /// Size in a map, in bytes.
    const SIZE: usize;
}

/// Keys that are a number: cookies.
impl Plain for u64 {
    const SIZE: usize = 8;
}

/// Indexes of arrays, and values that are one.
impl Plain for u32 {
    const SIZE: usize = 4;
}

/// Declares a type as plain map data and asserts its size in bytes.
///
/// The size must equal the sum of the fields: a hole would carry uninitialised bytes, and hash
/// keys compare byte by byte.
macro_rules! plain {
    ($type:ty, $size:expr, [$($field:ty),+ $(,)?]) => {
        const _: () = assert!(core::mem::size_of::<$type>() == $size, "size");
        const _: () = assert!(0 $(+ core::mem::size_of::<$field>())+ == $size, "padding");
        impl $crate::plain::Plain for $type {
            const SIZE: usize = $size;
        }
        #[cfg(feature = "user")]
        #[expect(unsafe_code, reason = "aya's marker trait is unsafe to implement")]
        // SAFETY: `repr(C)` of integers and integer arrays, without padding (asserted above: the
        // size is the sum of the fields), so every bit pattern is a valid value.
        unsafe impl aya::Pod for $type {}
    };
}
pub(crate) use plain;
