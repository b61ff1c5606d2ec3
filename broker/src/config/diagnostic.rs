//! Diagnostics: what is wrong with a configuration, where, and how to correct it.
//!
//! A [`Diagnostic`] keeps the line that it is about, so that it can be shown, logged or sent as JSON without the
//! sources. [`Problems`] collects a bounded number of them while files are read.

use std::collections::HashSet;

use portreeve_protocol::printable::Escaped;
use serde::Serialize;

use super::characters::{self, Found};
use super::report::Report;
use super::source::{Sources, Span};

/// The number of diagnostics that one run keeps; further ones are only counted.
pub const MAX_DIAGNOSTICS: usize = 100;

/// The number of bytes of a line that a diagnostic keeps.
const MAX_EXCERPT: usize = 400;

/// The longest line, in bytes, in which a character is looked for that explains an error.
const MAX_LINE: usize = 4096;

/// The severity of a diagnostic.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// The configuration is refused.
    Error,
    /// The configuration is accepted, but something in it is probably not intended.
    Warning,
    /// For information.
    Note,
}

impl Severity {
    /// `error`, `warning` or `note`.
    pub fn word(self) -> &'static str {
        match self {
            Severity::Error => "error",
            Severity::Warning => "warning",
            Severity::Note => "note",
        }
    }
}

/// One diagnostic. Lines and columns count from 1; all four are 0 if the diagnostic is about a whole file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Diagnostic {
    /// The file's name.
    pub file: String,
    /// The line in which the marked text begins.
    pub line: usize,
    /// The column, in characters.
    pub column: usize,
    /// The line in which the marked text ends.
    pub end_line: usize,
    /// The column after its last character.
    pub end_column: usize,
    /// The severity.
    pub severity: Severity,
    /// What is wrong.
    pub message: String,
    /// How to correct it; may be empty.
    pub help: String,
    #[serde(skip)]
    pub(super) excerpt: Excerpt,
}

/// The part of the line that a diagnostic shows, and the range in it to underline (in bytes).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Excerpt {
    pub text: String,
    pub start: usize,
    pub end: usize,
    /// The excerpt is the whole line.
    pub whole: bool,
}

impl Diagnostic {
    /// A diagnostic about a place.
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
            message: characters::shown(&message.into()),
            help: characters::shown(&help.into()),
            excerpt: Excerpt::of(sources, span),
        }
    }

    /// An error about a whole file, for example one that could not be read.
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

    /// `file:line:column`, or the file's name alone if the diagnostic is about all of it.
    pub fn place(&self) -> String {
        match self.line {
            0 => self.file.clone(),
            _ => format!("{}:{}:{}", self.file, self.line, self.column),
        }
    }

    /// `file:line:column: error: message; help`, always on one line: control characters are escaped.
    pub fn one_line(&self) -> String {
        let mut line = escaped(&self.place());
        line += &format!(": {}: {}", self.severity.word(), escaped(&self.message));
        if !self.help.is_empty() {
            line += &format!("; {}", escaped(&self.help));
        }
        line
    }
}

