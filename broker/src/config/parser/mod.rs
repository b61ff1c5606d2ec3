//! The parser: turns the tokens of one file into a tree and reports all errors in one pass.
//!
//! It keeps its own stack, so nesting cannot overflow the thread's stack, and it recovers after an error if the
//! intended meaning is clear.

mod mistakes;
mod rules;
mod values;

use crate::config::diagnostic::Problems;
use crate::config::lexer::{Bad, Kind, Lexer, Token};
use crate::config::pace::Pace;
use crate::config::source::{FileId, Span};
use crate::config::tree::{Include, Item, Opt, Scalar, Scope, Value};

/// The maximum nesting depth of scopes, across included files. The MTA's own files need five.
pub const MAX_DEPTH: usize = 256;

/// Parses one file that is included inside `depth` scopes.
pub(crate) async fn parse(
    file: FileId,
    text: &str,
    depth: usize,
    problems: &mut Problems,
    pace: &Pace,
) -> Vec<Item> {
    let mut lexer = Lexer::new(text);
    let next = lexer.next();
    let cut_short = matches!(next.kind, Kind::Bad(Bad::Quote | Bad::Comment));
    let (errors_before, count_before) = (problems.errors(), problems.count());
    let mut parser = Parser {
        file,
        text,
        lexer,
        next,
        open: Vec::new(),
        items: Vec::new(),
        long_quote: None,
        cut_short,
        line_end: 0,
        errors_before,
        problems,
    };
    parser.file(depth, pace).await;
    parser.look_for_lost_quote();
    parser.problems.name_characters(count_before, text);
    parser.items
}

struct Parser<'t, 'p> {
    file: FileId,
    text: &'t str,
    lexer: Lexer<'t>,
    next: Token,
    /// The open scopes, outermost first, each with the items parsed before it.
    open: Vec<(Head, Vec<Item>)>,
    items: Vec<Item>,
    /// The first quoted string that spans several lines.
    long_quote: Option<Span>,
    /// Whether a quoted string or comment was not closed before the end of the file.
    cut_short: bool,
    /// The last result of `line_end`.
    line_end: usize,
    /// The number of errors before this file.
    errors_before: usize,
    problems: &'p mut Problems,
}

struct Head {
    name: Span,
    instance: Option<Scalar>,
    attributes: Option<Span>,
    brace: Span,
}

