//! Answers the calls of the program: asks the broker for a listener, and lets the call succeed, fail, or continue in the kernel.

use std::collections::{HashMap, HashSet};
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use portreeve::{Client, Endpoint, Error, EventCode, Fault, FaultCode, ListenOptions, Listener, ListenerId};
use portreeve_intercept::errno::{NO_REPLY, errno};
use portreeve_intercept::{Bind, Call, Notifications, Request, Rules, Verdict};
use rustix::net::sockopt::socket_acceptconn;
use tokio::time::timeout;

use crate::output::note;

/// The number of a listener that no broker has.
const NO_BROKERS: ListenerId = ListenerId(0);

/// How many different notes are printed. A program that binds everything would print without end.
const MAX_NOTED: usize = 256;

/// The session with the broker, and what it has opened for the program.
pub struct Answers {
    client: Client,
    rules: Mutex<Rules>,
    /// Whether the broker, and this process, keep a copy of each socket.
    kept: bool,
    /// The listeners that the program has bound.
    listeners: Mutex<HashMap<Endpoint, Listener>>,
    /// How long a call waits for the broker.
    patience: Duration,
    /// The notes, which are not repeated.
    noted: Mutex<HashSet<String>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Answers {
    pub fn new(client: Client, rules: Rules, kept: bool, patience: Duration) -> Self {
        let (rules, listeners, noted) = (Mutex::new(rules), Mutex::default(), Mutex::default());
        Self { client, rules, kept, listeners, patience, noted }
    }

    /// Answers one call.
    pub async fn answer(&self, notifications: &Notifications, call: Call) {
        let rules = lock(&self.rules).clone();
        let mut verdict = notifications.examine(call, &rules);
        // The policy may have changed since it was read.
        if matches!(verdict, Verdict::NotPermitted(_)) && self.read_rules().await {
            let rules = lock(&self.rules).clone();
            verdict = notifications.examine(call, &rules);
        }
        match verdict {
            Verdict::Listen(bind) => return self.listen(notifications, call, &bind).await,
            Verdict::Done => return notifications.succeed(call),
            Verdict::Pass => {}
            Verdict::Unreadable(why) => self.note(why.to_string()),
            Verdict::NotPermitted(bind) => {
                let Request { endpoint, dual_stack, .. } = &bind.request;
                let also = if *dual_stack { " and for IPv4, because the socket is dual-stack" } else { "" };
                self.note(format!(
                    "policy does not permit this user to listen on {endpoint}{also}: the kernel judges that bind. See portreeve run \
                     --dry-run"
                ));
            }
        }
        notifications.pass(call);
    }

    async fn listen(&self, notifications: &Notifications, call: Call, bind: &Bind) {
        let endpoint = &bind.request.endpoint;
        let reply = timeout(self.patience, self.client.listen(endpoint, &self.options(&bind.request))).await;
        let answered = |answered: io::Result<bool>| {
            let failed = |error: io::Error| (error.raw_os_error().unwrap_or(0), error.to_string());
            answered.map(drop).map_err(failed)
        };
        let outcome = match reply {
            Ok(Ok(listener)) => {
                // A former socket, of a broker that has crashed, may share the port: it must get no client any more.
                self.release(endpoint);
                let outcome = answered(notifications.answer(bind, listener.as_fd()));
                self.keep(listener);
                outcome
            }
            Ok(Err(Error::Fault(fault))) if fault.code == FaultCode::Denied => {
                self.note(format!("{fault}. The kernel judges that bind"));
                self.read_rules().await;
                return notifications.pass(call);
            }
            Ok(Err(Error::Fault(fault))) => match self.former(endpoint, &fault) {
                Some(socket) => answered(notifications.answer(bind, socket.as_fd())),
                None => Err((errno(&fault), fault.to_string())),
            },
            Ok(Err(error)) => Err((NO_REPLY, error.to_string())),
            Err(_) => {
                Err((NO_REPLY, format!("no reply from the broker within {} s", self.patience.as_secs())))
            }
        };
        if let Err((errno, why)) = outcome {
            self.note(format!("bind to {endpoint} fails: {why}"));
            notifications.refuse(call, errno);
        }
    }

    /// The listener that the program has had since before the broker crashed, if it is what occupies the endpoint: the next broker,
    /// which has just permitted it, can neither adopt it nor open another one.
    fn former(&self, endpoint: &Endpoint, fault: &Fault) -> Option<OwnedFd> {
        let is_occupied = fault.code == FaultCode::InUse && fault.errno != 0;
        let listeners = lock(&self.listeners);
        let former = listeners.get(endpoint).filter(|former| is_occupied && former.id() == NO_BROKERS)?;
        // A TCP socket that the broker has stopped does not listen any more.
        let is_open = matches!(endpoint, Endpoint::Udp(_)) || socket_acceptconn(former) == Ok(true);
        former.as_fd().try_clone_to_owned().ok().filter(|_| is_open)
    }

    /// Reads the policy again after each reload, if this user may subscribe to events. It never returns.
    pub async fn follow_policy(&self) {
        let may_subscribe = self
            .client
            .welcome()
            .is_some_and(|welcome| welcome.operations.iter().any(|name| name.as_str() == "subscribe"));
        if may_subscribe && let Ok(mut events) = self.client.events(false).await {
            while let Ok(event) = events.next().await {
                // A gap stands for lost events, of which one may be a reload, or for the next broker.
                if matches!(event.code, EventCode::Reloaded | EventCode::Gap) {
                    self.read_rules().await;
                }
            }
        }
        std::future::pending().await
    }

    /// Reads the policy again, and returns whether it changed.
    async fn read_rules(&self) -> bool {
        let Ok(Ok((new, _))) = timeout(self.patience, super::rules(&self.client)).await else { return false };
        let mut rules = lock(&self.rules);
        let changed = *rules != new;
        *rules = new;
        changed
    }

    /// Keeps the guard of a listener. A repeated bind has returned the same listener, whose first guard remains.
    fn keep(&self, listener: Listener) {
        if !self.kept {
            drop(listener.into_socket());
            return;
        }
        let former = lock(&self.listeners).insert(listener.endpoint().clone(), listener);
        drop(former.map(Listener::into_socket));
    }

    /// Closes this process's copy of a listener.
    fn release(&self, endpoint: &Endpoint) {
        let former = lock(&self.listeners).remove(endpoint);
        drop(former.map(Listener::into_socket));
    }

    /// The options of a request.
    fn options(&self, request: &Request) -> ListenOptions {
        let mut options = ListenOptions::new()
            .reuse_port(request.reuse_port)
            .dual_stack(request.dual_stack)
            .free_bind(request.free_bind)
            .kept(self.kept)
            .intercepted(true);
        options.device.clone_from(&request.device);
        options
    }

    /// Prints a note once.
    fn note(&self, text: String) {
        let mut noted = lock(&self.noted);
        if noted.len() < MAX_NOTED && !noted.contains(&text) {
            note(&text);
            noted.insert(text);
        }
    }
}

/// Leaves the listeners to the end of the session: those of a worker are retained for the next one.
impl Drop for Answers {
    fn drop(&mut self) {
        lock(&self.listeners).drain().for_each(|(_, listener)| drop(listener.into_socket()));
    }
}
