//! Platform adapters: they describe services and workloads, and nothing else.

pub mod file;
