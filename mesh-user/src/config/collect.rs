//! Collects problems, and turns them into a report in the order of the file.

use std::sync::Arc;

use super::{
    path::FieldPath,
    report::{Code, PROBLEMS_MAX, Problem, Report, Severity},
    source::{Source, Span},
};

/// A problem with its place as bytes and its path as steps.
#[derive(Debug)]
struct Found {
    span: Span,
    path: FieldPath,
    code: Code,
    severity: Severity,
    message: String,
    expected: Option<String>,
}

/// Problems of one file so far.
#[derive(Debug)]
pub(crate) struct Collector {
    found: Vec<Found>,
    more: usize,
    errors: usize,
}

impl Collector {
    pub(crate) const fn new() -> Self {
        Self {
            found: Vec::new(),
            more: 0,
            errors: 0,
        }
    }

    /// Adds an error.
    pub(crate) fn error(
        &mut self,
        code: Code,
        span: Span,
        path: FieldPath,
        message: String,
        expected: Option<String>,
    ) {
        self.add(Severity::Error, code, span, path, message, expected);
    }

    /// Adds a problem.
    pub(crate) fn add(
        &mut self,
        severity: Severity,
        code: Code,
        span: Span,
        path: FieldPath,
        message: String,
        expected: Option<String>,
    ) {
        self.errors += usize::from(severity == Severity::Error);
        // Errors come before warnings, so a flood of warnings can't hide an error.
        if self.found.len() >= PROBLEMS_MAX {
            self.more += 1;
            return;
        }
        self.found.push(Found {
            span,
            path,
            code,
            severity,
            message,
            expected,
        });
    }

    /// Whether the file is refused.
    pub(crate) const fn has_errors(&self) -> bool {
        self.errors > 0
    }

    /// Whether an error lies at, inside or around a path: then what else is found there follows
    /// from it and need not be said.
    pub(crate) fn spoils(&self, path: &FieldPath) -> bool {
        self.found.iter().any(|found| {
            found.severity == Severity::Error
                && (found.path.is_within(path) || path.is_within(&found.path))
        })
    }

    /// Takes over what another collected of the same file.
    pub(crate) fn absorb(&mut self, other: Self) {
        self.errors += other.errors;
        self.more += other.more;
        for found in other.found {
            if self.found.len() < PROBLEMS_MAX {
                self.found.push(found);
            } else {
                self.more += 1;
            }
        }
    }

    /// The report.
    pub(crate) fn finish(self, source: Arc<Source>) -> Report {
        Self::finish_all([(self, source)])
    }

    /// The report over several files, in their order.
    pub(crate) fn finish_all(files: impl IntoIterator<Item = (Self, Arc<Source>)>) -> Report {
        let mut report = Report {
            problems: Vec::new(),
            more: 0,
            sources: Vec::new(),
        };
        for (mut of_file, source) in files {
            of_file
                .found
                .sort_by_key(|found| (found.span.start, found.severity));
            report.more += of_file.more;
            for found in of_file.found {
                if report.problems.len() < PROBLEMS_MAX {
                    report.problems.push(problem(found, &source));
                } else {
                    report.more += 1;
                }
            }
            report.sources.push(source);
        }
        report
    }
}

fn problem(found: Found, source: &Source) -> Problem {
    let whole = source.text.is_empty() || matches!(found.code, Code::FileEmpty);
    let (line, column) = if whole {
        (0, 0)
    } else {
        source.position(found.span.start)
    };
    Problem {
        code: found.code,
        file: source.name.clone(),
        line,
        column,
        width: source.width(found.span),
        field: found.path.to_string(),
        message: found.message,
        expected: found.expected,
        severity: found.severity,
    }
}
