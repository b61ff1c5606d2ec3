//! The answers to requests.

use super::order::{self, Pending};
use super::{Request, Response};
use crate::core::check::Inspection;
use crate::core::report::{self, View};
use crate::core::txn::Txn;

/// What follows from a request.
#[derive(Clone, Debug)]
pub enum Answer {
    /// The response.
    Now(Response),
    /// The engine must perform a transaction; [`Pending::replied`] makes the response of its reply.
    Txn(Txn, Pending),
    /// The engine and the files must be looked at; [`Inspection::judge`] makes [`Response::Checks`] of that.
    Check(Box<Inspection>),
}

/// Answers a request of `by`, at that time since 1970.
pub fn answer(view: View<'_>, unix_ms: u64, by: &str, request: Request) -> Answer {
    let state = view.node.state();
    let response = match request {
        Request::Status {} => Response::Status(Box::new(report::status(view))),
        Request::Explain { address } => match report::explain(view, address) {
            Some(explanation) => Response::Explanation(Box::new(explanation)),
            None => Response::Error(order::no_such_address(address)),
        },
        Request::Plan { without: Some(node) } if state.node(&node).is_none() => {
            Response::Error(order::no_such_node(state, &node))
        }
        Request::Plan { without } => Response::Plan(report::plan(view, without.as_ref())),
        Request::Metrics {} => Response::Metrics(Box::new(report::metrics(view))),
        Request::Check {} => return Answer::Check(Box::new(Inspection::of(view))),
        Request::Events { .. } => Response::Events(view.journal.events().cloned().collect()),
        order => return order::answer(view, unix_ms, by, order),
    };
    Answer::Now(response)
}
