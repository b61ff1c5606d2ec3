//! Values: one word, a list in `( )` or a dictionary in `[ ]`.

use super::{Parser, is_placeholder};
use crate::config::is_listener;
use crate::config::lexer::Kind;
use crate::config::source::Span;
use crate::config::tree::{Item, Opt, Scalar, Value};

impl Parser<'_, '_> {
    /// Parses the value of an option.
    pub(super) fn value(&mut self, name: Span) {
        let value = match self.next.kind {
            Kind::Word | Kind::Quoted { .. } => {
                let before = (self.lexer, self.next);
                let scalar = self.scalar();
                // The word on the next line is the next option's name.
                let is_name = matches!(self.next.kind, Kind::Equals | Kind::OpenBrace) && !scalar.quoted;
                if is_name && self.on_line_after(name, scalar.span) {
                    (self.lexer, self.next) = before;
                    return self.no_value(name);
                }
                if self.next.kind == Kind::Comma {
                    let comma = self.take();
                    let help = format!("write a list as {} = ( a, b )", self.at(name));
                    self.problems.error(self.span(comma), "a comma is allowed only in a list", help);
                    self.skip_line(scalar.span);
                }
                Value::Scalar(scalar)
            }
            Kind::OpenParen if is_listener(self.at(name)) => self.rules(),
            Kind::OpenParen => self.list(),
            Kind::OpenBracket => self.dict(),
            Kind::Bad(_) => return,
            _ => return self.no_value(name),
        };
        self.items.push(Item::Option(Opt { name, value }));
    }

    fn list(&mut self) -> Value {
        let open = self.take();
        let open = self.span(open);
        let mut items: Vec<Scalar> = Vec::new();
        // One comma may follow a value.
        let mut comma_allowed = false;
        loop {
            let token = self.next;
            let span = open.to(self.span(token));
            match token.kind {
                Kind::CloseParen => {
                    self.take();
                    return Value::List { span, items };
                }
                Kind::Word | Kind::Quoted { .. } => {
                    let before = (self.lexer, self.next);
                    let scalar = self.scalar();
                    comma_allowed = true;
                    if matches!(self.next.kind, Kind::Equals) {
                        let last = items.last().map_or(open, |last| last.span);
                        if self.on_line_after(last, scalar.span) {
                            // The word on the next line is the next option's name.
                            (self.lexer, self.next) = before;
                            self.unclosed(open, "list", ")");
                        } else {
                            let equals = self.span(self.next);
                            let help = "write [ KEY = VALUE ] for a dictionary, or quote the word";
                            self.problems.error(equals, "a list takes words, not KEY = VALUE", help);
                            self.skip_nested();
                        }
                        return Value::List { span, items };
                    }
                    items.push(scalar);
                }
                Kind::Comma => {
                    self.take();
                    if !comma_allowed {
                        let help = "write one comma, or none, after each value";
                        self.problems.error(self.span(token), "no value before this comma", help);
                    }
                    comma_allowed = false;
                }
                Kind::OpenParen | Kind::OpenBracket => {
                    self.take();
                    let help = "write only words and quoted strings in a list";
                    self.problems.error(self.span(token), "a list cannot contain another list", help);
                    self.skip_nested();
                }
                Kind::Bad(bad) => {
                    self.take();
                    self.bad(token, bad);
                }
                other => {
                    self.unclosed(open, "list", ")");
                    if other == Kind::CloseBracket {
                        self.take();
                    }
                    return Value::List { span, items };
                }
            }
        }
    }

    fn dict(&mut self) -> Value {
        let open = self.take();
        let open = self.span(open);
        let mut entries = Vec::new();
        loop {
            let token = self.next;
            let span = open.to(self.span(token));
            match token.kind {
                Kind::CloseBracket => {
                    self.take();
                    return Value::Dict { span, entries };
                }
                Kind::Word if is_placeholder(self.at(self.span(token))) => {
                    self.take();
                    self.elision(token);
                }
                Kind::Word | Kind::Quoted { .. } => {
                    let key = self.scalar();
                    if let Some(value) = self.entry(key) {
                        entries.push((key, value));
                    }
                }
                Kind::Comma => {
                    self.take();
                    let help = "separate the entries of [ ] with spaces or lines";
                    self.problems.error(self.span(token), "a comma is allowed only in a list", help);
                }
                Kind::Bad(bad) => {
                    self.take();
                    self.bad(token, bad);
                }
                Kind::Equals => {
                    self.take();
                    let help = "write KEY = VALUE";
                    self.problems.error(self.span(token), "no key before this =", help);
                }
                other => {
                    self.unclosed(open, "dictionary", "]");
                    if other == Kind::CloseParen {
                        self.take();
                    }
                    return Value::Dict { span, entries };
                }
            }
        }
    }

    /// Parses `= value` of a dictionary's entry.
    fn entry(&mut self, key: Scalar) -> Option<Scalar> {
        let text = self.at(key.span);
        if self.next.kind != Kind::Equals {
            let help = format!("write {text} = VALUE");
            self.problems.error(key.span, format!("the key {text} has no value"), help);
            return None;
        }
        self.take();
        match self.next.kind {
            Kind::Word | Kind::Quoted { .. } => Some(self.scalar()),
            Kind::OpenParen | Kind::OpenBracket => {
                let token = self.take();
                let message = "a dictionary cannot contain lists or dictionaries";
                let help = format!("write {text} = VALUE, with quotes where the value has spaces");
                self.problems.error(self.span(token), message, help);
                self.skip_nested();
                None
            }
            _ => {
                let help = format!("write {text} = VALUE");
                self.problems.error(key.span, format!("the key {text} has no value"), help);
                None
            }
        }
    }

    /// Skips a list or dictionary that is not allowed here, including nested ones.
    fn skip_nested(&mut self) {
        let mut open = 1;
        while open > 0 {
            match self.next.kind {
                Kind::OpenParen | Kind::OpenBracket => open += 1,
                Kind::CloseParen | Kind::CloseBracket => open -= 1,
                Kind::Word | Kind::Quoted { .. } | Kind::Comma | Kind::Equals => {}
                _ => return,
            }
            self.take();
        }
    }
}
