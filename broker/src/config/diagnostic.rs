//! What is wrong with a configuration, where, and what would be right.
//!
//! A [`Diagnostic`] stands for itself: it keeps the line that it is about, so it can be shown, logged or sent
//! as JSON when the sources are gone. [`Problems`] collects them, bounded, while files are read.

use serde::Serialize;

use super::report::Report;
use super::source::{Sources, Span};

/// How many diagnostics one run keeps; the rest is counted.
pub const MAX_DIAGNOSTICS: usize = 100;

/// How many bytes of a line a diagnostic keeps: what a person can find something in.
const MAX_EXCERPT: usize = 400;

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// The configuration is refused.
    Error,
    /// It is accepted and something about it will surprise.
    Warning,
    /// It is as it should be, and there is something to know about it.
    Note,
}

impl Severity {
    /// The word for it.
    pub fn word(self) -> &'static str {
        match self {
            Severity::Error => "error",
            Severity::Warning => "warning",
            Severity::Note => "note",
        }
    }
}

/// One finding. Lines and columns count from 1; all four are 0 where the finding is about a whole file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Diagnostic {
    /// The file's name.
    pub file: String,
    /// The line in which the span begins.
    pub line: usize,
    /// The column, in characters.
    pub column: usize,
    /// The line in which it ends.
    pub end_line: usize,
    /// The column after its last character.
    pub end_column: usize,
    /// How bad it is.
    pub severity: Severity,
    /// What is wrong.
    pub message: String,
    /// What would be right; empty where there is nothing to say.
    pub help: String,
    #[serde(skip)]
    pub(super) excerpt: Excerpt,
}

/// The part of the line that a diagnostic shows, and what of it is underlined (in bytes).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Excerpt {
    pub text: String,
    pub start: usize,
    pub end: usize,
    /// The excerpt is the whole line.
    pub whole: bool,
}

impl Diagnostic {
    /// A finding about a place.
    pub(crate) fn at(
        sources: &Sources,
        span: Span,
        severity: Severity,
        message: impl Into<String>,
        help: impl Into<String>,
    ) -> Self {
        let place = sources.place(span);
        Diagnostic {
            file: place.file,
            line: place.line,
            column: place.column,
            end_line: place.end_line,
            end_column: place.end_column,
            severity,
            message: message.into(),
            help: help.into(),
            excerpt: Excerpt::of(sources, span),
        }
    }

    /// An error about a whole file, one that could not be read for example.
    pub(crate) fn about_file(file: &str, message: impl Into<String>, help: impl Into<String>) -> Self {
        Diagnostic {
            file: file.to_owned(),
            line: 0,
            column: 0,
            end_line: 0,
            end_column: 0,
            severity: Severity::Error,
            message: message.into(),
            help: help.into(),
            excerpt: Excerpt::default(),
        }
    }

    /// `file:line:column`, or the file alone where the finding is about all of it.
    pub fn place(&self) -> String {
        match self.line {
            0 => self.file.clone(),
            _ => format!("{}:{}:{}", self.file, self.line, self.column),
        }
    }

    /// `file:line:column: error: message; help`, on one line whatever the configuration holds.
    pub fn one_line(&self) -> String {
        let mut line = escaped(&self.place());
        line += &format!(": {}: {}", self.severity.word(), escaped(&self.message));
        if !self.help.is_empty() {
            line += &format!("; {}", escaped(&self.help));
        }
        line
    }
}

/// The text with its control characters escaped, so that it stays on its line and drives no terminal.
pub(super) fn escaped(text: &str) -> String {
    text.chars().fold(String::with_capacity(text.len()), |mut out, c| {
        match c.is_control() {
            true => out.extend(c.escape_default()),
            false => out.push(c),
        }
        out
    })
}

impl Excerpt {
    fn of(sources: &Sources, span: Span) -> Self {
        let (line, part) = sources.line_of(span);
        if line.len() <= MAX_EXCERPT {
            return Excerpt { text: without_c1(line), start: part.start, end: part.end, whole: true };
        }
        let first = boundary(line, part.start.saturating_sub(MAX_EXCERPT / 4));
        let last = boundary(line, first + MAX_EXCERPT);
        Excerpt {
            text: without_c1(line.get(first..last).unwrap_or_default()),
            start: part.start.min(last) - first,
            end: part.end.clamp(first, last) - first,
            whole: false,
        }
    }
}

