//! Says what is missing on this machine: one line each, with the exact fix.

use anyhow::{Result, bail};

use crate::needs;

/// Prints every need; an error when one is not met.
pub(crate) fn run() -> Result<()> {
    let needs = needs::all();
    let mut missing = 0;
    for need in &needs {
        match &need.state {
            Ok(found) => println!("ok       {:<14} {found}", need.what),
            Err(lack) => {
                missing += 1;
                println!(
                    "MISSING  {:<14} {} (for {})",
                    need.what, lack.why, need.used_by
                );
                println!("         {:<14} fix: {}", "", lack.fix);
            }
        }
    }
    if missing > 0 {
        bail!(
            "{missing} of {} needs are not met; `cargo xtask setup` installs what it can",
            needs.len()
        );
    }
    Ok(())
}
