//! The command line: one function for each verb, in-process callable.
//!
//! Data goes to `out`, talk to `err`; what machines read carries `apiVersion` and `kind`. Nothing
//! here decides anything: rows come from the agent's socket, from pinned maps, or from the same
//! functions that the agent runs.

mod args;
mod bpf;
mod check;
mod client;
mod columns;
mod config;
mod control;
mod docs;
mod explain;
mod monitor;
mod output;
mod shield;
mod status;
#[cfg(test)]
mod tests;

use std::{
    ffi::OsString,
    io::{self, IsTerminal as _, Write},
    process::ExitCode,
};

use anyhow::Context as _;
use clap::{CommandFactory as _, Parser as _};

use args::{Cli, OutputArgs, RunArgs, Verb};
use client::Agent;
pub use docs::markdown;
use output::{Format, Paint};

use crate::{admin::document, app, kernel::Instance, telemetry::logging};

/// How the process ends. Documented in the help of `mesh`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Done.
    Done = 0,
    /// It failed, or the answer is no.
    Failed = 1,
    /// The command line is wrong.
    Usage = 2,
    /// `explain`: the request would be refused.
    Refused = 3,
}

/// Where a command writes.
pub struct Io<'a> {
    /// Data.
    pub out: &'a mut dyn Write,
    /// Everything else.
    pub err: &'a mut dyn Write,
    /// Whether `out` takes colours.
    pub colour_out: bool,
    /// Whether `err` takes colours.
    pub colour_err: bool,
}

impl std::fmt::Debug for Io<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Io").finish_non_exhaustive()
    }
}

impl Io<'_> {
    fn paint(&self) -> Paint {
        Paint(self.colour_out)
    }

    /// Says something on `err`. Who can't be told can't be told that either.
    fn say(&mut self, text: &str) {
        let _ = writeln!(self.err, "{}", text.trim_end());
    }
}

/// The process's entry.
pub fn main() -> ExitCode {
    let colour = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    let mut out = io::BufWriter::new(io::stdout().lock());
    let mut err = io::stderr();
    let exit = run_in(
        std::env::args_os(),
        &mut Io {
            colour_out: colour && io::stdout().is_terminal(),
            colour_err: colour && err.is_terminal(),
            out: &mut out,
            err: &mut err,
        },
    );
    ExitCode::from(exit as u8)
}

/// Runs one command line (the program's name first) without colours; returns the exit status.
pub fn run<I, T>(args: I, out: &mut dyn Write, err: &mut dyn Write) -> u8
where
    I: IntoIterator<Item = T>,
    T: Into<OsString> + Clone,
{
    run_in(
        args,
        &mut Io {
            out,
            err,
            colour_out: false,
            colour_err: false,
        },
    ) as u8
}

/// Runs one command line (the program's name first).
pub fn run_in<I, T>(args: I, io: &mut Io<'_>) -> Exit
where
    I: IntoIterator<Item = T>,
    T: Into<OsString> + Clone,
{
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(error) => return usage(&error, io),
    };
    // A reader that has seen enough (`mesh ... | head`) is no failure. Only `out` is asked: a
    // broken pipe elsewhere is one.
    let mut out = Checked {
        inner: io.out,
        closed: false,
    };
    let result = {
        let mut io = Io {
            out: &mut out,
            err: io.err,
            ..*io
        };
        dispatch(cli, &mut io).and_then(|exit| {
            io.out.flush()?;
            Ok(exit)
        })
    };
    match result {
        Ok(exit) => exit,
        Err(_) if out.closed => Exit::Done,
        Err(error) => {
            let head = Paint(io.colour_err).bad("error:");
            io.say(&format!("{head} {error:#}"));
            if let Some(hint) = privilege_hint(&error) {
                io.say(&hint);
            }
            Exit::Failed
        }
    }
}

