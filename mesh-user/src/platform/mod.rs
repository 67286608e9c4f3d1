//! Platform adapters: they describe services and workloads, and nothing else.
//!
//! An adapter turns what its platform says into a whole [`Model`] and publishes it to a [`Feed`].
//! The contract, which the types enforce:
//! * a model is taken as a whole or not at all: one with an error (`config::check`) is refused with
//!   every reason, and the last one stays in force;
//! * a lost connection keeps the last model. There is no call that takes a model back, so that no
//!   disconnect can look like «there are no services»; [`Feed::lost`] says since when it is stale;
//! * a model that is equal to the last one is not announced again.
//!
//! A change is a model that shares with the last one what stayed ([`Feed::change`], or a copy of the
//! last model that the adapter keeps and edits): comparing, checking and compiling it cost what
//! differs. Readers see the latest model, so changes that come faster than one is put in force are
//! put in force together.

use std::{future::Future, sync::Arc, time::Instant};

use tokio::sync::watch;

use crate::{
    config::{self, Finding, Severity},
    model::Model,
};

pub mod file;
pub mod lists;

/// One platform.
pub trait Platform: Send + 'static {
    /// Its name in logs, metrics and `mesh status`.
    fn name(&self) -> &'static str;

    /// Publishes models until the feed is closed ([`Feed::closed`]). Reconnects by itself, with
    /// growing pauses; returns only when nobody listens.
    fn run(self, feed: Feed) -> impl Future<Output = ()> + Send;
}

/// What is known of a platform.
#[derive(Clone, Debug, Default)]
pub struct State {
    /// The last good model; none before the first.
    pub model: Option<Arc<Model>>,
    /// Counts models, from 1.
    pub generation: u64,
    /// Since when, and why, the model may be out of date; none: it is current.
    pub stale: Option<Stale>,
}

/// Why a model may be out of date.
#[derive(Clone, Debug)]
pub struct Stale {
    /// Since when: the first failure, not the latest.
    pub since: Instant,
    /// Why, for people: the latest reason.
    pub why: String,
}

/// Where an adapter publishes.
#[derive(Debug)]
pub struct Feed(watch::Sender<State>);

/// A model that can't be used, with every reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelError(pub Vec<Finding>);

impl std::fmt::Display for ModelError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let reasons: Vec<_> = self
            .0
            .iter()
            .map(|finding| format!("{}: {}", finding.path, finding.message))
            .collect();
        f.write_str(&reasons.join("; "))
    }
}

impl std::error::Error for ModelError {}

/// A feed and its reader.
pub fn feed() -> (Feed, watch::Receiver<State>) {
    let (sender, receiver) = watch::channel(State::default());
    (Feed(sender), receiver)
}

impl Feed {
    /// Puts a model in force, and ends a stale time.
    ///
    /// # Errors
    /// The model has an error; the last one stays in force and is marked stale.
    pub fn publish(&self, model: Model) -> Result<(), ModelError> {
        let last = self.0.borrow().model.clone();
        let errors: Vec<_> = match last {
            Some(last) if config::is_sound_change(&last, &model) => Vec::new(),
            _ => config::check(&model)
                .into_iter()
                .filter(|finding| finding.severity == Severity::Error)
                .collect(),
        };
        if !errors.is_empty() {
            let error = ModelError(errors);
            self.lost(&error.to_string());
            return Err(error);
        }
        self.0.send_if_modified(|state| {
            let fresh = state.stale.take().is_some();
            if state.model.as_deref() == Some(&model) {
                return fresh;
            }
            state.model = Some(Arc::new(model));
            state.generation += 1;
            true
        });
        Ok(())
    }

    /// Puts the last model in force with a change; one from nothing before the first. Costs what
    /// changes.
    ///
    /// # Errors
    /// As [`Feed::publish`]: then the change is not kept.
    pub fn change(&self, edit: impl FnOnce(&mut Model)) -> Result<(), ModelError> {
        let last = self.0.borrow().model.clone();
        let mut model = last.as_deref().cloned().unwrap_or_default();
        edit(&mut model);
        self.publish(model)
    }

