//! A refusal: what was asked, what came nearest, and what would have to be written.

use portreeve_protocol::{Fault, FaultCode};

use super::Requester;

/// Why something is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}; {remedy}")]
pub struct Denied {
    /// What is refused, as a sentence.
    pub message: String,
    /// The requester's own rule that came nearest, as `file:line: text`.
    pub nearest: Option<String>,
    /// What would have to be asked or written instead.
    pub remedy: String,
}

impl Denied {
    pub(super) fn operation(who: &Requester, name: &str) -> Self {
        let remedy = match who {
            Requester::Worker => "ask as user 0 over the control socket".to_owned(),
            Requester::Local { .. } => {
                format!("add {} to allow in a peer scope of that user or its groups", word(name))
            }
        };
        Denied { message: format!("{who} may not ask for {name:?}"), nearest: None, remedy }
    }

    /// The refusal as the peer receives it.
    pub fn fault(&self) -> Fault {
        Fault::new(FaultCode::Denied, &self.message)
            .subject(self.nearest.as_deref().unwrap_or_default())
            .remedy(&self.remedy)
    }
}

/// The word of `allow` that stands for an operation.
fn word(operation: &str) -> &str {
    let group = crate::config::GROUPS.iter().find(|(_, names)| names.contains(&operation));
    group.map_or(operation, |(word, _)| word)
}
