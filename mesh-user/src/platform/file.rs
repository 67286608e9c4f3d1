//! The file platform: one YAML file, watched.

use std::{path::Path, time::SystemTime};

use serde::Serialize;
use tokio::sync::{mpsc, watch};

use crate::config::{Config, ConfigError};

/// What happened to the file.
#[derive(Clone, Debug)]
pub enum FileEvent {
    /// A new valid configuration, to be put in force as a whole.
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
    /// Hash of its content, 16 hexadecimal digits.
    pub content_hash: String,
    /// Why the file as it is now is not in force; none: it is.
    pub last_error: Option<FileFailure>,
    /// Warnings about what is in force, rendered.
    pub warnings: Option<String>,
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
pub struct FileSource {}

impl FileSource {
    /// Loads the file for the first time.
    ///
    /// # Errors
    /// Every problem of the file at once.
    pub fn open(_path: &Path) -> Result<(Self, Config), ConfigError> {
        unimplemented!("config")
    }

    /// The state, live.
    pub fn status(&self) -> watch::Receiver<FileStatus> {
        unimplemented!("config")
    }

    /// Watches the file from a task on the current runtime until the receiver is dropped.
    pub fn watch(self) -> mpsc::Receiver<FileEvent> {
        unimplemented!("config")
    }
}
