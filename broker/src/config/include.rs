//! Include directives: reads the main file and everything that it includes into one tree.
//!
//! Only includes at top level and in scopes that the broker reads are followed; those in the MTA's own scopes are
//! ignored. Depth, number and size of the files are bounded, so that includes cannot exhaust memory.

use std::path::Path;

use super::characters;
use super::diagnostic::{Diagnostic, Problems};
use super::files::{Files, MAX_BYTES, Opened, ReadError};
use super::pace::Pace;
use super::parser::parse;
use super::source::{Sources, Span};
use super::tree::{Include, Item};

/// The maximum nesting depth of includes.
pub const MAX_INCLUDE_DEPTH: usize = 16;

/// The maximum number of files of one configuration.
pub const MAX_FILES: usize = 4096;

/// Reads files into sources and trees.
pub(crate) struct Loader<'l, F> {
    pub sources: &'l mut Sources,
    pub problems: &'l mut Problems,
    from: &'l mut F,
    pace: &'l Pace,
    remaining_bytes: u64,
    files: usize,
    /// The files that are being read, outermost first, by device and inode.
    reading: Vec<(u64, u64)>,
}

impl<'l, F: Files> Loader<'l, F> {
    pub fn new(
        sources: &'l mut Sources,
        problems: &'l mut Problems,
        from: &'l mut F,
        pace: &'l Pace,
    ) -> Self {
        Loader { sources, problems, from, pace, remaining_bytes: MAX_BYTES, files: 0, reading: Vec::new() }
    }

    /// Reads the main file, and its includes if `follow` is set.
    pub async fn main(&mut self, path: &Path, follow: bool) -> Vec<Item> {
        let result = match self.from.open(path) {
            Ok(Opened::File { file, identity }) => self.file(path, file, identity, 0, follow).await,
            Ok(Opened::Directory(_)) => Err(ReadError::NotAFile),
            Err(error) => Err(error),
        };
        result.unwrap_or_else(|error| {
            self.refuse(path, None, &error);
            Vec::new()
        })
    }

    async fn file(
        &mut self,
        path: &Path,
        file: F::File,
        identity: (u64, u64),
        depth: usize,
        follow: bool,
    ) -> Result<Vec<Item>, ReadError> {
        let text = self.from.read(file, self.remaining_bytes)?;
        self.remaining_bytes -= u64::try_from(text.len()).unwrap_or_default().min(self.remaining_bytes);
        self.files += 1;
        let id = self.sources.add(path.display().to_string(), text);
        let mut items = parse(id, self.sources.whole(id), depth, self.problems, self.pace).await;
        if follow {
            self.reading.push(identity);
            let directory = path.parent().unwrap_or(Path::new(""));
            self.follow(&mut items, directory, depth, super::is_read).await;
            self.reading.pop();
        }
        Ok(items)
    }

    /// Reads the includes among the items, and those inside scopes for which `enter` is true.
    async fn follow(&mut self, items: &mut [Item], directory: &Path, depth: usize, enter: fn(&str) -> bool) {
        for item in items {
            match item {
                Item::Option(_) => {}
                Item::Scope(scope) if enter(self.sources.text(scope.name)) => {
                    let inner = self.follow(&mut scope.items, directory, depth + 1, super::is_read_within);
                    Box::pin(inner).await;
                }
                Item::Scope(_) => {}
                Item::Include(include) => Box::pin(self.include(include, directory, depth)).await,
            }
            self.pace.pause().await;
        }
    }

    async fn include(&mut self, include: &mut Include, directory: &Path, depth: usize) {
        // Further diagnostics would not be shown.
        if self.problems.is_full() {
            return;
        }
        let place = include.path.span;
        if let Some(found) = characters::in_scalar(include.path, false, self.sources) {
            self.problems.character("the name of the file to include", found);
            return;
        }
        let text = include.path.text(self.sources).into_owned();
        if text.is_empty() {
            self.problems.error(place, "include names no file", "write include \"FILE\"");
            return;
        }
        let path = directory.join(text);
        match self.from.open(&path) {
            Err(error) => self.refuse(&path, Some(place), &error),
            Ok(Opened::File { file, identity }) => {
                include.items = self.included(&path, file, identity, place, depth).await;
            }
            Ok(Opened::Directory(names)) => {
                for name in names {
                    include.items.extend(self.listed(&name, place, depth).await);
                }
            }
        }
    }

    /// Reads a file of an included directory.
    async fn listed(&mut self, path: &Path, place: Span, depth: usize) -> Vec<Item> {
        let error = match self.from.open(path) {
            Ok(Opened::File { file, identity }) => {
                return self.included(path, file, identity, place, depth).await;
            }
            Ok(Opened::Directory(_)) => ReadError::NotAFile,
            Err(error) => error,
        };
        self.refuse(path, Some(place), &error);
        Vec::new()
    }

    async fn included(
        &mut self,
        path: &Path,
        file: F::File,
        identity: (u64, u64),
        place: Span,
        depth: usize,
    ) -> Vec<Item> {
        let limit = if self.reading.contains(&identity) {
            Some((
                format!("{} includes itself", path.display()),
                "remove one of the includes in this chain".to_owned(),
            ))
        } else if self.reading.len() > MAX_INCLUDE_DEPTH {
            Some((
                format!("includes are nested too deeply at {}", path.display()),
                format!("nest at most {MAX_INCLUDE_DEPTH} includes"),
            ))
        } else if self.files >= MAX_FILES {
            Some((
                "too many files are included".to_owned(),
                format!("a configuration may have {MAX_FILES} files"),
            ))
        } else {
            None
        };
        if let Some((message, help)) = limit {
            self.problems.error(place, message, help);
            return Vec::new();
        }
        self.file(path, file, identity, depth, true).await.unwrap_or_else(|error| {
            self.refuse(path, Some(place), &error);
            Vec::new()
        })
    }

    fn refuse(&mut self, path: &Path, place: Option<Span>, error: &ReadError) {
        let (name, help) = (path.display().to_string(), error.remedy(path, place.is_some()));
        match place {
            Some(place) => self.problems.error(place, format!("{name} {error}"), help),
            None => {
                let diagnostic = Diagnostic::about_file(&name, format!("the file {error}"), help);
                match error {
                    ReadError::Open(_) | ReadError::Read(_) | ReadError::NotAFile | ReadError::OutOfReach => {
                        self.problems.unread(diagnostic);
                    }
                    _ => self.problems.file_error(diagnostic),
                }
            }
        }
    }
}
