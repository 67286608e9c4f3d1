//! `mesh`: the node agent and its command line.

use std::process::ExitCode;

fn main() -> ExitCode {
    mesh_user::cli::main()
}
