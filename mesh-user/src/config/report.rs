//! Problems of a configuration. How they look is in [`super::render`].

use std::{fmt, sync::Arc};

use serde::Serialize;

use super::{render, source::Source};

/// Most problems that are kept of one file: a person fixes a few at a time, and a file of garbage
/// must not fill the memory.
pub const PROBLEMS_MAX: usize = 200;

/// How bad a problem is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Severity {
    /// The file is refused.
    Error,
    /// The file is taken; a part of it does probably not do what was meant.
    Warning,
    /// Worth knowing (`mesh analyze`).
    Note,
}

/// Makes [`Code`]: each variant with its name and its meaning, once.
macro_rules! codes {
    ($($variant:ident $name:literal $meaning:literal;)*) => {
        /// The name of a problem: what scripts compare, and what the documentation lists.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
        pub enum Code {
            $(#[doc = $meaning] #[serde(rename = $name)] $variant,)*
        }

        impl Code {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$variant),*];

            /// Its name: `unknown-field`.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name),* }
            }

            /// What it means.
            pub const fn meaning(self) -> &'static str {
                match self { $(Self::$variant => $meaning),* }
            }
        }
    };
}

codes! {
    FileMissing "file-missing" "There is no such file.";
    FilePermission "file-permission" "The file may not be read.";
    FileIsDirectory "file-is-directory" "The path is a directory.";
    FileNotRegular "file-not-regular" "The path is a device, pipe or socket.";
    FileTooLarge "file-too-large" "The file is larger than 16 MiB.";
    FileNotUtf8 "file-not-utf8" "The bytes are not UTF-8.";
    FileUnreadable "file-unreadable" "Reading failed otherwise.";
    FileEmpty "file-empty" "There is nothing in the file but comments.";
    YamlSyntax "yaml-syntax" "Not YAML.";
    YamlTab "yaml-tab" "A tab where YAML wants spaces.";
    YamlTooDeep "yaml-too-deep" "Lists and mappings are nested deeper than 32.";
    YamlTooLarge "yaml-too-large" "More than 2,000,000 values, aliases expanded.";
    YamlAliasLoop "yaml-alias-loop" "An alias inside the value that it names.";
    YamlUnknownAlias "yaml-unknown-alias" "An alias that names nothing.";
    YamlTag "yaml-tag" "A tag such as `!!str`.";
    YamlSecondDocument "yaml-second-document" "A second document of the mesh's own.";
    YamlKey "yaml-key" "A key that is a list or mapping, or a merge key.";
    DuplicateKey "duplicate-key" "A key that is there twice.";
    UnknownField "unknown-field" "A field that does not exist.";
    MissingField "missing-field" "A field that must be there.";
    WrongType "wrong-type" "A value of another type.";
    BadValue "bad-value" "A text that is not what the field takes.";
    OutOfRange "out-of-range" "A number, duration or size out of range.";
    BadCount "bad-count" "Too many or too few items.";
    Conflict "conflict" "Fields that exclude each other.";
    BadRegex "bad-regex" "A regular expression that does not compile.";
    BadAddress "bad-address" "An address that can't be used there.";
    UnknownService "unknown-service" "A service that is not in the file.";
    UnknownVersion "unknown-version" "A version that the service does not have.";
    UnknownPort "unknown-port" "A port that the service does not have.";
    Duplicate "duplicate" "A name, address or scope that is taken.";
    NestedAttach "nested-attach" "An attach point inside another.";
    LimitConflict "limit-conflict" "Limits that contradict each other.";
    TlsConflict "tls-conflict" "TLS settings that contradict each other, the protocol, or conditions on HTTP.";
    NeedsProxy "needs-proxy" "Something that the kernel can't honour, on a port with `path: kernel`.";
    EmptyVersion "empty-version" "A version or tag set that no endpoint has (warning).";
    UnreachableRule "unreachable-rule" "A rule that never decides (warning).";
    NoEffect "no-effect" "Something without effect (warning).";
    NeedsCapture "needs-capture" "Inbound conditions with an action that never reaches the proxy.";
    EmptySource "empty-source" "An inbound `source` that asks nothing.";
    BadKey "bad-key" "A rate-limit key that an inbound rule can't have.";
    ShadowedRule "shadowed-rule" "A rule whose every match an earlier rule takes (analysis).";
    ShadowedMatch "shadowed-match" "An alternative that an earlier one takes (analysis).";
    UnusedVersion "unused-version" "A version that no rule sends to (analysis).";
    UnusedPolicy "unused-policy" "A policy of a version that no rule sends to (analysis).";
    WeightsSum "weights-sum" "Weights that don't add up to 100 (analysis).";
    NoCatchAll "no-catch-all" "A port whose rules leave something over (analysis).";
    NoEndpoints "no-endpoints" "A service without endpoints (analysis).";
    NoReadyEndpoints "no-ready-endpoints" "A service of which no endpoint is ready (analysis).";
    AnalysisBounded "analysis-bounded" "Too many similar rules to compare all (analysis).";
    UnknownKind "unknown-kind" "A Kubernetes object of a kind or version that is not taken.";
    RouteNotAccepted "route-not-accepted" "A route that its parent does not take (warning).";
    RouteConflict "route-conflict" "Routes of different kinds on one port (warning).";
    UnresolvedRef "unresolved-ref" "A reference of a route that leads nowhere (warning).";
    BadAction "bad-action" "An action, sticky split or session that can't be carried out.";
    NeedsRestart "needs-restart" "A setting that is taken at the next start only (warning).";
}

