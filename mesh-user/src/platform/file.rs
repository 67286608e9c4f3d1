//! The file platform: one YAML file and those that it names, watched.
//!
//! The folder is watched, not the file, so that an editor's write-and-rename and the symlink swap
//! of a ConfigMap are seen; when the file is a symlink, the folder of its target too. A look every
//! two seconds catches what inotify can't show (network file systems, a swapped folder further up,
//! no inotify instances left). What counts is the content: a touched file changes nothing.

use std::{
    hash::Hasher,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use serde::Serialize;
use tokio::{
    sync::{mpsc, watch},
    time::{MissedTickBehavior, interval, sleep},
};

use super::{Feed, Platform};
use crate::config::{self, AgentConfig, Config, ConfigError, Examined};

mod folders;

use folders::Folders;

/// From the first event to the look at the file: editors write in several steps, and 50 ms leave
/// two thirds of the 150 ms within which a change must arrive.
const DEBOUNCE: Duration = Duration::from_millis(50);
/// Between looks without an event.
const POLL: Duration = Duration::from_secs(2);
/// Events that wait for a slow reader. More: the watch waits, and then sees the latest content.
const EVENTS_MAX: usize = 16;

/// What happened to the file.
#[expect(
    clippy::large_enum_variant,
    reason = "a few a day, moved once; a box would cost each user"
)]
#[derive(Clone, Debug)]
pub enum FileEvent {
    /// A new valid configuration, to be put in force as a whole. Settings that need a restart are
    /// those of the start.
    Loaded(Config),
    /// The file is not usable: what is in force stays.
    Rejected(ConfigError),
}

/// State of the file, for `mesh status`.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct FileStatus {
    /// The file.
    pub path: String,
    /// Counts the configurations that were loaded, from 1.
    pub generation: u64,
    /// When the configuration in force was loaded.
    pub last_success: Option<SystemTime>,
    /// Hash of its content (FNV-1a, 64 bits), 16 hexadecimal digits: equal on all nodes.
    pub content_hash: String,
    /// Why the file as it is now is not in force; none: it is.
    pub last_error: Option<FileFailure>,
    /// Warnings about what is in force, rendered; none: no warnings.
    pub warnings: Option<String>,
    /// Settings in the file that wait for a restart: `agent.workers`, `agent.unknown-netns`,
    /// `agent.metrics`, `attach`.
    pub needs_restart: Vec<String>,
}

/// Why a file was rejected.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct FileFailure {
    /// When.
    pub at: SystemTime,
    /// For people.
    pub text: String,
    /// For machines: a list of problems.
    pub problems: serde_json::Value,
}

/// A configuration file and its state.
#[derive(Debug)]
pub struct FileSource {
    path: PathBuf,
    /// Settings that hold until the next start.
    agent: AgentConfig,
    seen: Option<Content>,
    /// Files and folders that it named when it was last examined.
    entries: Vec<PathBuf>,
    status: watch::Sender<FileStatus>,
}

/// What was in the file: its hash, or why it could not be read.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Content {
    Hash(u64),
    Unreadable(String),
}

/// One look at the file.
struct Look {
    content: Content,
    /// None: the content is what was seen last.
    examined: Option<Examined>,
}

impl FileSource {
    /// Loads the file for the first time.
    ///
    /// # Errors
    /// Every problem of the file at once.
    pub fn open(path: &Path) -> Result<(Self, Config), ConfigError> {
        let look = look(path, None, &[]);
        let examined = look.examined.unwrap_or_else(|| config::examine(path));
        let entries = examined.beside.entries.clone();
        let warnings = warnings(&examined);
        let config = examined.into_result()?;
        let status = FileStatus {
            path: path.display().to_string(),
            generation: 1,
            last_success: Some(SystemTime::now()),
            content_hash: look.content.shown(),
            last_error: None,
            warnings,
            needs_restart: Vec::new(),
        };
        let source = Self {
            path: path.to_owned(),
            agent: config.agent.clone(),
            seen: Some(look.content),
            entries,
            status: watch::Sender::new(status),
        };
        Ok((source, config))
    }