/// The text with a dot for each control character of U+0080 to U+009F, which a terminal may obey and what draws the
/// excerpt lets through. A dot is as long as they are, so every offset stays.
fn without_c1(text: &str) -> String {
    text.replace(|c| matches!(c, '\u{80}'..='\u{9f}'), "\u{b7}")
}

/// The offset, or the nearest one before it at which a character begins.
fn boundary(text: &str, offset: usize) -> usize {
    let mut offset = offset.min(text.len());
    while !text.is_char_boundary(offset) {
        offset -= 1;
    }
    offset
}

/// A sentence that quotes the configuration, cut where that was too much of it.
fn bounded(mut sentence: String) -> String {
    if sentence.len() > MAX_EXCERPT {
        sentence.truncate(boundary(&sentence, MAX_EXCERPT));
        sentence.push('…');
    }
    sentence
}

/// Findings while files are being read, when the sources still grow.
#[derive(Debug, Default)]
pub(crate) struct Problems {
    found: Vec<Problem>,
    files: Vec<Diagnostic>,
    errors: usize,
    omitted: usize,
    unread: bool,
}

#[derive(Debug)]
struct Problem {
    span: Span,
    severity: Severity,
    message: String,
    help: String,
}

impl Problems {
    /// Notes an error.
    pub fn error(&mut self, span: Span, message: impl Into<String>, help: impl Into<String>) {
        self.errors += 1;
        self.note(span, Severity::Error, message, help);
    }

    /// Notes a warning.
    pub fn warning(&mut self, span: Span, message: impl Into<String>, help: impl Into<String>) {
        self.note(span, Severity::Warning, message, help);
    }

    /// Notes an error about a whole file.
    pub fn file_error(&mut self, diagnostic: Diagnostic) {
        self.errors += 1;
        self.files.push(diagnostic);
    }

    /// Notes that the main file could not be read at all, and why.
    pub fn unread(&mut self, diagnostic: Diagnostic) {
        self.unread = true;
        self.file_error(diagnostic);
    }

    /// How many errors there are so far.
    pub fn errors(&self) -> usize {
        self.errors
    }

    /// Whether no more are kept, so that nobody goes to length for one. Only an error makes it so.
    pub fn is_full(&self) -> bool {
        self.any_error() && self.found.len() >= MAX_DIAGNOSTICS
    }

    /// Whether anything so far refuses the configuration.
    pub fn any_error(&self) -> bool {
        self.errors > 0
    }

    fn note(&mut self, span: Span, severity: Severity, message: impl Into<String>, help: impl Into<String>) {
        if self.found.len() >= MAX_DIAGNOSTICS {
            self.omitted += 1;
            return;
        }
        self.found.push(Problem {
            span,
            severity,
            message: bounded(message.into()),
            help: bounded(help.into()),
        });
    }

    /// The findings in the order of their places.
    pub fn finish(mut self, sources: &Sources) -> Report {
        self.found.sort_by_key(|problem| problem.span);
        let at = |p: Problem| Diagnostic::at(sources, p.span, p.severity, p.message, p.help);
        let mut all = self.files;
        all.extend(self.found.into_iter().map(at));
        Report { diagnostics: all, omitted: self.omitted, unread: self.unread }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_line_is_cut_around_the_place() {
        let mut sources = Sources::default();
        let text = format!("{}here{}", "é".repeat(5000), "y".repeat(1_000_000));
        let file = sources.add("a".into(), text);
        let span = Span { file, start: 10_000, end: 10_004 };
        let found = Diagnostic::at(&sources, span, Severity::Error, "m", "h");
        assert!(found.excerpt.text.len() <= MAX_EXCERPT);
        assert_eq!(&found.excerpt.text[found.excerpt.start..found.excerpt.end], "here");
        assert_eq!(found.one_line(), "a:1:5001: error: m; h");
    }

    #[test]
    fn what_a_file_holds_cannot_forge_a_line() {
        let found = Diagnostic::about_file("a\nb", "\u{1b}[2Jx", "y\r");
        assert_eq!(found.one_line(), r"a\nb: error: \u{1b}[2Jx; y\r");
    }
}
