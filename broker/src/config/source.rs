//! The text of every file that was read, and places in it.
//!
//! A [`Span`] of twelve bytes identifies a token of a file; [`Sources`] converts it to file, line and column.
//! Nothing here accesses the file system.

use std::ops::Range;
use std::sync::OnceLock;

/// One of the files that were read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FileId(u32);

/// A range of bytes in one file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Span {
    /// The file.
    pub file: FileId,
    /// The first byte, counted from 0.
    pub start: u32,
    /// The byte after the last one.
    pub end: u32,
}

impl Span {
    /// From the beginning of this span to the end of a later one of the same file.
    pub fn to(self, last: Span) -> Span {
        Span { end: last.end, ..self }
    }
}

/// A value and its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spanned<T> {
    /// The value.
    pub value: T,
    /// The place, including the quotes of a quoted value.
    pub span: Span,
}

impl<T> Spanned<T> {
    /// The same place with another value.
    pub fn map<U>(self, change: impl FnOnce(T) -> U) -> Spanned<U> {
        Spanned { value: change(self.value), span: self.span }
    }
}

/// A place for display. Lines and columns count from 1; columns are in characters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The file's name as it was given or included.
    pub file: String,
    /// The line of the first character.
    pub line: usize,
    /// Its column.
    pub column: usize,
    /// The line of the last character.
    pub end_line: usize,
    /// The column after the last character.
    pub end_column: usize,
}

#[derive(Debug)]
struct Source {
    name: String,
    text: String,
    /// The offset of each line. Computed when the first place is needed, since most files have no error.
    lines: OnceLock<Vec<u32>>,
}

/// Every file that was read.
#[derive(Debug, Default)]
pub struct Sources {
    files: Vec<Source>,
}

impl Sources {
    /// Adds a file's text. Spans reach up to 4 GiB.
    pub(crate) fn add(&mut self, name: String, text: String) -> FileId {
        let id = FileId(u32::try_from(self.files.len()).unwrap_or(u32::MAX));
        self.files.push(Source { name, text, lines: OnceLock::new() });
        id
    }

    fn file(&self, id: FileId) -> Option<&Source> {
        self.files.get(usize::try_from(id.0).ok()?)
    }

    /// The whole text of a file.
    pub(crate) fn whole(&self, id: FileId) -> &str {
        self.file(id).map_or("", |file| &file.text)
    }

    /// The name of a file.
    pub fn name(&self, id: FileId) -> &str {
        self.file(id).map_or("", |file| &file.name)
    }

    /// The names of all files, in the order in which they were read.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.files.iter().map(|file| file.name.as_str())
    }

    /// The text of a span.
    pub fn text(&self, span: Span) -> &str {
        self.whole(span.file).get(bytes(span)).unwrap_or_default()
    }

    /// The place of a span.
    pub fn place(&self, span: Span) -> Place {
        let (line, column) = self.line_column(span.file, span.start);
        let (end_line, end_column) = self.line_column(span.file, span.end.max(span.start));
        Place { file: self.name(span.file).to_owned(), line, column, end_line, end_column }
    }

    /// `file:line`, which identifies a rule.
    pub(crate) fn file_line(&self, span: Span) -> String {
        format!("{}:{}", self.name(span.file), self.line(span.file, span.start).0)
    }

    /// The line in which a span begins, without the newline, and the part of the span that is on it.
    pub(crate) fn line_of(&self, span: Span) -> (&str, Range<usize>) {
        let text = self.whole(span.file);
        let Range { start, end } = bytes(span);
        let (before, after) = text.split_at_checked(start).unwrap_or((text, ""));
        let first = before.rfind('\n').map_or(0, |newline| newline + 1);
        let last = start + after.find('\n').unwrap_or(after.len());
        let line = text.get(first..last).unwrap_or_default().trim_end_matches('\r');
        let clip = |offset: usize| offset.saturating_sub(first).min(line.len());
        (line, clip(start)..clip(end))
    }

    /// Counts the characters of the line: the cost grows with the line.
    fn line_column(&self, id: FileId, offset: u32) -> (usize, usize) {
        let (line, first) = self.line(id, offset);
        let before = self.whole(id).get(bytes(Span { file: id, start: first, end: offset }));
        (line, before.unwrap_or_default().chars().count() + 1)
    }

    /// The number of the line at an offset, and the line's own offset.
    fn line(&self, id: FileId, offset: u32) -> (usize, u32) {
        let Some(file) = self.file(id) else {
            return (1, 0);
        };
        let lines = file.lines.get_or_init(|| {
            let newlines = file.text.bytes().zip(1u32..).filter(|(byte, _)| *byte == b'\n');
            std::iter::once(0).chain(newlines.map(|(_, next)| next)).collect()
        });
        let line = lines.partition_point(|start| *start <= offset);
        (line, lines.get(line.saturating_sub(1)).copied().unwrap_or_default())
    }
}

fn bytes(span: Span) -> Range<usize> {
    let index = |offset: u32| usize::try_from(offset).unwrap_or(usize::MAX);
    index(span.start)..index(span.end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_counts_lines_and_characters_from_one() {
        let mut sources = Sources::default();
        let file = sources.add("a.conf".into(), "é = 1\r\nuser = \"x\n".into());
        let span = |start, end| Span { file, start, end };
        let place = sources.place(span(3, 4));
        assert_eq!((place.line, place.column, place.end_column), (1, 3, 4));
        let place = sources.place(span(15, 18));
        assert_eq!((place.line, place.column), (2, 8));
        assert_eq!((place.end_line, place.end_column), (3, 1));
        assert_eq!(sources.line_of(span(15, 18)), ("user = \"x", 7..9));
        assert_eq!(sources.line_of(span(0, 2)), ("é = 1", 0..2));
    }
}