/// Help and version go to `out` and are no failure; everything else is wrong usage.
fn usage(error: &clap::Error, io: &mut Io<'_>) -> Exit {
    let render = error.render();
    let (to, colour) = match error.use_stderr() {
        true => (&mut *io.err, io.colour_err),
        false => (&mut *io.out, io.colour_out),
    };
    // Who can't be told can't be told that either.
    let _ = match colour {
        true => write!(to, "{}", render.ansi()),
        false => write!(to, "{render}"),
    };
    let _ = to.flush();
    if error.use_stderr() {
        Exit::Usage
    } else {
        Exit::Done
    }
}

fn dispatch(cli: Cli, io: &mut Io<'_>) -> anyhow::Result<Exit> {
    let instance = cli.instance;
    let agent = Agent::of(&instance);
    match cli.verb {
        Verb::Run(args) => run_agent(instance, args),
        Verb::Check(output) => check::check(&instance, output, io),
        Verb::Status(output) => status::status(&agent, output, io),
        Verb::Bpf { what, output } => bpf::list(&instance, what, output.into(), io),
        Verb::Monitor(args) => monitor::monitor(&agent, &args, io),
        Verb::Config { what, output } => config::list(&agent, what, output.into(), io),
        Verb::Explain(args) => explain::explain(&agent, args, io),
        Verb::Validate(args) => config::validate(&args, io),
        Verb::Analyze(args) => config::analyze(&args, io),
        Verb::Schema => {
            output::json(io.out, &crate::config::schema())?;
            Ok(Exit::Done)
        }
        Verb::Apply(args) => control::apply(&agent, &args, io),
        Verb::Redirect { state } => control::redirect(&agent, state, io),
        Verb::Shield { what, output } => shield::shield(&agent, what, output.into(), io),
        Verb::Reload => control::reload(&agent, io),
        Verb::Logging { filter } => control::logging(&agent, filter, io),
        Verb::Cleanup(args) => control::cleanup(&instance, args, io),
        Verb::Demo(args) => {
            crate::demo::run(&args)?;
            Ok(Exit::Done)
        }
        Verb::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "mesh", &mut script);
            io.out.write_all(&script)?;
            Ok(Exit::Done)
        }
        Verb::Version(output) => version(output, io),
    }
}

fn run_agent(instance: Instance, args: RunArgs) -> anyhow::Result<Exit> {
    logging::init(&args.log, args.log_format.into())?;
    let config = std::path::absolute(&args.config)
        .with_context(|| format!("--config {}", args.config.display()))?;
    app::run(app::RunOptions {
        config,
        instance,
        takeover: args.takeover,
    })?;
    Ok(Exit::Done)
}

fn version(args: OutputArgs, io: &mut Io<'_>) -> anyhow::Result<Exit> {
    let version = env!("CARGO_PKG_VERSION");
    let abi = mesh_common::abi::ABI_VERSION;
    let document = document::one(
        "Version",
        &serde_json::json!({"version": version, "abi": abi}),
    )?;
    match args.output {
        Format::Table | Format::Wide => writeln!(io.out, "mesh {version} (kernel layout {abi})")?,
        Format::Json | Format::Yaml => output::list(io.out, args, &[], &document)?,
    }
    Ok(Exit::Done)
}

/// Who is not root and was not allowed something is told so.
fn privilege_hint(error: &anyhow::Error) -> Option<String> {
    let uid = nix::unistd::geteuid();
    let denied = error.chain().any(|cause| {
        let text = cause.to_string();
        ["ermission denied", "ot permitted", "capabilit"]
            .iter()
            .any(|word| text.contains(word))
    });
    (denied && !uid.is_root())
        .then(|| format!("note: you are user {uid}, not root: `sudo mesh ...`"))
}

/// Remembers that the reader of `out` went away.
struct Checked<'a> {
    inner: &'a mut dyn Write,
    closed: bool,
}

impl Checked<'_> {
    fn note<T>(&mut self, result: io::Result<T>) -> io::Result<T> {
        if let Err(error) = &result
            && error.kind() == io::ErrorKind::BrokenPipe
        {
            self.closed = true;
        }
        result
    }
}

impl Write for Checked<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let result = self.inner.write(bytes);
        self.note(result)
    }

    fn flush(&mut self) -> io::Result<()> {
        let result = self.inner.flush();
        self.note(result)
    }
}
