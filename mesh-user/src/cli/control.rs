//! Verbs that change something: each says what it did, and each can be refused by name.

use std::{
    fs::{self, File},
    io::Write as _,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, bail, ensure};
use http::Method;
use serde_json::Value;

use super::{
    Exit, Io,
    args::{ApplyArgs, CleanupArgs, Switch},
    client::{Agent, ClientError},
    config, output,
};
use crate::{
    admin::document,
    config as file_config,
    kernel::{Instance, cleanup as kernel_cleanup},
};

/// Pauses or resumes capture.
pub(super) fn redirect(agent: &Agent, state: Switch, io: &mut Io<'_>) -> anyhow::Result<Exit> {
    let (body, said) = match state {
        Switch::On => ("on", "capture is on: new connections go through the mesh"),
        Switch::Off => ("off", "capture is off: new connections pass untouched"),
    };
    agent.ask(Method::PUT, "/redirect", body)?;
    io.say(said);
    Ok(Exit::Done)
}

/// Has the agent read its file again.
pub(super) fn reload(agent: &Agent, io: &mut Io<'_>) -> anyhow::Result<Exit> {
    let answer = reloaded(agent, "the old configuration stays in force")?;
    io.say(&format!(
        "in force: generation {}",
        output::cell(&answer["generation"])
    ));
    Ok(Exit::Done)
}

/// Has the agent read its file; what it says of the file stands below `refused`, as it is many
/// lines long.
fn reloaded(agent: &Agent, refused: &str) -> anyhow::Result<Value> {
    agent
        .ask(Method::POST, "/reload", "")
        .map_err(|error| match error {
            ClientError::Refused { message, .. } => anyhow::anyhow!("{refused}\n{message}"),
            other => other.into(),
        })
}

/// Shows or changes the log filter.
pub(super) fn logging(
    agent: &Agent,
    filter: Option<String>,
    io: &mut Io<'_>,
) -> anyhow::Result<Exit> {
    let answer = match filter {
        Some(filter) => agent.ask(Method::PUT, "/logging", filter)?,
        None => agent.get("/logging")?,
    };
    writeln!(
        io.out,
        "{}",
        output::harmless(&output::cell(&answer["filter"]))
    )?;
    Ok(Exit::Done)
}

/// Removes what an instance left in the kernel.
pub(super) fn cleanup(
    instance: &Instance,
    args: CleanupArgs,
    io: &mut Io<'_>,
) -> anyhow::Result<Exit> {
    let report = kernel_cleanup::cleanup(instance, args.dry_run, args.force);
    let document = document::one("CleanupReport", &report)?;
    if !output::machine(io.out, args.output.output, &document)? {
        let word = if args.dry_run {
            "would remove"
        } else {
            "removed"
        };
        for thing in &report.removed {
            writeln!(io.out, "{word} {}", output::harmless(thing))?;
        }
        if report.removed.is_empty() && report.failed.is_empty() {
            io.say(&format!(
                "instance {:?} left nothing in the kernel",
                instance.name()
            ));
        }
    }
    for failure in &report.failed {
        io.say(&format!("failed: {}", output::harmless(failure)));
    }
    if report.failed.is_empty() {
        return Ok(Exit::Done);
    }
    if !nix::unistd::geteuid().is_root() {
        io.say("note: you are not root, and removing BPF programs needs root (`sudo mesh ...`)");
    }
    Ok(Exit::Failed)
}

/// Checks a file, replaces the one that the agent watches, waits until it is in force.
pub(super) fn apply(agent: &Agent, args: &ApplyArgs, io: &mut Io<'_>) -> anyhow::Result<Exit> {
    let (name, text) = read(&args.file)?;
    // What is checked and what is written are the same bytes, whoever edits the file meanwhile.
    // What it names lies where it will be read.
    let watched = watched_file(agent)?;
    let folder = watched.parent().unwrap_or(Path::new("/"));
    let examined = file_config::examine_text_in(folder, &name, &text);
    if examined.config.is_none() {
        return Err(config::invalid(&name, &examined));
    }
    if !examined.report.problems.is_empty() {
        let colour = io.colour_err;
        io.say(&examined.report.render(colour));
    }
    replace(&watched, text.as_bytes())
        .with_context(|| format!("can't replace {}", watched.display()))?;
    let refused = format!(
        "{} is in place, but the agent does not take it",
        watched.display()
    );
    let answer = reloaded(agent, &refused)?;
    io.say(&format!(
        "{name} is in force as {}, generation {}",
        watched.display(),
        output::cell(&answer["generation"]),
    ));
    Ok(Exit::Done)
}