    /// The state, live.
    pub fn status(&self) -> watch::Receiver<FileStatus> {
        self.status.subscribe()
    }

    /// Watches the file from a task on the current runtime until the receiver is dropped.
    ///
    /// The state is brought up to date before the event is sent.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn watch(self) -> mpsc::Receiver<FileEvent> {
        let (sender, receiver) = mpsc::channel(EVENTS_MAX);
        tokio::spawn(self.follow(sender));
        receiver
    }

    async fn follow(mut self, events: mpsc::Sender<FileEvent>) {
        let mut folders = Folders::new(&self.path, &self.entries);
        let mut poll = interval(POLL);
        poll.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut fingerprint = None;
        loop {
            // What changes from here on is seen by the next round.
            let told = folders.take();
            let current = self.fingerprint();
            if told || current.is_none() || current != fingerprint {
                fingerprint = current;
                let Some(event) = self.look().await else {
                    return;
                };
                if let Some(event) = event
                    && events.send(event).await.is_err()
                {
                    return;
                }
            }
            folders.also(&self.entries);
            folders.refresh();
            tokio::select! {
                () = folders.changed() => sleep(DEBOUNCE).await,
                _ = poll.tick() => {}
                () = events.closed() => return,
            }
        }
    }

    /// None: there is no such file, or it can't be asked.
    fn fingerprint(&self) -> Option<Vec<Option<Fingerprint>>> {
        let own = Fingerprint::of(&self.path)?;
        let beside = config::files::watched(&self.entries);
        let beside = beside.iter().map(|path| Fingerprint::of(path));
        Some(std::iter::once(Some(own)).chain(beside).collect())
    }

    /// Looks at the file. Outer none: the runtime is going down.
    async fn look(&mut self) -> Option<Option<FileEvent>> {
        let (path, seen, entries) = (self.path.clone(), self.seen.clone(), self.entries.clone());
        let look = tokio::task::spawn_blocking(move || look(&path, seen.as_ref(), &entries))
            .await
            .ok()?;
        let hash = look.content.shown();
        self.seen = Some(look.content);
        let Some(examined) = look.examined else {
            return Some(None);
        };
        // A file that says nothing of them (it is no YAML, say) leaves what is watched.
        if examined.config.is_some() || !examined.beside.entries.is_empty() {
            self.entries.clone_from(&examined.beside.entries);
        }
        let warnings = warnings(&examined);
        Some(Some(match examined.into_result() {
            Ok(config) => self.loaded(config, hash, warnings),
            Err(error) => self.rejected(error),
        }))
    }

    fn loaded(&self, mut config: Config, hash: String, warnings: Option<String>) -> FileEvent {
        let needs_restart = keep_until_restart(&self.agent, &mut config.agent);
        if let Some(text) = &warnings {
            tracing::warn!(file = %self.path.display(), "configuration has warnings\n{text}");
        }
        if !needs_restart.is_empty() {
            tracing::warn!(
                file = %self.path.display(),
                settings = needs_restart.join(", "),
                "changed settings need a restart; the rest of the file is in force"
            );
        }
        self.status.send_modify(|status| {
            status.generation += 1;
            status.last_success = Some(SystemTime::now());
            status.content_hash = hash;
            status.last_error = None;
            status.warnings = warnings;
            status.needs_restart = needs_restart;
        });
        FileEvent::Loaded(config)
    }

    fn rejected(&self, error: ConfigError) -> FileEvent {
        let text = error.render(false);
        tracing::warn!(
            file = %self.path.display(),
            "configuration rejected, the last good one stays in force\n{text}"
        );
        self.status.send_modify(|status| {
            status.last_error = Some(FileFailure {
                at: SystemTime::now(),
                text,
                problems: error.to_json(),
            });
        });
        FileEvent::Rejected(error)
    }
}