    /// The platform can't be asked, or what it says can't be used: the last model stays.
    pub fn lost(&self, why: &str) {
        self.0.send_modify(|state| {
            let since = state
                .stale
                .as_ref()
                .map_or_else(Instant::now, |stale| stale.since);
            state.stale = Some(Stale {
                since,
                why: why.to_owned(),
            });
        });
    }

    /// Ends when nobody reads any more.
    pub async fn closed(&self) {
        self.0.closed().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn model(text: &str) -> Model {
        config::parse(
            "test",
            &format!("apiVersion: mesh/v1alpha1\nkind: MeshConfig\n{text}"),
        )
        .unwrap()
        .model
    }

    fn one_service() -> Model {
        model(
            "services: [{name: a, addresses: [10.0.0.1], ports: [{number: 80}], endpoints: [{address: 10.1.0.1}]}]",
        )
    }

    /// Without it: a disconnect turns the mesh off for the node (ACCEPTANCE S2 AC3).
    #[test]
    fn feed_lost_connection_keeps_the_model() {
        let (feed, reader) = feed();
        feed.publish(one_service()).unwrap();
        feed.lost("connection reset");
        let first = reader.borrow().stale.as_ref().map(|stale| stale.since);
        feed.lost("still no connection");
        {
            let state = reader.borrow();
            assert_eq!(state.model.as_deref(), Some(&one_service()));
            assert_eq!(state.generation, 1);
            let stale = state.stale.as_ref().unwrap();
            assert_eq!(Some(stale.since), first);
            assert_eq!(stale.why, "still no connection");
        }
        drop(feed);
        assert_eq!(reader.borrow().model.as_deref(), Some(&one_service()));
    }

    #[test]
    fn feed_invalid_model_is_refused_and_the_last_one_stays() {
        let (feed, reader) = feed();
        feed.publish(one_service()).unwrap();
        let mut broken = one_service();
        broken.services.push(one_service().services[0].clone());
        let error = feed.publish(broken).unwrap_err();
        assert!(error.to_string().contains("services[1].name"), "{error}");
        assert_eq!(reader.borrow().model.as_deref(), Some(&one_service()));
        assert!(reader.borrow().stale.is_some());
        feed.publish(one_service()).unwrap();
        assert!(reader.borrow().stale.is_none());
        assert_eq!(reader.borrow().generation, 1);
    }

    /// Without it: one bad change of a stream of them ends in the kernel.
    #[test]
    fn feed_takes_changes_one_by_one_and_refuses_bad_ones() {
        let (feed, reader) = feed();
        feed.publish(one_service()).unwrap();
        let weight =
            |weight| feed.change(move |model| model.services[0].endpoints[0].weight = weight);
        weight(7).unwrap();
        let now = || {
            let state = reader.borrow();
            let model = state.model.as_ref().unwrap();
            model.services[0].endpoints[0].weight
        };
        assert_eq!((now(), reader.borrow().generation), (7, 2));
        let error = weight(1_000_001).unwrap_err();
        assert!(error.to_string().contains("weight"), "{error}");
        assert_eq!((now(), reader.borrow().generation), (7, 2));
        let error = feed.change(|model| model.services.push(one_service().services[0].clone()));
        assert!(error.unwrap_err().to_string().contains("name"));
        feed.change(|model| model.remove_service(0)).unwrap();
        assert!(reader.borrow().model.as_ref().unwrap().services.is_empty());
    }

    #[test]
    fn feed_equal_model_is_announced_once() {
        let (feed, mut reader) = feed();
        feed.publish(one_service()).unwrap();
        assert!(reader.has_changed().unwrap());
        reader.mark_unchanged();
        feed.publish(one_service()).unwrap();
        assert!(!reader.has_changed().unwrap());
    }
}