/// The text with the characters escaped that are not printable, so that it stays on one line and cannot control a terminal.
pub(super) fn escaped(text: &str) -> String {
    Escaped(text).to_string()
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

/// The text with each control character of U+0080 to U+009F replaced by a dot. Terminals may obey these characters and
/// the renderer does not remove them. The dot (U+00B7) has the same length in UTF-8, so all offsets stay valid.
fn without_c1(text: &str) -> String {
    characters::shown(text).replace(|c| matches!(c, '\u{80}'..='\u{9f}'), "\u{b7}")
}

/// The offset, rounded down to the beginning of a character.
fn boundary(text: &str, offset: usize) -> usize {
    let mut offset = offset.min(text.len());
    while !text.is_char_boundary(offset) {
        offset -= 1;
    }
    offset
}

/// The first character that the language does not use in the line in which a span begins.
fn in_line_of(span: Span, text: &str) -> Option<Found> {
    let (before, after) = text.split_at_checked(usize::try_from(span.start).ok()?)?;
    let first = before.rfind('\n').map_or(0, |newline| newline + 1);
    let last = before.len() + after.find('\n').unwrap_or(after.len());
    let start = u32::try_from(first).ok()?;
    let line = text.get(first..last).filter(|line| line.len() <= MAX_LINE)?;
    characters::in_line(line, Span { start, ..span })
}

/// A message that may quote the configuration, truncated to a bounded length.
fn bounded(sentence: String) -> String {
    let mut sentence = characters::shown(&sentence);
    if sentence.len() > MAX_EXCERPT {
        sentence.truncate(boundary(&sentence, MAX_EXCERPT));
        sentence.push('…');
    }
    sentence
}

/// Collects diagnostics while files are read and the sources still grow.
#[derive(Debug, Default)]
pub(crate) struct Problems {
    problems: Vec<Problem>,
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
    /// Adds an error.
    pub fn error(&mut self, span: Span, message: impl Into<String>, help: impl Into<String>) {
        self.errors += 1;
        self.note(span, Severity::Error, message, help);
    }

    /// Adds a warning.
    pub fn warning(&mut self, span: Span, message: impl Into<String>, help: impl Into<String>) {
        self.note(span, Severity::Warning, message, help);
    }

    /// Adds the error that a text has a character that it cannot mean.
    pub(super) fn character(&mut self, text: &str, found: Found) {
        self.error(found.span, format!("{text} has {}", found.what), found.remedy);
    }

    /// How many diagnostics about places there are so far.
    pub fn count(&self) -> usize {
        self.problems.len()
    }

    /// Replaces the errors about lines of a file, from the given one on, whose line has a character that the language does not
    /// use: it is the probable cause.
    pub fn name_characters(&mut self, from: usize, text: &str) {
        let mut seen = HashSet::new();
        let mut errors = self.problems.split_off(from);
        errors.retain_mut(|error| {
            let Some(found) = in_line_of(error.span, text).filter(|_| error.severity == Severity::Error)
            else {
                return true;
            };
            let is_new = seen.insert(found.span);
            error.span = found.span;
            error.message = format!("unexpected {}", found.what);
            found.remedy.clone_into(&mut error.help);
            is_new
        });
        self.problems.append(&mut errors);
    }

    /// Adds an error about a whole file.
    pub fn file_error(&mut self, diagnostic: Diagnostic) {
        self.errors += 1;
        self.files.push(diagnostic);
    }

    /// Adds the error that the main file could not be read.
    pub fn unread(&mut self, diagnostic: Diagnostic) {
        self.unread = true;
        self.file_error(diagnostic);
    }

    /// The number of errors so far.
    pub fn errors(&self) -> usize {
        self.errors
    }

    /// Whether further diagnostics would only be counted; always false while there is no error.
    pub fn is_full(&self) -> bool {
        self.any_error() && self.problems.len() >= MAX_DIAGNOSTICS
    }

    /// Whether there is an error so far.
    pub fn any_error(&self) -> bool {
        self.errors > 0
    }

    fn note(&mut self, span: Span, severity: Severity, message: impl Into<String>, help: impl Into<String>) {
        if self.problems.len() >= MAX_DIAGNOSTICS {
            self.omitted += 1;
            return;
        }
        self.problems.push(Problem {
            span,
            severity,
            message: bounded(message.into()),
            help: bounded(help.into()),
        });
    }

    /// The diagnostics, sorted by place.
    pub fn finish(mut self, sources: &Sources) -> Report {
        self.problems.sort_by_key(|problem| problem.span);
        let at = |p: Problem| Diagnostic::at(sources, p.span, p.severity, p.message, p.help);
        let mut all = self.files;
        all.extend(self.problems.into_iter().map(at));
        Report { diagnostics: all, omitted: self.omitted, unread: self.unread }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_line_is_truncated_around_the_place() {
        let mut sources = Sources::default();
        let text = format!("{}here{}", "é".repeat(5000), "y".repeat(1_000_000));
        let file = sources.add("a".into(), text);
        let span = Span { file, start: 10_000, end: 10_004 };
        let diagnostic = Diagnostic::at(&sources, span, Severity::Error, "m", "h");
        assert!(diagnostic.excerpt.text.len() <= MAX_EXCERPT);
        assert_eq!(&diagnostic.excerpt.text[diagnostic.excerpt.start..diagnostic.excerpt.end], "here");
        assert_eq!(diagnostic.one_line(), "a:1:5001: error: m; h");
    }

    #[test]
    fn text_from_a_file_cannot_forge_a_line() {
        let diagnostic = Diagnostic::about_file("a\nb", "\u{1b}[2Jx", "y\r");
        assert_eq!(diagnostic.one_line(), r"a\nb: error: \u{1b}[2Jx; y\r");
    }
}