/// One problem.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// Its name.
    pub code: Code,
    /// The file, as it was named.
    pub file: String,
    /// Line, from 1; 0: the file as a whole.
    pub line: usize,
    /// Column in characters, from 1; 0: the file as a whole.
    pub column: usize,
    /// Width in characters of what is marked, on its first line.
    #[serde(skip)]
    pub width: usize,
    /// The field's path: `policies[2].rate-limit[0].rate`; empty: the file as a whole.
    pub field: String,
    /// What is wrong, with the value.
    pub message: String,
    /// What would be right.
    pub expected: Option<String>,
    /// How bad it is.
    pub severity: Severity,
}

/// All problems of one file, with the text that is needed to show their places.
#[derive(Clone, Debug)]
pub struct Report {
    /// The problems, in the order of the file.
    pub problems: Vec<Problem>,
    /// How many more there were than [`PROBLEMS_MAX`].
    pub more: usize,
    /// The file, then those that it names.
    pub(super) sources: Vec<Arc<Source>>,
}

impl PartialEq for Report {
    fn eq(&self, other: &Self) -> bool {
        self.problems == other.problems && self.more == other.more
    }
}

impl Report {
    /// Whether the file is refused.
    pub fn has_errors(&self) -> bool {
        self.problems
            .iter()
            .any(|problem| problem.severity == Severity::Error)
    }

    /// Whether there is nothing to say.
    pub fn is_empty(&self) -> bool {
        self.problems.is_empty()
    }

    /// For people: as rustc does it, with the line and a caret. `colour`: with ANSI colours, for
    /// terminals.
    pub fn render(&self, colour: bool) -> String {
        render::report(self, colour)
    }

    /// For machines: a list of `{code, file, line, column, field, message, expected, severity}`.
    pub fn to_json(&self) -> serde_json::Value {
        // Strings and numbers only: can't fail; an empty list would hide the problems, so say so.
        serde_json::to_value(&self.problems)
            .unwrap_or_else(|error| serde_json::Value::String(error.to_string()))
    }
}

/// A configuration that can't be used, with every reason.
#[derive(Clone, Debug, PartialEq)]
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

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.render(false))
    }
}

impl std::error::Error for ConfigError {}
