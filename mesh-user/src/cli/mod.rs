//! To be written.
pub fn main() -> std::process::ExitCode { unimplemented!("cli") }