impl Platform for FileSource {
    fn name(&self) -> &'static str {
        "file"
    }

    async fn run(mut self, feed: Feed) {
        // What `open` loaded is not at hand any more: say it again.
        self.seen = None;
        let mut events = self.watch();
        loop {
            let event = tokio::select! {
                event = events.recv() => event,
                () = feed.closed() => return,
            };
            match event {
                None => return,
                Some(FileEvent::Rejected(error)) => feed.lost(&error.to_string()),
                // The configuration is checked, so the model is: an error would be a bug here, and
                // the feed keeps it.
                Some(FileEvent::Loaded(config)) => {
                    if let Err(error) = feed.publish(config.model) {
                        tracing::error!(%error, "a checked model was refused");
                    }
                }
            }
        }
    }
}

impl Content {
    /// Of a file's text and, if it names others, the hash of those.
    fn new(text: &str, entries: &[PathBuf], beside: u64) -> Self {
        let mut hasher = config::Digest::default();
        hasher.write(text.as_bytes());
        if !entries.is_empty() {
            hasher.write(&beside.to_be_bytes());
        }
        Self::Hash(hasher.finish())
    }

    fn shown(&self) -> String {
        match self {
            Self::Hash(hash) => format!("{hash:016x}"),
            Self::Unreadable(_) => String::new(),
        }
    }
}

fn warnings(examined: &Examined) -> Option<String> {
    let worth_saying = examined.config.is_some() && !examined.report.is_empty();
    worth_saying.then(|| examined.report.render(false))
}

/// Reads the file and those that it names, and examines them when they hold something else than
/// `seen`. `entries`: what it named last.
fn look(path: &Path, seen: Option<&Content>, entries: &[PathBuf]) -> Look {
    match config::read_file(path) {
        Ok(text) => {
            let mut beside = config::Digest::default();
            config::files::digest(&config::files::read(entries), &mut beside);
            let content = Content::new(&text, entries, beside.finish());
            if seen == Some(&content) {
                return Look {
                    content,
                    examined: None,
                };
            }
            let examined = config::examine_text(&path.display().to_string(), &text);
            // Of what was examined: files may have changed in between.
            let content = Content::new(&text, &examined.beside.entries, examined.beside.digest);
            Look {
                content,
                examined: Some(examined),
            }
        }
        Err(report) => {
            let content = Content::Unreadable(report.to_json().to_string());
            let examined = (seen != Some(&content)).then(|| Examined::refused(report));
            Look { content, examined }
        }
    }
}

/// Puts back what can't change without a restart, and names it.
pub fn keep_until_restart(running: &AgentConfig, new: &mut AgentConfig) -> Vec<String> {
    let mut changed = Vec::new();
    if new.attach != running.attach {
        new.attach.clone_from(&running.attach);
        changed.push("attach".to_owned());
    }
    if new.workers != running.workers {
        new.workers = running.workers;
        changed.push("agent.workers".to_owned());
    }
    if new.unknown_netns != running.unknown_netns {
        new.unknown_netns = running.unknown_netns;
        changed.push("agent.unknown-netns".to_owned());
    }
    if new.kubelet_cgroup != running.kubelet_cgroup {
        new.kubelet_cgroup.clone_from(&running.kubelet_cgroup);
        changed.push("agent.kubelet-cgroup".to_owned());
    }
    if new.marks != running.marks {
        new.marks = running.marks;
        changed.push("agent.marks".to_owned());
    }
    if new.metrics != running.metrics {
        new.metrics = running.metrics;
        changed.push("agent.metrics".to_owned());
    }
    changed
}

/// What tells that a file was written or exchanged, without reading it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Fingerprint {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Fingerprint {
    /// None: there is no such file, or it can't be asked.
    pub(super) fn of(path: &Path) -> Option<Self> {
        let meta = std::fs::metadata(path).ok()?;
        Some(Self {
            device: meta.dev(),
            inode: meta.ino(),
            size: meta.size(),
            modified: (meta.mtime(), meta.mtime_nsec()),
            changed: (meta.ctime(), meta.ctime_nsec()),
        })
    }
}

#[cfg(test)]
mod tests;
