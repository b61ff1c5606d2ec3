//! The grammar: tokens of one file to its tree, all errors in one pass.
//!
//! The parser keeps its own stack, so no nesting can overflow the thread's, and it goes on after an error
//! where it can say what was probably meant.

use super::diagnostic::Problems;
use super::lexer::{Bad, Kind, Lexer, Token};
use super::source::{FileId, Span};
use super::tree::{Include, Item, Opt, Scalar, Scope, Value};

/// How many scopes may stand in each other, included files and all. The MTA's own files need five.
pub const MAX_DEPTH: usize = 256;

/// Parses one file whose items will stand at a depth of `depth` scopes.
pub(crate) fn parse(file: FileId, text: &str, depth: usize, problems: &mut Problems) -> Vec<Item> {
    let mut lexer = Lexer::new(text);
    let next = lexer.next();
    let mut parser = Parser {
        file,
        text,
        lexer,
        next,
        open: Vec::new(),
        items: Vec::new(),
        problems,
    };
    parser.file(depth);
    parser.items
}

struct Parser<'t, 'p> {
    file: FileId,
    text: &'t str,
    lexer: Lexer<'t>,
    next: Token,
    /// The scopes around `items`, outermost first: each with the items before it.
    open: Vec<(Head, Vec<Item>)>,
    items: Vec<Item>,
    problems: &'p mut Problems,
}

struct Head {
    name: Span,
    instance: Option<Scalar>,
    brace: Span,
}

