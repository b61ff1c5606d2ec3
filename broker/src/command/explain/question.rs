//! `explain FILE listen ENDPOINT` and `explain FILE address IP`: whether a peer is allowed a request, and the rule.

use std::net::IpAddr;
use std::rc::Rc;

use portreeve_protocol::Endpoint;
use serde_json::{Value, json};

use super::peers;
use crate::config::Config;
use crate::confine::identity;
use crate::failure::{Exit, Failure};
use crate::policy::{Denied, Place, Policy, Requester, Rule};

/// A question about one request of one peer.
#[derive(Debug)]
pub struct Question {
    what: What,
    /// `worker`, or a user's name or number.
    peer: String,
}

#[derive(Debug)]
enum What {
    Listen(Endpoint),
    Address(IpAddr),
}

/// The answer with its rule or cause.
pub(super) struct Answer {
    question: String,
    peer: String,
    verdict: Result<(Rc<Rule>, Option<String>), Denied>,
    /// Why such a peer cannot exist, whatever the policy says.
    note: Option<&'static str>,
}

impl Question {
    /// Parses the question from the command line; the error names the remedy.
    pub fn parse(verb: &str, object: &str, peer: Option<String>) -> Result<Self, String> {
        let what = match verb {
            "listen" => object
                .parse()
                .map(What::Listen)
                .map_err(|error| format!("{object:?} is not a valid endpoint: {error}"))?,
            "address" => object
                .parse()
                .map(What::Address)
                .map_err(|_| format!("{object:?} is not an IP address, such as 192.0.2.1 or 2001:db8::1"))?,
            other => return Err(format!("explain takes listen or address, not {other:?}")),
        };
        Ok(Self { what, peer: peer.unwrap_or_else(|| "worker".to_owned()) })
    }

    pub(super) fn answer(&self, policy: &Policy, config: &Config) -> Result<Answer, Failure> {
        let requester = self.requester()?;
        let (question, operations) = match &self.what {
            What::Listen(endpoint) => (format!("listen {endpoint}"), ["listen", "listen-many"]),
            What::Address(address) => (format!("address {address}"), ["add-address", "move-address"]),
        };
        let mut permitted = operations.map(|operation| policy.operation(&requester, operation));
        let verdict = match (&self.what, &mut permitted) {
            (_, [Err(denied), Err(_)]) => Err(denied.clone()),
            (What::Listen(endpoint), _) => {
                policy.listen(&requester, endpoint).map(|permit| (permit.rule, None))
            }
            (What::Address(address), _) => policy.address(&requester, *address).map(|permit| {
                let onto = match permit.place {
                    Some(Place { interface, prefix }) => {
                        format!("on {interface} with prefix length {prefix}")
                    }
                    None => "on no interface: no topology scope contains it".to_owned(),
                };
                (permit.rule, Some(onto))
            }),
        };
        let note = match requester {
            Requester::Worker if config.worker.is_none() => {
                Some("but there is no worker: the configuration has no worker scope")
            }
            Requester::Local { .. } if config.broker.socket.is_none() => {
                Some("but no user can connect: the configuration has no control socket")
            }
            _ => None,
        };
        Ok(Answer { question, peer: requester.to_string(), verdict, note })
    }

    fn requester(&self) -> Result<Requester, Failure> {
        if self.peer == "worker" {
            return Ok(Requester::Worker);
        }
        let no_user = |cause: String, remedy: String| Failure::new(Exit::NoUser, "--as", cause, remedy);
        let uid = identity::user(&self.peer).map_err(|error| no_user(error.to_string(), error.remedy()))?;
        let gids = identity::groups_of(uid).map_err(|error| {
            no_user(
                format!("cannot look up the groups of {:?}: {error}", self.peer),
                "write the user's number instead".into(),
            )
        })?;
        Ok(Requester::Local { uid: uid.as_raw(), gids })
    }
}

impl Answer {
    pub(super) fn is_allowed(&self) -> bool {
        self.verdict.is_ok()
    }

    /// As JSON.
    pub(super) fn json(&self, file: &str) -> Value {
        let denied = self.verdict.as_ref().err();
        let granted = self.verdict.as_ref().ok();
        json!({
            "file": file,
            "question": self.question,
            "as": self.peer,
            "allowed": self.is_allowed(),
            "rule": granted.map(|(rule, _)| peers::rule(rule)),
            "onto": granted.and_then(|(_, onto)| onto.clone()),
            "message": denied.map(|denied| &denied.message),
            "nearest": denied.and_then(|denied| denied.nearest.as_ref()),
            "remedy": denied.map(|denied| &denied.remedy),
            "note": self.note,
        })
    }

    /// As text.
    pub(super) fn text(&self) -> String {
        let mut text = match &self.verdict {
            Ok((rule, onto)) => {
                let onto = onto.as_ref().map_or_else(String::new, |onto| format!(", {onto}"));
                format!("yes: {} may {}{onto}\n  by {rule}\n", self.peer, self.verb())
            }
            Err(denied) => format!("no: {}\n  {}\n", denied.message, denied.remedy),
        };
        if let Some(note) = self.note {
            text += &format!("  {note}\n");
        }
        text
    }

    fn verb(&self) -> String {
        match self.question.split_once(' ') {
            Some(("listen", endpoint)) => format!("listen on {endpoint}"),
            Some((_, address)) => format!("have the address {address}"),
            None => self.question.clone(),
        }
    }
}
