//! Lines for whoever debugs the programs: aya-log, in objects built with the feature `log`.
//!
//! Compiled to nothing otherwise. What an operator must know goes through counters and `EVENTS`,
//! in every object.

/// One line about a connection, at level debug.
#[cfg(feature = "log")]
macro_rules! debug {
    ($ctx:expr, $($args:tt)+) => {
        aya_log_ebpf::debug!($ctx, $($args)+)
    };
}

/// Nothing: the arguments are not even looked at.
#[cfg(not(feature = "log"))]
macro_rules! debug {
    ($ctx:expr, $($args:tt)+) => {};
}

/// A line about something that an operator may have to act on, at level info.
#[cfg(feature = "log")]
macro_rules! info {
    ($ctx:expr, $($args:tt)+) => {
        aya_log_ebpf::info!($ctx, $($args)+)
    };
}

/// Nothing, as above.
#[cfg(not(feature = "log"))]
macro_rules! info {
    ($ctx:expr, $($args:tt)+) => {};
}
