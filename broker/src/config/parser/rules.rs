//! The listeners of Momentum 2: `*_Listener = ( ENDPOINT < attribute > [ NETWORK = ( rules ) ] )`.
//!
//! Unlike all other brackets, these rules nest to any depth. They are parsed so that the rest of the file is understood,
//! and kept as one value of which only the first word is used.

use super::{MAX_DEPTH, Parser, is_placeholder};
use crate::config::lexer::Kind;
use crate::config::source::Span;
use crate::config::tree::{Scalar, Value};

/// An open bracket.
struct Open {
    span: Span,
    kind: Kind,
    /// The last token in it.
    last: Last,
}

/// The last token in a bracket; it decides what can follow.
#[derive(Clone, Copy, PartialEq)]
enum Last {
    /// The bracket itself, or a complete entry.
    Nothing,
    /// A word; in `[ ]` a key.
    Word(Span),
    Comma,
    Equals(Span),
}

impl Parser<'_, '_> {
    /// Parses the whole value, from its `(` on.
    pub(super) fn rules(&mut self) -> Value {
        let first = self.take();
        let mut span = self.span(first);
        let mut open = vec![Open { span, kind: first.kind, last: Last::Nothing }];
        let mut endpoints = Vec::new();
        while let Some(depth) = Some(open.len())
            && let Some(inner) = open.last_mut()
        {
            let token = self.next;
            let token_span = self.span(token);
            if depth == 1
                && let Some(endpoint) = self.ipv6_endpoint()
            {
                inner.last = Last::Word(endpoint.span);
                endpoints.push(endpoint);
                continue;
            }
            match (token.kind, inner.last) {
                (Kind::CloseParen | Kind::CloseBracket, last)
                    if is_matching_close(inner.kind, token.kind) =>
                {
                    self.take();
                    span = span.to(token_span);
                    if let Some((at, message)) = incomplete(last, inner.kind) {
                        self.problems.error(
                            at,
                            message,
                            "write KEY = VALUE, or KEY and its rules in ( ) or [ ]",
                        );
                    }
                    open.pop();
                    if let Some(outer) = open.last_mut() {
                        outer.last = Last::Nothing;
                    }
                }
                (Kind::OpenParen | Kind::OpenBracket, Last::Word(_) | Last::Equals(_))
                    if depth < MAX_DEPTH =>
                {
                    self.take();
                    open.push(Open { span: token_span, kind: token.kind, last: Last::Nothing });
                }
                (Kind::OpenParen | Kind::OpenBracket, Last::Word(_) | Last::Equals(_)) => {
                    let help = format!("nest at most {MAX_DEPTH} brackets");
                    self.problems.error(token_span, "brackets are nested too deeply", help);
                    self.skip_to_end();
                    return Value::Rules { span, endpoints };
                }
                (Kind::Word, _) if is_placeholder(self.at(token_span)) => {
                    self.take();
                    self.elision(token);
                    self.skip_to_end();
                    return Value::Rules { span, endpoints };
                }
                (Kind::Word | Kind::Quoted { .. }, last) => {
                    inner.last = match (last, inner.kind) {
                        (Last::Equals(_), _) => Last::Nothing,
                        (Last::Word(_), Kind::OpenBracket) => break,
                        _ => Last::Word(token_span),
                    };
                    let attribute = self.at(token_span).starts_with('<');
                    let word = self.scalar();
                    if attribute && !self.attributes(word) {
                        self.skip_to_end();
                        return Value::Rules { span, endpoints };
                    }
                    // A comma is followed by a number.
                    if depth == 1 && !attribute && last != Last::Comma {
                        endpoints.push(word);
                    }
                }
                (Kind::Comma, Last::Word(_)) if inner.kind == Kind::OpenParen => {
                    self.take();
                    inner.last = Last::Comma;
                }
                (Kind::Equals, Last::Word(_)) if inner.kind == Kind::OpenBracket => {
                    self.take();
                    inner.last = Last::Equals(token_span);
                }
                (Kind::Bad(bad), _) => {
                    self.take();
                    self.bad(token, bad);
                }
                _ => break,
            }
        }
        if let Some(inner) = open.last() {
            self.misplaced(inner);
        }
        Value::Rules { span, endpoints }
    }