impl<'t> Parser<'t, '_> {
    async fn file(&mut self, depth: usize, pace: &Pace) {
        loop {
            pace.pause().await;
            let token = self.take();
            match token.kind {
                Kind::End => break,
                Kind::Word | Kind::Quoted { .. } | Kind::OpenBrace => {
                    if depth + self.open.len() > MAX_DEPTH {
                        let help = format!("nest at most {MAX_DEPTH} scopes");
                        self.problems.error(self.span(token), "scopes are nested too deeply", help);
                        return;
                    }
                    match token.kind {
                        Kind::OpenBrace => self.stray(token),
                        _ => self.item(token),
                    }
                }
                Kind::CloseBrace => self.close(token),
                _ => self.stray(token),
            }
        }
        // An unclosed quoted string or comment may contain the closing braces.
        let open = if self.cut_short { &[] } else { self.open.as_slice() };
        for (head, _) in open {
            let message = format!("the scope {:?} is not closed", self.at(head.name));
            self.problems.error(head.name.to(head.brace), message, "add a } after its last option");
        }
        while let Some((head, before)) = self.open.pop() {
            self.end_scope(head, before);
        }
    }

    /// Parses one item.
    fn item(&mut self, first: Token) {
        let name = self.span(first);
        let text = self.at(name);
        if is_placeholder(text) {
            return self.elision(first);
        }
        if !is_name(text) {
            self.not_a_name(first);
        }
        let keyword = text.eq_ignore_ascii_case("include") || text.eq_ignore_ascii_case("readonly_include");
        match self.next.kind {
            Kind::Word | Kind::Quoted { .. } if keyword => {
                let path = self.scalar();
                let items = Vec::new();
                self.items.push(Item::Include(Include { path, items }));
            }
            Kind::Equals => {
                let equals = self.take();
                match self.next.kind {
                    Kind::Word | Kind::Quoted { .. } if keyword => {
                        let help = format!("write {text} \"FILE\"");
                        let message = format!("{text} takes no =");
                        self.problems.error(self.span(equals), message, help);
                        self.take();
                    }
                    Kind::OpenBrace => self.open_scope(name, None, None),
                    _ => self.value(name),
                }
            }
            Kind::OpenBrace => self.open_scope(name, None, None),
            Kind::OpenBracket | Kind::OpenParen => self.value(name),
            Kind::Word | Kind::Quoted { .. } => self.instance(name),
            _ => self.no_value(name),
        }
    }

    /// `name word` without `{` after it is an error: finds out what was probably intended.
    fn instance(&mut self, name: Span) {
        let before = (self.lexer, self.next);
        let mut instance = self.pattern().unwrap_or_else(|| self.scalar());
        // The MTA's older files have `Module KIND NAME {` and `Binding NAME <ATTRIBUTE="VALUE"> {`.
        if has_kind(self.at(name)) && matches!(self.next.kind, Kind::Word | Kind::Quoted { .. }) {
            instance = self.scalar();
        }
        let mut attributes = None;
        if self.next.kind == Kind::Word && self.at(self.span(self.next)).starts_with('<') {
            let first = self.scalar();
            attributes = Some(first.span);
            self.attributes(first);
        }
        match self.next.kind {
            Kind::OpenBrace => self.open_scope(name, Some(instance), attributes),
            Kind::Equals if self.second().kind == Kind::OpenBrace => {
                self.take();
                self.open_scope(name, Some(instance), attributes);
            }
            // The word is the name of the next item.
            Kind::Equals | Kind::OpenBracket | Kind::OpenParen if !instance.quoted => {
                (self.lexer, self.next) = before;
                self.no_value(name);
            }
            Kind::Word | Kind::Quoted { .. } if self.on_line_after(name, instance.span) => {
                (self.lexer, self.next) = before;
                self.no_value(name);
            }
            // An invalid name has been reported already.
            _ if !is_name(self.at(name)) => {}
            _ => {
                let (name_text, value) = (self.at(name), self.at(instance.span));
                let message = format!("there is no = between {name_text:?} and its value");
                let help =
                    format!("write {name_text} = {value}, or open a scope with {name_text} {value} {{");
                self.problems.error(name.to(instance.span), message, help);
                let value = Value::Scalar(instance);
                self.items.push(Item::Option(Opt { name, value }));
            }
        }
    }

    /// Parses the name of a scope that is a regular expression, such as `Domain /yahoo\.co(m|\.uk)$/ {`.
    fn pattern(&mut self) -> Option<Scalar> {
        let first = self.span(self.next);
        if self.next.kind != Kind::Word || !self.at(first).starts_with('/') {
            return None;
        }
        let line = self.text.get(self.next.start..)?.lines().next()?;
        let is_end = |at: &usize| line.get(at + 1..).is_some_and(|rest| rest.trim_start().starts_with('{'));
        let last = line.match_indices('/').map(|(at, _)| at).filter(|at| *at > 0).find(is_end)?;
        // Only a token that a word cannot be needs this.
        if last < self.next.end - self.next.start {
            return None;
        }
        self.lexer.resume_at(self.next.start + last + 1);
        let end = u32::try_from(self.next.start + last + 1).unwrap_or(u32::MAX);
        self.take();
        Some(Scalar { span: Span { end, ..first }, quoted: false, escaped: false })
    }

    fn open_scope(&mut self, name: Span, instance: Option<Scalar>, attributes: Option<Span>) {
        let brace = self.take();
        let brace = self.span(brace);
        let head = Head { name, instance, attributes, brace };
        self.open.push((head, std::mem::take(&mut self.items)));
    }

    fn close(&mut self, brace: Token) {
        match self.open.pop() {
            Some((head, before)) => self.end_scope(head, before),
            None => self.problems.error(
                self.span(brace),
                "this } closes no scope",
                "remove it, or look for a scope above that is closed too early",
            ),
        }
    }

    fn end_scope(&mut self, head: Head, before: Vec<Item>) {
        let items = std::mem::replace(&mut self.items, before);
        let Head { name, instance, attributes, .. } = head;
        self.items.push(Item::Scope(Scope { name, instance, attributes, items }));
    }

    fn take(&mut self) -> Token {
        let next = self.lexer.next();
        self.cut_short |= matches!(next.kind, Kind::Bad(Bad::Quote | Bad::Comment));
        std::mem::replace(&mut self.next, next)
    }

    /// The token after the next one.
    fn second(&self) -> Token {
        let mut ahead = self.lexer;
        ahead.next()
    }

    fn scalar(&mut self) -> Scalar {
        let token = self.take();
        let span = self.span(token);
        let quoted = matches!(token.kind, Kind::Quoted { .. });
        if quoted && self.long_quote.is_none() && self.at(span).contains('\n') {
            self.long_quote = Some(span);
        }
        Scalar { span, quoted, escaped: token.kind == Kind::Quoted { escaped: true } }
    }

    fn span(&self, token: Token) -> Span {
        let offset = |at| u32::try_from(at).unwrap_or(u32::MAX);
        Span { file: self.file, start: offset(token.start), end: offset(token.end) }
    }

    fn at(&self, span: Span) -> &'t str {
        let index = |offset| usize::try_from(offset).unwrap_or(usize::MAX);
        self.text.get(index(span.start)..index(span.end)).unwrap_or_default()
    }

    /// The end of the line in which a span ends. Calls come in the order of the spans, and the last result is cached, so
    /// that a long line is not searched again for each error on it.
    fn line_end(&mut self, span: Span) -> usize {
        let at = usize::try_from(span.end).unwrap_or(usize::MAX);
        if self.line_end <= at {
            let rest = self.text.get(at..).unwrap_or_default();
            self.line_end = at + rest.find('\n').unwrap_or(rest.len());
        }
        self.line_end
    }

    fn on_line_after(&self, first: Span, second: Span) -> bool {
        let between = Span { start: first.end, end: second.start, ..first };
        self.at(between).contains('\n')
    }
}

/// Scopes of the MTA's older files that name the kind of module before its name.
fn has_kind(name: &str) -> bool {
    const KINDS: [&str; 5] = ["module", "logger", "validate", "io_system", "interpreter"];
    KINDS.iter().any(|kind| kind.eq_ignore_ascii_case(name))
}

/// Placeholders that documents use for omitted text.
fn is_placeholder(text: &str) -> bool {
    text == "..." || text == "…"
}

/// Letters, digits and `_`; and `:` and `-`, which the MTA's `hook:NAME` and `NAS-IP-Address` have.
fn is_name(text: &str) -> bool {
    let name = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b':' | b'-');
    !text.is_empty() && !text.ends_with(':') && text.bytes().all(name)
}
