//! The operational log: `tracing` to standard error, its level changeable while it runs.

use std::sync::{Mutex, OnceLock, PoisonError};

use tracing_subscriber::{
    EnvFilter, Registry, layer::SubscriberExt as _, reload, util::SubscriberInitExt as _,
};

/// How lines look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogStyle {
    /// For people.
    #[default]
    Text,
    /// One JSON object for each line.
    Json,
}

/// Why a filter was not taken.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// It can't be read.
    #[error(
        "log filter {given:?}: {why}; expected a level (error, warn, info, debug, trace) or \
         targets with levels, as in `info,mesh_user::proxy=debug`"
    )]
    Filter {
        /// What was given.
        given: String,
        /// What is wrong with it.
        why: String,
    },
    /// The process has no log that can be changed.
    #[error("the log was not initialised by this process")]
    NotInitialised,
}

struct Handle {
    reload: reload::Handle<EnvFilter, Registry>,
    current: Mutex<String>,
}

static HANDLE: OnceLock<Handle> = OnceLock::new();

/// Starts logging to standard error; does nothing when the process logs already.
///
/// # Errors
/// The filter can't be read.
pub fn init(filter: &str, style: LogStyle) -> Result<(), LogError> {
    let (layer, reload) = reload::Layer::new(parse(filter)?);
    let registry = tracing_subscriber::registry().with(layer);
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    let result = match style {
        LogStyle::Text => {
            let ansi = std::io::IsTerminal::is_terminal(&std::io::stderr());
            registry.with(lines.with_ansi(ansi)).try_init()
        }
        LogStyle::Json => registry.with(lines.json().flatten_event(true)).try_init(),
    };
    if result.is_ok() {
        HANDLE.get_or_init(|| Handle {
            reload,
            current: Mutex::new(filter.to_owned()),
        });
    }
    Ok(())
}

/// Puts another filter in force.
///
/// # Errors
/// The filter can't be read (the old one stays), or [`init`] was not called.
pub fn set(filter: &str) -> Result<(), LogError> {
    let parsed = parse(filter)?;
    let handle = HANDLE.get().ok_or(LogError::NotInitialised)?;
    handle
        .reload
        .reload(parsed)
        .map_err(|_| LogError::NotInitialised)?;
    filter.clone_into(
        &mut handle
            .current
            .lock()
            .unwrap_or_else(PoisonError::into_inner),
    );
    Ok(())
}

/// The filter in force; none when [`init`] was not called.
pub fn current() -> Option<String> {
    let handle = HANDLE.get()?;
    Some(
        handle
            .current
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone(),
    )
}

fn parse(filter: &str) -> Result<EnvFilter, LogError> {
    let error = |why: String| LogError::Filter {
        given: filter.to_owned(),
        why,
    };
    if filter.trim().is_empty() {
        return Err(error("it is empty".into()));
    }
    // A bare word that is no level would be taken as a target with every level on.
    for directive in filter.split(',') {
        let word = directive.trim();
        let known = ["off", "error", "warn", "info", "debug", "trace"];
        if !word.contains(['=', '[', ':']) && !known.contains(&word.to_ascii_lowercase().as_str()) {
            return Err(error(format!("{word:?} is not a level")));
        }
    }
    EnvFilter::try_new(filter).map_err(|why| error(why.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filter_takes_levels_and_targets() {
        for good in [
            "info",
            "WARN",
            "off",
            "info,mesh_user::proxy=debug",
            "mesh_user=trace",
        ] {
            assert!(parse(good).is_ok(), "{good}");
        }
    }

    #[test]
    fn filter_that_is_no_level_is_refused_with_what_would_be_right() {
        for bad in ["", " ", "loud", "info,louder", "mesh_user=loud", "=,="] {
            let error = parse(bad).expect_err(bad).to_string();
            assert!(error.contains("error, warn, info, debug, trace"), "{error}");
        }
    }

    #[test]
    fn filter_can_be_changed_while_it_runs() {
        init("warn", LogStyle::Text).expect("the filter is right");
        set("debug").expect("the filter is right");
        assert_eq!(current().as_deref(), Some("debug"));
        set("loud").expect_err("no level");
        assert_eq!(current().as_deref(), Some("debug"), "the old one stays");
        set("off").expect("the filter is right");
    }
}
