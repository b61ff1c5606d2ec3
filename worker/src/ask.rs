//! Requests from what a caller has at hand, and results back; the same for both clients.

use std::os::fd::OwnedFd;

use portreeve_protocol::message::{Hello, Listen, ListenMany, ListenOptions, ListenerId, Stop};
use portreeve_protocol::{Endpoint, Fault, List, Text};

use crate::error::Error;
use crate::guard::{Guard, Number, Stopper};
use crate::request::Handed;

pub(crate) fn hello(client: &str) -> Hello {
    Hello { client: Text::truncated(client), features: 0 }
}

pub(crate) fn listen(endpoint: &Endpoint, options: &ListenOptions) -> Listen {
    Listen { endpoint: endpoint.clone(), options: options.clone() }
}

pub(crate) fn listen_many(listeners: &[Listen], all_or_nothing: bool) -> Result<ListenMany, Error> {
    Ok(ListenMany { all_or_nothing, listeners: List::new(listeners.to_vec()).map_err(too_long)? })
}

pub(crate) fn stop(listeners: &[ListenerId]) -> Result<Stop, Error> {
    Ok(Stop { listeners: List::new(listeners.to_vec()).map_err(too_long)? })
}

pub(crate) fn list<T: Copy, const MAX: usize>(items: &[T]) -> Result<List<T, MAX>, Error> {
    List::new(items.to_vec()).map_err(too_long)
}

pub(crate) fn text<const MAX: usize>(name: &str) -> Result<Text<MAX>, Error> {
    Text::new(name).map_err(too_long)
}

fn too_long(error: portreeve_protocol::bounded::TooLong) -> Error {
    Error::Request(error.to_string().into())
}

/// A listener's number and its socket, as a guard has them.
pub(crate) type Numbered = (Number, OwnedFd);

/// The results of many, numbered.
pub(crate) fn numbered(results: Vec<Result<Handed, Fault>>) -> Vec<Result<Numbered, Fault>> {
    results.into_iter().map(|result| result.map(|(id, socket)| (Number::new(id), socket))).collect()
}

type GuardOrFault<C> = Result<Guard<OwnedFd, C>, Fault>;

/// Pairs the results of many with the endpoints that were asked for.
pub(crate) fn guards<C: Stopper + Clone>(
    client: &C,
    asked: &[Listen],
    results: Vec<Result<Numbered, Fault>>,
) -> Result<Vec<GuardOrFault<C>>, Error> {
    if results.len() != asked.len() {
        return Err(Error::protocol(format_args!(
            "{} listeners were asked for and {} results came",
            asked.len(),
            results.len()
        )));
    }
    let paired = asked.iter().zip(results);
    Ok(paired
        .map(|(asked, result)| {
            result.map(|(number, socket)| Guard::new(client.clone(), asked.endpoint.clone(), number, socket))
        })
        .collect())
}
