//! Problems of a configuration, and how they look.

use serde::Serialize;

/// How bad a problem is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Severity {
    /// The file is refused.
    Error,
    /// The file is taken; a part of it does probably not do what was meant.
    Warning,
}

/// One problem.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// The file, as it was named.
    pub file: String,
    /// Line, from 1; 0: the file as a whole.
    pub line: usize,
    /// Column in characters, from 1; 0: the line or file as a whole.
    pub column: usize,
    /// The field's path: `policies[2].rate-limit[0].rate`.
    pub field: String,
    /// What is wrong, with the value.
    pub message: String,
    /// What would be right.
    pub expected: Option<String>,
    /// How bad it is.
    pub severity: Severity,
}

/// All problems of one file, with what is needed to show their places.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// The problems, in the order of the file.
    pub problems: Vec<Problem>,
}

impl Report {
    /// For people: as rustc does it, with the line and a caret. `colour`: with ANSI colours.
    pub fn render(&self, _colour: bool) -> String {
        unimplemented!("config")
    }

    /// For machines: a list of problems.
    pub fn to_json(&self) -> serde_json::Value {
        unimplemented!("config")
    }
}

/// A configuration that can't be used, with every reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError(Report);

impl ConfigError {
    /// The problems; at least one is an error.
    pub fn report(&self) -> &Report {
        &self.0
    }

    /// See [`Report::render`].
    pub fn render(&self, colour: bool) -> String {
        self.0.render(colour)
    }

    /// See [`Report::to_json`].
    pub fn to_json(&self) -> serde_json::Value {
        self.0.to_json()
    }
}

impl From<Report> for ConfigError {
    fn from(report: Report) -> Self {
        Self(report)
    }
}

impl std::fmt::Display for ConfigError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.render(false))
    }
}

impl std::error::Error for ConfigError {}