fn read(path: &Path) -> anyhow::Result<(String, String)> {
    if path == Path::new("-") {
        return Ok(("<stdin>".to_owned(), config::read_stdin()?));
    }
    let name = path.display().to_string();
    let text = fs::read_to_string(path).with_context(|| format!("can't read {name}"))?;
    Ok((name, text))
}

/// The file behind the path that the agent watches.
fn watched_file(agent: &Agent) -> anyhow::Result<PathBuf> {
    let status = agent.get("/status")?;
    let Some(path) = status["config"]["path"].as_str() else {
        bail!("the agent's status names no configuration file");
    };
    // Through a link to the file itself: renaming over a link would leave its target behind.
    fs::canonicalize(path).with_context(|| {
        format!(
            "the agent watches {path}, which can't be found from here (another mount namespace?)"
        )
    })
}

/// Puts `bytes` in the place of `path` in one step: a reader sees all of the old or all of the
/// new, also after a crash. Mode and owner stay.
fn replace(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    let old = fs::metadata(path)?;
    ensure!(old.is_file(), "it is no regular file");
    let folder = path.parent().context("it has no folder")?;
    let mut staged = Staged::new(folder, path)?;
    staged
        .file
        .set_permissions(fs::Permissions::from_mode(old.mode() & 0o7777))?;
    std::os::unix::fs::fchown(&staged.file, Some(old.uid()), Some(old.gid()))?;
    staged.file.write_all(bytes)?;
    staged.file.sync_all()?;
    fs::rename(&staged.path, path)?;
    staged.kept = true;
    File::open(folder)?.sync_all()?;
    Ok(())
}

/// A file beside the one that it will replace; removed unless it did.
struct Staged {
    path: PathBuf,
    file: File,
    kept: bool,
}

impl Staged {
    fn new(folder: &Path, target: &Path) -> anyhow::Result<Self> {
        let name = target
            .file_name()
            .context("it has no name")?
            .to_string_lossy();
        let path = folder.join(format!(".{name}.{}.mesh-apply", std::process::id()));
        // `create_new`: never through a link that somebody put there.
        let file = File::options().write(true).create_new(true).open(&path)?;
        Ok(Self {
            path,
            file,
            kept: false,
        })
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        if !self.kept {
            let _ = fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(name: &str) -> PathBuf {
        let path = std::env::temp_dir().join(format!("mesh-ops-{name}-{}", std::process::id()));
        fs::create_dir_all(&path).expect("a temporary folder");
        path
    }

    #[test]
    fn replace_keeps_the_mode_and_leaves_nothing_beside() {
        let folder = folder("replace");
        let path = folder.join("mesh.yaml");
        fs::write(&path, "old").expect("write");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).expect("mode");
        replace(&path, b"new").expect("it can be replaced");
        assert_eq!(fs::read(&path).expect("read"), b"new");
        assert_eq!(fs::metadata(&path).expect("stat").mode() & 0o777, 0o640);
        assert_eq!(fs::read_dir(&folder).expect("list").count(), 1);
        fs::remove_dir_all(folder).expect("clean up");
    }

    #[test]
    fn replace_of_a_folder_is_refused_and_leaves_nothing_beside() {
        let folder = folder("replace-dir");
        let path = folder.join("mesh.yaml");
        fs::create_dir(&path).expect("mkdir");
        let error = replace(&path, b"new").expect_err("a folder is no file");
        assert!(error.to_string().contains("no regular file"), "{error}");
        assert_eq!(fs::read_dir(&folder).expect("list").count(), 1);
        fs::remove_dir_all(folder).expect("clean up");
    }
}
