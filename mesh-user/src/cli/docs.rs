//! `docs/CLI.md`, made from the help texts.

use clap::{Command, CommandFactory as _};

use super::args::Cli;

/// The text of `docs/CLI.md`.
pub fn markdown() -> String {
    let mut out = "# Command line\n\n\
                   Generated from the help texts; a test compares, `MESH_BLESS=1 cargo test` \
                   rewrites.\n"
        .to_owned();
    let mut root = Cli::command().term_width(100);
    root.build();
    section(&mut root, &mut out);
    out
}

fn section(command: &mut Command, out: &mut String) {
    if command.get_name() == "help" {
        return;
    }
    let name = command
        .get_bin_name()
        .unwrap_or(command.get_name())
        .to_owned();
    let help = command.render_long_help().to_string();
    let help: Vec<&str> = help.trim().lines().map(str::trim_end).collect();
    *out += &format!("\n## `{name}`\n\n```text\n{}\n```\n", help.join("\n"));
    for sub in command.get_subcommands_mut() {
        section(sub, out);
    }
}
