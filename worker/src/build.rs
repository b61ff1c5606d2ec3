//! Builds requests from the arguments of a call, and listener guards from results; the same for both clients.

use std::net::IpAddr;
use std::os::fd::OwnedFd;

use portreeve_protocol::address::{MoveAddress, RenewAddress};
use portreeve_protocol::bounded::TooLong;
use portreeve_protocol::message::{self, Features, Hello, ListenMany, ListenMode, ListenerId, Stop, Welcome};
use portreeve_protocol::{Endpoint, Fault, List, Text, Trailing};

use crate::error::Error;
use crate::listen_options::{Listen, ListenOptions};
use crate::listener::{ListenerClient, ListenerGuard, Registration};
use crate::request::ReceivedListener;

pub(crate) fn hello(client: &str) -> Hello {
    Hello { client: Text::truncated(client), features: Features::LEASE_TIMES | Features::LISTEN_MODE }
}

pub(crate) fn listen(
    endpoint: &Endpoint,
    options: &ListenOptions,
    welcome: Option<&Welcome>,
) -> Result<message::Listen, Error> {
    let mode = listen_mode(options.listen_mode(), welcome)?;
    Ok(message::Listen { endpoint: endpoint.clone(), options: options.to_wire()?, mode })
}

pub(crate) fn listen_many(
    listeners: &[Listen],
    all_or_nothing: bool,
    welcome: Option<&Welcome>,
) -> Result<ListenMany, Error> {
    let item = |one: &Listen| -> Result<_, Error> {
        Ok(message::ListenItem { endpoint: one.endpoint.clone(), options: one.options.to_wire()? })
    };
    let items = listeners.iter().map(item).collect::<Result<_, Error>>()?;
    let mode = listeners.first().map(|one| one.options.listen_mode()).unwrap_or_default();
    if listeners.iter().any(|one| one.options.listen_mode() != mode) {
        let message =
            "the listeners of one request differ in kept or intercepted; send one request for each kind";
        return Err(Error::Request(message.into()));
    }
    let mode = listen_mode(mode, welcome)?;
    Ok(ListenMany { all_or_nothing, listeners: List::new(items).map_err(too_many("listeners"))?, mode })
}

/// The mode of a request. A broker of an earlier release keeps every listener, and gets no mark for its log.
fn listen_mode(mode: ListenMode, welcome: Option<&Welcome>) -> Result<Trailing<ListenMode>, Error> {
    let understands = welcome.is_none_or(|welcome| welcome.features & Features::LISTEN_MODE != 0);
    match mode == ListenMode::default() || !understands {
        true if mode.kept => Ok(Trailing(None)),
        true => Err(Error::Request(
            "the broker is of an earlier release and keeps a copy of every listener; request it with kept(true)".into(),
        )),
        false => Ok(Trailing(Some(mode))),
    }
}

pub(crate) fn renew_until(addresses: &[IpAddr], until: u64, epoch: u64) -> Result<RenewAddress, Error> {
    let addresses = list("addresses", addresses)?;
    Ok(RenewAddress { addresses, lease: None, epoch, until: Trailing(Some(until)) })
}

/// Refuses a request with the end of a lease if the broker does not know it: it would end the session.
pub(crate) fn require_lease_times(welcome: Option<&Welcome>) -> Result<(), Error> {
    match welcome.is_none_or(|welcome| welcome.features & Features::LEASE_TIMES != 0) {
        true => Ok(()),
        false => Err(Error::Request(
            "the broker is of an earlier release and takes no end of a lease; give its length".into(),
        )),
    }
}

pub(crate) fn stop(listeners: &[ListenerId]) -> Result<Stop, Error> {
    Ok(Stop { listeners: list("listeners", listeners)? })
}

pub(crate) fn move_addresses(
    addresses: &[IpAddr],
    interface: &str,
    epoch: u64,
) -> Result<MoveAddress, Error> {
    let addresses = list("addresses", addresses)?;
    let interface = text("the interface name", interface)?;
    Ok(MoveAddress { addresses, interface, epoch, announce: true })
}

/// The items, if they fit in one request. `what` names them in the error.
pub(crate) fn list<T: Copy, const MAX: usize>(
    what: &'static str,
    items: &[T],
) -> Result<List<T, MAX>, Error> {
    List::new(items.to_vec()).map_err(too_many(what))
}

/// The text, if it fits in its field. `what` names it in the error.
pub(crate) fn text<const MAX: usize>(what: &'static str, text: &str) -> Result<Text<MAX>, Error> {
    Text::new(text).map_err(|TooLong { found, max }| {
        Error::Request(
            format!("{what} {text:?} is too long: it has {found} bytes, at most {max} are allowed").into(),
        )
    })
}

fn too_many(what: &'static str) -> impl FnOnce(TooLong) -> Error {
    move |TooLong { found, max }| {
        Error::Request(
            format!(
                "the request has {found} {what}, at most {max} are allowed. Split it into several requests"
            )
            .into(),
        )
    }
}

/// The registration of a listener, and its socket.
pub(crate) type RegisteredListener = (Registration, OwnedFd);

/// Registers the listeners among the results of a batch.
pub(crate) fn register(
    results: Vec<Result<ReceivedListener, Fault>>,
) -> Vec<Result<RegisteredListener, Fault>> {
    results.into_iter().map(|result| result.map(|(id, socket)| (Registration::new(id), socket))).collect()
}

type GuardOrFault<C> = Result<ListenerGuard<OwnedFd, C>, Fault>;

/// Pairs the results of a batch with the endpoints of the request.
pub(crate) fn guards<C: ListenerClient + Clone>(
    client: &C,
    requested: &[Listen],
    results: Vec<Result<RegisteredListener, Fault>>,
) -> Result<Vec<GuardOrFault<C>>, Error> {
    if results.len() != requested.len() {
        return Err(Error::protocol(format_args!(
            "the reply to a request for {} listeners has {} results",
            requested.len(),
            results.len()
        )));
    }
    let pairs = requested.iter().zip(results);
    pairs
        .map(|(requested, result)| {
            let requested = (requested.endpoint.clone(), requested.options.backlog);
            match result {
                Ok(registered) => ListenerGuard::new(client.clone(), requested, registered).map(Ok),
                Err(fault) => Ok(Err(fault)),
            }
        })
        .collect()
}
