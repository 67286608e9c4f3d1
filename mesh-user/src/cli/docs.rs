//! `docs/CLI.md`, made from the help texts.

use clap::{Command, CommandFactory as _};

use super::args::Cli;

/// The text of `docs/CLI.md`.
pub fn markdown() -> String {
    let mut out = "# Command line\n\n\
                   Generated from the help texts; a test compares, `MESH_BLESS=1 cargo test` \
                   rewrites. Options of `mesh` itself may stand behind every verb, and are shown \
                   once.\n"
        .to_owned();
    let mut root = Cli::command().term_width(100);
    root.build();
    section(&mut root, true, &mut out);
    out
}

fn section(command: &mut Command, root: bool, out: &mut String) {
    let shown = if root {
        command.clone()
    } else {
        without_root_options(command.clone())
    };
    let name = command
        .get_bin_name()
        .unwrap_or(command.get_name())
        .to_owned();
    let help = shown.term_width(100).render_long_help().to_string();
    let help: Vec<&str> = help.trim().lines().map(str::trim_end).collect();
    *out += &format!("\n## `{name}`\n\n```text\n{}\n```\n", help.join("\n"));
    // Hidden verbs are parts of others (tests, the demo's pods), not for people.
    let people = |sub: &&mut Command| sub.get_name() != "help" && !sub.is_hide_set();
    for sub in command.get_subcommands_mut().filter(people) {
        section(sub, false, out);
    }
}

fn without_root_options(command: Command) -> Command {
    command.mut_args(|arg| match arg.get_id().as_str() {
        "instance" | "help" | "version" => arg.hide(true),
        _ => arg,
    })
}