    /// `[::1]:25`: an endpoint, not rules in brackets.
    fn ipv6_endpoint(&mut self) -> Option<Scalar> {
        let (mut ahead, open) = (self.lexer, self.next);
        let (address, close, port) = (ahead.next(), ahead.next(), ahead.next());
        let kinds = (open.kind, address.kind, close.kind, port.kind);
        let is_endpoint = kinds == (Kind::OpenBracket, Kind::Word, Kind::CloseBracket, Kind::Word)
            && open.end == address.start
            && close.end == port.start
            && self.at(self.span(port)).starts_with(':');
        if !is_endpoint {
            return None;
        }
        (self.lexer, self.next) = (ahead, port);
        self.take();
        Some(Scalar { span: self.span(open).to(self.span(port)), quoted: false, escaped: false })
    }

    /// Skips `name=value …>` after its first word; returns whether the closing `>` was found.
    pub(super) fn attributes(&mut self, first: Scalar) -> bool {
        let mut last = first;
        while last.quoted || !self.at(last.span).ends_with('>') {
            match self.next.kind {
                Kind::Word | Kind::Quoted { .. } => last = self.scalar(),
                Kind::Equals => {
                    self.take();
                }
                _ => {
                    let message = "the attribute that begins here is not closed";
                    self.problems.error(first.span, message, "write <NAME=\"VALUE\">");
                    return false;
                }
            }
        }
        true
    }

    /// Reports an unexpected token, or what a bracket lacks.
    fn misplaced(&mut self, inner: &Open) {
        let token = self.next;
        let token_span = self.span(token);
        let text = self.at(token_span);
        let (what, close) = if inner.kind == Kind::OpenParen { ("list", ")") } else { ("set of rules", "]") };
        match (token.kind, inner.last) {
            (Kind::Comma, _) => {
                let help = "write one comma, or none, after each value of a list";
                self.problems.error(token_span, "no value before this comma", help);
            }
            (Kind::Equals, _) => {
                self.problems.error(token_span, "no key before this =", "write KEY = VALUE, in [ ] only");
            }
            (Kind::Word | Kind::Quoted { .. }, Last::Word(key)) => {
                let (message, help) = (format!("the key {} has no value", self.at(key)), "write KEY = VALUE");
                self.problems.error(key, message, help);
            }
            (Kind::OpenParen | Kind::OpenBracket, _) => {
                let message = format!("no name before this {text}");
                self.problems.error(token_span, message, "write NAME ( … ) or NAME [ … ]");
            }
            (Kind::CloseParen | Kind::CloseBracket, _) => self.unclosed(inner.span, what, close),
            (Kind::CloseBrace, _) if self.open.is_empty() => {
                self.unclosed(inner.span, what, close);
                self.take();
                return;
            }
            _ => return self.unclosed(inner.span, what, close),
        }
        self.skip_to_end();
    }

    /// Skips the remaining words and brackets of the value.
    fn skip_to_end(&mut self) {
        while !matches!(self.next.kind, Kind::End | Kind::OpenBrace | Kind::CloseBrace) {
            self.take();
        }
    }
}

fn is_matching_close(open: Kind, close: Kind) -> bool {
    matches!((open, close), (Kind::OpenParen, Kind::CloseParen) | (Kind::OpenBracket, Kind::CloseBracket))
}

/// What a bracket lacks when it is closed.
fn incomplete(last: Last, kind: Kind) -> Option<(Span, &'static str)> {
    match last {
        Last::Word(key) if kind == Kind::OpenBracket => Some((key, "this key has no value")),
        Last::Equals(at) => Some((at, "no value after this =")),
        Last::Nothing | Last::Word(_) | Last::Comma => None,
    }
}
