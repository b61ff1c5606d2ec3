//! The SMTP dialogue as a state machine: a command line in, a reply out. RFC 5321, with SIZE (RFC 1870),
//! 8BITMIME (RFC 6152) and PIPELINING (RFC 2920).
//!
//! It uses no socket and no file; its caller carries out each [`Action`].

use std::fmt::Write as _;

use crate::address;

/// Maximum number of recipients of one message. RFC 5321 section 4.5.3.1.8.
pub const MAX_RECIPIENTS: usize = 100;

/// What to do after a command. Replies are complete, with their line ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Send the reply and continue.
    Reply(String),
    /// Send the reply and receive the text of a message.
    Data(String),
    /// Send the reply and close the connection.
    Quit(String),
}

/// Sender and recipients of a message.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Envelope {
    /// The reverse path; empty for `<>`.
    pub from: String,
    /// The recipients.
    pub to: Vec<String>,
}

/// One client's dialogue.
#[derive(Debug)]
pub struct Dialogue {
    name: String,
    max_size: u64,
    client: Option<String>,
    extended: bool,
    envelope: Option<Envelope>,
}

fn reply(code: u16, text: &str) -> Action {
    Action::Reply(line(code, text))
}

/// A reply of one line.
pub fn line(code: u16, text: &str) -> String {
    format!("{code} {text}\r\n")
}

impl Dialogue {
    pub fn new(name: &str, max_size: u64) -> Self {
        Self { name: name.to_owned(), max_size, client: None, extended: false, envelope: None }
    }

    /// The first line of the server.
    pub fn greeting(&self) -> String {
        line(220, &format!("{} ESMTP", self.name))
    }

    /// The name that the client gave itself.
    pub fn client(&self) -> &str {
        self.client.as_deref().unwrap_or_default()
    }

    /// `ESMTP` after EHLO, `SMTP` after HELO. RFC 3848.
    pub fn protocol(&self) -> &'static str {
        if self.extended { "ESMTP" } else { "SMTP" }
    }

    /// Whether a mail transaction is open.
    pub fn in_transaction(&self) -> bool {
        self.envelope.is_some()
    }

    /// Ends the transaction and returns its envelope.
    pub fn finish(&mut self) -> Envelope {
        self.envelope.take().unwrap_or_default()
    }

    /// Executes one command line, without its line end.
    pub fn command(&mut self, line: &[u8]) -> Action {
        let Some(line) = std::str::from_utf8(line).ok().filter(|line| line.is_ascii()) else {
            return reply(500, "only ASCII is allowed");
        };
        let line = line.trim_end_matches(' ');
        let (verb, argument) = line.split_once(' ').unwrap_or((line, ""));
        match verb.to_ascii_uppercase().as_str() {
            "EHLO" => self.hello(argument, true),
            "HELO" => self.hello(argument, false),
            "MAIL" => self.mail(argument),
            "RCPT" => self.recipient(argument),
            "DATA" => self.data(argument),
            "RSET" if argument.is_empty() => {
                self.envelope = None;
                reply(250, "ok")
            }
            "QUIT" if argument.is_empty() => Action::Quit(self::line(221, &format!("{} bye", self.name))),
            "RSET" | "QUIT" => reply(501, "this command takes no argument"),
            "NOOP" => reply(250, "ok"),
            "HELP" => reply(214, "EHLO HELO MAIL RCPT DATA RSET NOOP VRFY HELP QUIT"),
            "VRFY" if argument.is_empty() => reply(501, "VRFY takes a mailbox"),
            "VRFY" => reply(252, "cannot verify, but will attempt delivery"),
            "EXPN" => reply(502, "EXPN is not implemented"),
            _ => reply(500, "unknown command"),
        }
    }

    fn hello(&mut self, argument: &str, extended: bool) -> Action {
        if !address::is_domain(argument) {
            return reply(501, "the argument must be a domain or [address]");
        }
        self.client = Some(argument.to_owned());
        self.extended = extended;
        self.envelope = None;
        if !extended {
            return reply(250, &self.name);
        }
        let mut text = format!("250-{} greets {argument}\r\n", self.name);
        let _ = write!(text, "250-PIPELINING\r\n250-8BITMIME\r\n250-SIZE {}\r\n250 HELP\r\n", self.max_size);
        Action::Reply(text)
    }

    fn mail(&mut self, argument: &str) -> Action {
        if self.client.is_none() {
            return reply(503, "send EHLO or HELO first");
        }
        if self.envelope.is_some() {
            return reply(503, "a transaction is open; RSET ends it");
        }
        let Some(path) = after(argument, "FROM:") else {
            return reply(501, "syntax: MAIL FROM:<address>");
        };
        let Ok((from, parameters)) = address::path(path) else {
            return reply(501, "invalid reverse path");
        };
        if !from.is_empty() && !address::is_mailbox(from) {
            return reply(501, "invalid reverse path");
        }
        for parameter in parameters {
            if let Some(refusal) = self.refuse_parameter(parameter) {
                return refusal;
            }
        }
        self.envelope = Some(Envelope { from: from.to_owned(), to: Vec::new() });
        reply(250, "ok")
    }

    fn refuse_parameter(&self, parameter: &str) -> Option<Action> {
        let (keyword, value) = parameter.split_once('=').unwrap_or((parameter, ""));
        if !self.extended {
            return Some(reply(555, "parameters require EHLO"));
        }
        match keyword.to_ascii_uppercase().as_str() {
            "SIZE" if value.is_empty() || !value.bytes().all(|b| b.is_ascii_digit()) || value.len() > 20 => {
                Some(reply(501, "SIZE must be a number of bytes"))
            }
            "SIZE" if value.parse().map_or(true, |size: u64| size > self.max_size) => {
                Some(reply(552, "the message is too long"))
            }
            "SIZE" => None,
            "BODY" if ["7BIT", "8BITMIME"].contains(&value.to_ascii_uppercase().as_str()) => None,
            "BODY" => Some(reply(501, "BODY must be 7BIT or 8BITMIME")),
            _ => Some(reply(555, "unknown parameter")),
        }
    }

    fn recipient(&mut self, argument: &str) -> Action {
        let Some(envelope) = &mut self.envelope else {
            return reply(503, "send MAIL first");
        };
        let Some(path) = after(argument, "TO:") else {
            return reply(501, "syntax: RCPT TO:<address>");
        };
        let Ok((to, mut parameters)) = address::path(path) else {
            return reply(501, "invalid forward path");
        };
        if !address::is_mailbox(to) && !to.eq_ignore_ascii_case("postmaster") {
            return reply(501, "invalid forward path");
        }
        if parameters.next().is_some() {
            return reply(555, "unknown parameter");
        }
        if envelope.to.len() >= MAX_RECIPIENTS {
            return reply(452, "too many recipients");
        }
        envelope.to.push(to.to_owned());
        reply(250, "ok")
    }

    fn data(&self, argument: &str) -> Action {
        match &self.envelope {
            _ if !argument.is_empty() => reply(501, "DATA takes no argument"),
            None => reply(503, "send MAIL and RCPT first"),
            Some(envelope) if envelope.to.is_empty() => reply(554, "there is no valid recipient"),
            Some(_) => Action::Data(line(354, "end with a dot on a line by itself")),
        }
    }
}

/// The text after a keyword, which may be in any case.
fn after<'a>(text: &'a str, keyword: &str) -> Option<&'a str> {
    let (head, rest) = text.split_at_checked(keyword.len())?;
    head.eq_ignore_ascii_case(keyword).then_some(rest)
}

#[cfg(test)]
#[path = "dialogue_tests.rs"]
mod tests;