impl<'t> Parser<'t, '_> {
    fn file(&mut self, depth: usize) {
        loop {
            let token = self.take();
            match token.kind {
                Kind::End => break,
                Kind::Word | Kind::Quoted { .. } => {
                    if depth + self.open.len() > MAX_DEPTH {
                        let help = format!("at most {MAX_DEPTH} scopes may stand in each other");
                        self.problems
                            .error(self.span(token), "scopes are nested too deep", help);
                        return;
                    }
                    self.item(token);
                }
                Kind::CloseBrace => self.close(token),
                _ => self.stray(token),
            }
        }
        for (head, _) in &self.open {
            let message = format!("the scope {:?} is not closed", self.at(head.name));
            self.problems.error(
                head.name.to(head.brace),
                message,
                "close it with a } after its last option",
            );
        }
        while let Some((head, before)) = self.open.pop() {
            self.end_scope(head, before);
        }
    }

    /// An item from its first token on.
    fn item(&mut self, first: Token) {
        let name = self.span(first);
        let text = self.at(name);
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
                self.take();
                match self.next.kind {
                    Kind::OpenBrace => self.open_scope(name, None),
                    _ => self.value(name),
                }
            }
            Kind::OpenBrace => self.open_scope(name, None),
            Kind::OpenBracket | Kind::OpenParen => self.value(name),
            Kind::Word | Kind::Quoted { .. } => self.instance(name),
            _ => self.no_value(name),
        }
    }

    /// `name word` can only be the head of a scope; find out what else it was meant to be.
    fn instance(&mut self, name: Span) {
        let before = (self.lexer, self.next);
        let instance = self.scalar();
        match self.next.kind {
            Kind::OpenBrace => self.open_scope(name, Some(instance)),
            Kind::Equals if self.second().kind == Kind::OpenBrace => {
                self.take();
                self.open_scope(name, Some(instance));
            }
            // The word is the next item's name.
            Kind::Equals | Kind::OpenBracket | Kind::OpenParen if !instance.quoted => {
                (self.lexer, self.next) = before;
                self.no_value(name);
            }
            Kind::Word | Kind::Quoted { .. } if self.on_line_after(name, instance.span) => {
                (self.lexer, self.next) = before;
                self.no_value(name);
            }
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

    fn no_value(&mut self, name: Span) {
        let text = self.at(name);
        let (message, help) = if text.eq_ignore_ascii_case("include") {
            (
                "include names no file".to_owned(),
                "write include \"FILE\"".to_owned(),
            )
        } else {
            (
                format!("{text:?} has no value"),
                format!("write {text} = VALUE, or open a scope with {text} {{"),
            )
        };
        self.problems.error(name, message, help);
    }

    fn open_scope(&mut self, name: Span, instance: Option<Scalar>) {
        let brace = self.take();
        let brace = self.span(brace);
        let head = Head {
            name,
            instance,
            brace,
        };
        self.open.push((head, std::mem::take(&mut self.items)));
    }

    fn close(&mut self, brace: Token) {
        match self.open.pop() {
            Some((head, before)) => self.end_scope(head, before),
            None => self.problems.error(
                self.span(brace),
                "this } closes no scope",
                "remove it, or look for a scope above that was closed too early",
            ),
        }
    }

    fn end_scope(&mut self, head: Head, before: Vec<Item>) {
        let items = std::mem::replace(&mut self.items, before);
        let Head { name, instance, .. } = head;
        self.items.push(Item::Scope(Scope {
            name,
            instance,
            items,
        }));
    }

    /// The value of an option, from the token that begins it.
    fn value(&mut self, name: Span) {
        let value = match self.next.kind {
            Kind::Word | Kind::Quoted { .. } => {
                let scalar = self.scalar();
                if self.next.kind == Kind::Comma {
                    let comma = self.take();
                    let help = format!("write a list as {} = ( a, b )", self.at(name));
                    self.problems
                        .error(self.span(comma), "a comma stands only in a list", help);
                    while matches!(self.next.kind, Kind::Word | Kind::Quoted { .. } | Kind::Comma)
                        && !self.on_line_after(name, self.span(self.next))
                    {
                        self.take();
                    }
                }
                Value::Scalar(scalar)
            }
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
        // A comma may follow a value, once.
        let mut comma_may_stand = false;
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
                    comma_may_stand = true;
                    if matches!(self.next.kind, Kind::Equals) {
                        (self.lexer, self.next) = before;
                        self.unclosed(open, "list", ")");
                        return Value::List { span, items };
                    }
                    items.push(scalar);
                }
                Kind::Comma => {
                    self.take();
                    if !comma_may_stand {
                        let help = "write one comma, or none, after each value";
                        self.problems
                            .error(self.span(token), "no value stands before this comma", help);
                    }
                    comma_may_stand = false;
                }
                Kind::OpenParen | Kind::OpenBracket => {
                    self.take();
                    let help = "a list holds words and quoted strings only";
                    self.problems
                        .error(self.span(token), "a list cannot hold another one", help);
                    self.skip_nested();
                }
                Kind::Bad(bad) => {
                    self.take();
                    self.bad(token, bad);
                }
                _ => {
                    self.unclosed(open, "list", ")");
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
                Kind::Word | Kind::Quoted { .. } => {
                    let key = self.scalar();
                    if let Some(value) = self.entry(key) {
                        entries.push((key, value));
                    }
                }
                Kind::Comma => {
                    self.take();
                    let help = "separate the entries of [ ] with spaces or lines";
                    self.problems
                        .error(self.span(token), "a comma stands only in a list", help);
                }
                Kind::Bad(bad) => {
                    self.take();
                    self.bad(token, bad);
                }
                Kind::Equals => {
                    self.take();
                    let help = "write KEY = VALUE";
                    self.problems
                        .error(self.span(token), "no key stands before this =", help);
                }
                _ => {
                    self.unclosed(open, "dictionary", "]");
                    return Value::Dict { span, entries };
                }
            }
        }
    }

    /// `= value` of a dictionary's entry.
    fn entry(&mut self, key: Scalar) -> Option<Scalar> {
        let text = self.at(key.span);
        if self.next.kind != Kind::Equals {
            let help = format!("write {text} = VALUE");
            self.problems
                .error(key.span, format!("the key {text} has no value"), help);
            return None;
        }
        self.take();
        match self.next.kind {
            Kind::Word | Kind::Quoted { .. } => Some(self.scalar()),
            Kind::OpenParen | Kind::OpenBracket => {
                let token = self.take();
                let message = "a dictionary holds no lists and no dictionaries";
                let help = format!("write {text} = VALUE, with quotes where the value has spaces");
                self.problems.error(self.span(token), message, help);
                self.skip_nested();
                None
            }
            _ => {
                let help = format!("write {text} = VALUE");
                self.problems
                    .error(key.span, format!("the key {text} has no value"), help);
                None
            }
        }
    }

    /// Past the end of a list or dictionary that may not stand here.
    fn skip_nested(&mut self) {
        loop {
            match self.next.kind {
                Kind::CloseParen | Kind::CloseBracket => {
                    self.take();
                    return;
                }
                Kind::Word | Kind::Quoted { .. } | Kind::Comma | Kind::Equals => {
                    self.take();
                }
                _ => return,
            }
        }
    }

    fn unclosed(&mut self, open: Span, what: &str, close: &str) {
        let message = format!("the {what} that begins here is not closed");
        let help = format!("close it with {close} after its last value");
        self.problems.error(open, message, help);
    }

    /// A token where an item should begin.
    fn stray(&mut self, token: Token) {
        let span = self.span(token);
        match token.kind {
            Kind::Bad(bad) => self.bad(token, bad),
            Kind::OpenBrace => {
                self.problems.error(
                    span,
                    "this { opens a scope without a name",
                    "write the scope's name before it, without =",
                );
                let head = Head {
                    name: span,
                    instance: None,
                    brace: span,
                };
                self.open.push((head, std::mem::take(&mut self.items)));
            }
            _ => {
                let message = format!("{} stands where an option or a scope should begin", self.at(span));
                self.problems
                    .error(span, message, "write NAME = VALUE or NAME { … }");
            }
        }
    }

    fn bad(&mut self, token: Token, bad: Bad) {
        let span = self.span(token);
        let begin = Span {
            end: span.start.saturating_add(if bad == Bad::Comment { 2 } else { 1 }),
            ..span
        };
        match bad {
            Bad::Quote => self.problems.error(
                begin,
                "the quoted string that begins here is not closed",
                "close it with \"; a \" inside it is written \\\"",
            ),
            Bad::Comment => self.problems.error(
                begin,
                "the comment that begins here is not closed",
                "close it with */; quote a value that holds /*",
            ),
            Bad::Character(';') => self.problems.error(
                span,
                "a ; stands nowhere in this language",
                "remove it: options end by themselves; quote a value that holds one",
            ),
            Bad::Character('\'') => self.problems.error(
                span,
                "single quotes do not quote in this language",
                "use double quotes",
            ),
            Bad::Character(c) => self.problems.error(
                span,
                format!("the character {c:?} cannot stand here"),
                "remove it, or quote the value that holds it",
            ),
        }
    }

    fn not_a_name(&mut self, token: Token) {
        let span = self.span(token);
        let text = self.at(span);
        let (message, help) = if text.starts_with("//") {
            (
                "// does not begin a comment".to_owned(),
                "begin it with #, or put it between /* and */",
            )
        } else if text.starts_with('"') {
            (
                format!("the quoted string {text} stands where a name should"),
                "write the name of an option or scope before it, and = for an option",
            )
        } else {
            (
                format!("{text:?} is not a name"),
                "names have letters, digits and _ only",
            )
        };
        self.problems.error(span, message, help);
        if text.starts_with("//") {
            self.skip_line(span);
        }
    }

    fn skip_line(&mut self, first: Span) {
        while self.next.kind != Kind::End && !self.on_line_after(first, self.span(self.next)) {
            self.take();
        }
    }

    fn take(&mut self) -> Token {
        std::mem::replace(&mut self.next, self.lexer.next())
    }

    /// The token after the next one.
    fn second(&self) -> Token {
        let mut ahead = self.lexer;
        ahead.next()
    }

    fn scalar(&mut self) -> Scalar {
        let token = self.take();
        Scalar {
            span: self.span(token),
            quoted: matches!(token.kind, Kind::Quoted { .. }),
            escaped: token.kind == Kind::Quoted { escaped: true },
        }
    }

    fn span(&self, token: Token) -> Span {
        let offset = |at| u32::try_from(at).unwrap_or(u32::MAX);
        Span {
            file: self.file,
            start: offset(token.start),
            end: offset(token.end),
        }
    }

    fn at(&self, span: Span) -> &'t str {
        let index = |offset| usize::try_from(offset).unwrap_or(usize::MAX);
        self.text
            .get(index(span.start)..index(span.end))
            .unwrap_or_default()
    }

    fn on_line_after(&self, first: Span, second: Span) -> bool {
        let between = Span {
            start: first.end,
            end: second.start,
            ..first
        };
        self.at(between).contains('\n')
    }
}

fn is_name(text: &str) -> bool {
    !text.is_empty()
        && text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}
