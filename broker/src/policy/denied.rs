//! A denial: what was requested, the nearest rule, and what to request or to write instead.

use portreeve_protocol::{Fault, FaultCode};

use super::{FOR_EVERY_PEER, FOR_ROOT_ONLY, Requester, is_operation};

/// Why a request is denied.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}; {remedy}")]
pub struct Denied {
    /// What is denied, as a sentence.
    pub message: String,
    /// The requester's own rule that came nearest, as `file:line: text`.
    pub nearest: Option<String>,
    /// What to request or to write instead.
    pub remedy: String,
}

impl Denied {
    pub(super) fn operation(requester: &Requester, name: &str) -> Self {
        if !is_operation(name) {
            let remedy = "use one of the operations that the reply to hello lists".to_owned();
            return Denied { message: format!("there is no operation {name:?}"), nearest: None, remedy };
        }
        if let Requester::Local { uid, .. } = requester
            && FOR_EVERY_PEER.contains(&name)
        {
            let remedy = format!("add a peer scope for user {uid} or one of its groups to the broker scope");
            return Denied { message: format!("no peer scope covers {requester}"), nearest: None, remedy };
        }
        let remedy = match requester {
            Requester::Worker => "send the request as user 0 over the control socket".to_owned(),
            Requester::Local { .. } if FOR_ROOT_ONLY.contains(&name) => "run this as user 0".to_owned(),
            Requester::Local { uid, .. } => {
                let word = allow_word(name);
                format!("add {word} to allow in a peer scope of user {uid} or one of its groups")
            }
        };
        Denied {
            message: format!("{requester} is not allowed to use the operation {name:?}"),
            nearest: None,
            remedy,
        }
    }

    /// The denial as the peer receives it.
    pub fn fault(&self) -> Fault {
        Fault::new(FaultCode::Denied, &self.message)
            .subject(self.nearest.as_deref().unwrap_or_default())
            .remedy(&self.remedy)
    }
}

/// Describes the permit to extend. The worker and user 0 are allowed every permit; other users need a `peer` scope too.
pub(super) fn permit_of(requester: &Requester) -> String {
    match requester {
        Requester::Worker | Requester::Local { uid: 0, .. } => "a permit".to_owned(),
        Requester::Local { uid, .. } => {
            format!("a permit that a peer scope of user {uid} or one of its groups names")
        }
    }
}

/// The word of `allow` that stands for an operation.
fn allow_word(operation: &str) -> &str {
    let group = crate::config::GROUPS.iter().find(|(_, names)| names.contains(&operation));
    group.map_or(operation, |(word, _)| word)
}
