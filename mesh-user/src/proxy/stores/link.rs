//! A connection that is made when it is needed, once for all who need it.

use std::{cell::RefCell, future::Future, rc::Rc, time::Duration};

use tokio::{sync::Notify, time::timeout};

/// Whatever went wrong, for the log.
pub(super) type Error = Box<dyn std::error::Error + Send + Sync>;

/// To connect, TLS and greeting included. Longer than a request waits: who comes later finds it.
const CONNECT: Duration = Duration::from_secs(2);

/// The connection.
#[derive(Debug)]
pub(super) struct Link<C> {
    state: RefCell<State<C>>,
    changed: Notify,
}

#[derive(Debug)]
enum State<C> {
    /// None, and why the last try failed.
    None(Option<String>),
    Connecting,
    Ready(C),
}

impl<C: Clone + 'static> Link<C> {
    pub(super) fn new() -> Rc<Self> {
        Rc::new(Self {
            state: RefCell::new(State::None(None)),
            changed: Notify::new(),
        })
    }

    /// The connection; made with `connect` when there is none.
    pub(super) async fn get<F>(self: &Rc<Self>, connect: impl FnOnce() -> F) -> Result<C, Error>
    where
        F: Future<Output = Result<C, Error>> + 'static,
    {
        let changed = self.changed.notified();
        let mut changed = std::pin::pin!(changed);
        changed.as_mut().enable();
        let idle = match &*self.state.borrow() {
            State::Ready(connection) => return Ok(connection.clone()),
            State::Connecting => false,
            State::None(_) => true,
        };
        if idle {
            *self.state.borrow_mut() = State::Connecting;
            let (link, connecting) = (Rc::clone(self), connect());
            tokio::task::spawn_local(async move {
                let made = timeout(CONNECT, connecting).await;
                let made = made.unwrap_or_else(|_| Err("not connected in time".into()));
                *link.state.borrow_mut() = match made {
                    Ok(connection) => State::Ready(connection),
                    Err(error) => State::None(Some(error.to_string())),
                };
                link.changed.notify_waiters();
            });
        }
        changed.await;
        match &*self.state.borrow() {
            State::Ready(connection) => Ok(connection.clone()),
            State::None(Some(error)) => Err(error.clone().into()),
            State::None(None) | State::Connecting => Err("not connected".into()),
        }
    }

    /// Lets go of the connection: the next who needs one makes it anew.
    pub(super) fn reset(&self) {
        let mut state = self.state.borrow_mut();
        if matches!(*state, State::Ready(_)) {
            *state = State::None(None);
        }
    }
}
