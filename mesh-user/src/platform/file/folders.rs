//! The folders to watch for one file.

use std::{
    collections::BTreeMap,
    ffi::{OsStr, OsString},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use notify::{Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher, event::AccessKind};
use tokio::sync::Notify;

/// Watches on the folder of a file, and of its target when it is a symlink.
pub(super) struct Folders {
    path: PathBuf,
    /// Files and folders that it names.
    beside: Vec<PathBuf>,
    /// None: no inotify here; the regular look at the file does it alone.
    watcher: Option<RecommendedWatcher>,
    /// Folders with the device and inode that are watched: a folder that was exchanged is another.
    watched: BTreeMap<PathBuf, (u64, u64)>,
    signal: Arc<Signal>,
}

struct Signal {
    wake: Notify,
    dirty: AtomicBool,
    /// The file's own name, and that of its target; the same of those beside.
    names: Mutex<Vec<OsString>>,
    /// Folders of which every file concerns us.
    whole: Mutex<Vec<PathBuf>>,
}

impl Folders {
    pub(super) fn new(path: &Path, beside: &[PathBuf]) -> Self {
        let signal = Arc::new(Signal {
            wake: Notify::new(),
            dirty: AtomicBool::new(false),
            names: Mutex::new(Vec::new()),
            whole: Mutex::new(Vec::new()),
        });
        let handler = Arc::clone(&signal);
        let watcher = notify::recommended_watcher(move |event: notify::Result<Event>| {
            handler.on_event(&event);
        })
        .inspect_err(|error| {
            tracing::warn!(%error, "no inotify: configuration changes are seen within 2 s");
        })
        .ok();
        let mut folders = Self {
            path: path.to_owned(),
            beside: beside.to_vec(),
            watcher,
            watched: BTreeMap::new(),
            signal,
        };
        folders.refresh();
        folders
    }

    /// Sets the files and folders that are watched beside; in force with the next
    /// [`refresh`](Self::refresh).
    pub(super) fn also(&mut self, beside: &[PathBuf]) {
        if self.beside != beside {
            self.beside = beside.to_vec();
        }
    }

    /// Brings the watches in line with where the file is now.
    pub(super) fn refresh(&mut self) {
        let Some(watcher) = &mut self.watcher else {
            return;
        };
        let (whole, files): (Vec<&Path>, Vec<&Path>) = std::iter::once(&self.path)
            .chain(&self.beside)
            .map(PathBuf::as_path)
            .partition(|path| **path != self.path && path.is_dir());
        let targets: Vec<PathBuf> = files
            .iter()
            .filter_map(|file| std::fs::canonicalize(file).ok())
            .collect();
        let files: Vec<&Path> = files
            .into_iter()
            .chain(targets.iter().map(PathBuf::as_path))
            .collect();
        self.signal
            .call(files.iter().filter_map(|file| file.file_name()), &whole);
        let mut wanted = wanted(files.iter());
        wanted.extend(whole.iter().filter_map(|folder| identity(folder)));
        if wanted == self.watched {
            return;
        }
        for folder in self
            .watched
            .keys()
            .filter(|folder| wanted.get(*folder) != self.watched.get(*folder))
        {
            // Gone folders are forgotten by the kernel already.
            let _ = watcher.unwatch(folder);
        }
        let before = std::mem::take(&mut self.watched);
        for (folder, identity) in wanted {
            if before.get(&folder) == Some(&identity)
                || watcher.watch(&folder, RecursiveMode::NonRecursive).is_ok()
            {
                self.watched.insert(folder, identity);
            }
        }
        // Whatever happened before the new watch stood would be missed.
        self.signal.raise();
    }

    /// Ends when something happened since the last end.
    pub(super) async fn changed(&self) {
        self.signal.wake.notified().await;
    }

    /// Whether something happened since the last call.
    pub(super) fn take(&self) -> bool {
        self.signal.dirty.swap(false, Ordering::AcqRel)
    }
}

impl Signal {
    /// Sets the names that concern the file.
    fn call<'n>(&self, names: impl Iterator<Item = &'n OsStr>, whole: &[&Path]) {
        let mut held = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        held.clear();
        held.extend(names.map(ToOwned::to_owned));
        let mut held = self.whole.lock().unwrap_or_else(PoisonError::into_inner);
        held.clear();
        held.extend(whole.iter().map(|folder| (*folder).to_owned()));
    }

    fn raise(&self) {
        self.dirty.store(true, Ordering::Release);
        self.wake.notify_one();
    }

    fn on_event(&self, event: &notify::Result<Event>) {
        if event.as_ref().map_or(true, |event| self.concerns(event)) {
            self.raise();
        }
    }

    /// Whether an event can be about the file. Opening and reading it, which we do ourselves, is
    /// none; nor is what happens to its neighbours, except to those that a ConfigMap swaps: their
    /// names begin with `..`.
    fn concerns(&self, event: &Event) -> bool {
        let read = matches!(
            event.kind,
            EventKind::Access(AccessKind::Open(_) | AccessKind::Read)
                | EventKind::Access(AccessKind::Close(notify::event::AccessMode::Read))
        );
        if read {
            return false;
        }
        let names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        let whole = self.whole.lock().unwrap_or_else(PoisonError::into_inner);
        let inside = |path: &PathBuf| {
            let parent = path.parent();
            whole
                .iter()
                .any(|folder| parent == Some(folder) || path == folder)
        };
        event.need_rescan()
            || event.paths.iter().any(inside)
            || event.paths.is_empty()
            || event
                .paths
                .iter()
                .filter_map(|path| path.file_name())
                .any(|name| {
                    names.iter().any(|ours| ours == name)
                        || name.as_encoded_bytes().starts_with(b"..")
                })
    }
}

/// The folders of the files, with what they are.
fn wanted<'p>(files: impl Iterator<Item = &'p &'p Path>) -> BTreeMap<PathBuf, (u64, u64)> {
    let folder = |path: &&Path| match path.parent() {
        Some(parent) if parent.as_os_str().is_empty() => Some(PathBuf::from(".")),
        Some(parent) => Some(parent.to_owned()),
        None => None,
    };
    files
        .filter_map(folder)
        .filter_map(|folder| identity(&folder))
        .collect()
}

fn identity(folder: &Path) -> Option<(PathBuf, (u64, u64))> {
    let meta = std::fs::metadata(folder).ok()?;
    Some((folder.to_owned(), (meta.dev(), meta.ino())))
}
