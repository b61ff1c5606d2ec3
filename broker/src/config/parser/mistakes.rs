//! Syntax errors: the message of each, with a suggestion.

use super::{Head, Parser, is_name, is_placeholder};
use crate::config::lexer::{Bad, Kind, Token};
use crate::config::source::Span;
use crate::config::tree::{Item, Opt, Value};
use crate::config::{is_read, is_read_within};

/// The scopes of which the broker reads every option.
const OWN: [&str; 3] = ["security", "broker", "worker"];

impl Parser<'_, '_> {
    pub(super) fn no_value(&mut self, name: Span) {
        let text = self.at(name);
        // An invalid name has been reported already.
        if !is_name(text) {
            return;
        }
        let (message, help) = if text.eq_ignore_ascii_case("include") {
            ("include names no file".to_owned(), "write include \"FILE\"".to_owned())
        } else {
            (
                format!("{text:?} has no value"),
                format!("write {text} = VALUE, or open a scope with {text} {{"),
            )
        };
        self.problems.error(name, message, help);
    }

    pub(super) fn unclosed(&mut self, open: Span, what: &str, close: &str) {
        let message = format!("the {what} that begins here is not closed");
        let help = format!("add {close} after its last value");
        self.problems.error(open, message, help);
    }

    /// Reports a token where an item should begin.
    pub(super) fn stray(&mut self, token: Token) {
        let span = self.span(token);
        match token.kind {
            Kind::Bad(bad) => self.bad(token, bad),
            Kind::OpenBrace => self.nameless_scope(span),
            Kind::OpenParen if is_placeholder(self.at(self.span(self.next))) => self.elision(token),
            _ => {
                let message = format!("unexpected {}: an option or a scope should begin here", self.at(span));
                self.problems.error(span, message, "write NAME = VALUE or NAME { … }");
                self.skip_line(span);
            }
        }
    }

    /// Reports a `{` where an item should begin: after `name = value`, or after nothing.
    fn nameless_scope(&mut self, span: Span) {
        let (name, instance) = match self.items.pop() {
            Some(Item::Option(Opt { name, value: Value::Scalar(scalar) }))
                if !self.on_line_after(scalar.span, span) =>
            {
                let help = format!("write {} {} {{", self.at(name), self.at(scalar.span));
                let message = "a scope takes a name, not a value";
                self.problems.error(name.to(scalar.span), message, help);
                (name, Some(scalar))
            }
            before => {
                self.items.extend(before);
                let help = "write the scope's name before it";
                self.problems.error(span, "this { opens a scope without a name", help);
                (span, None)
            }
        };
        let head = Head { name, instance, attributes: None, brace: span };
        self.open.push((head, std::mem::take(&mut self.items)));
    }

    pub(super) fn bad(&mut self, token: Token, bad: Bad) {
        let span = self.span(token);
        let begin = Span { end: span.start.saturating_add(if bad == Bad::Comment { 2 } else { 1 }), ..span };
        match bad {
            Bad::Quote => self.problems.error(
                begin,
                "the quoted string that begins here is not closed",
                "add the closing \"; write a \" inside it as \\\"",
            ),
            Bad::Comment => self.problems.error(
                begin,
                "the comment that begins here is not closed",
                "add the closing */; quote a value that contains /*",
            ),
            Bad::Character(';') => self.problems.error(
                span,
                "unexpected ;",
                "remove it: options need no terminator; quote a value that contains ;",
            ),
            Bad::Character('\'') => {
                self.problems.error(span, "single quotes are not quotes here", "use double quotes")
            }
            Bad::Character('\0') => {
                self.problems.error(span, "this byte is NUL: the file is not text", "save it as UTF-8 text");
                self.skip_file();
            }
            Bad::Character(c) => self.problems.error(
                span,
                format!("unexpected character {c:?}"),
                "remove it, or quote the value that contains it",
            ),
        }
        if bad != Bad::Character(';') {
            self.skip_line(span);
        }
    }

    /// Reports `...`, which many examples contain. In a scope of the MTA it is skipped like all options there; in one that the
    /// broker shares with the MTA, and at top level, it is a warning.
    pub(super) fn elision(&mut self, token: Token) {
        let span = self.span(token);
        if !self.is_skipped() {
            let message = "this is a placeholder from an example: something was left out here";
            let help = "replace it by options, or remove it; begin a comment with #";
            let outermost = self.open.first().map(|(head, _)| self.at(head.name));
            match outermost.is_some_and(|name| OWN.iter().any(|own| own.eq_ignore_ascii_case(name))) {
                true => self.problems.error(span, message, help),
                false => self.problems.warning(span, message, help),
            }
        }
        self.skip_line(span);
    }

    pub(super) fn not_a_name(&mut self, token: Token) {
        let span = self.span(token);
        let text = self.at(span);
        if text.starts_with('<') && text.ends_with('>') {
            return self.elision(token);
        }
        let (message, help) = if text.starts_with("//") {
            ("// does not begin a comment".to_owned(), "begin it with #, or write it between /* and */")
        } else if text.starts_with('"') {
            (
                format!("unexpected quoted string {text}: a name should stand here"),
                "write the name of an option and =, or the name of a scope, before it",
            )
        } else {
            (
                format!("{text:?} is not a valid name"),
                "use only letters, digits, _ and - in names; quote a value with spaces",
            )
        };
        self.problems.error(span, message, help);
        if text.starts_with("//") {
            self.skip_line(span);
        }
    }

    /// After a forgotten quote the rest of the file is misread: reports where that may have begun.
    pub(super) fn look_for_lost_quote(&mut self) {
        if let Some(span) = self.long_quote.filter(|_| self.problems.errors() > self.errors_before) {
            let begin = Span { end: span.start.saturating_add(1), ..span };
            self.problems.error(
                begin,
                "the quoted string that begins here spans several lines",
                "if its closing \" is missing, this causes the errors after it",
            );
        }
    }

    /// Whether the innermost open scope is in one that the broker does not read.
    fn is_skipped(&self) -> bool {
        let mut names = self.open.iter().map(|(head, _)| self.at(head.name));
        names.next().is_some_and(|outermost| !is_read(outermost)) || names.any(|inner| !is_read_within(inner))
    }

    /// Skips the rest of a file that is not text.
    fn skip_file(&mut self) {
        self.cut_short = true;
        while self.next.kind != Kind::End {
            self.take();
        }
    }

    /// Skips the rest of a line that could not be parsed.
    pub(super) fn skip_line(&mut self, first: Span) {
        let end = self.line_end(first);
        while !matches!(self.next.kind, Kind::End | Kind::OpenBrace | Kind::CloseBrace)
            && self.next.start < end
        {
            self.take();
        }
    }
}
