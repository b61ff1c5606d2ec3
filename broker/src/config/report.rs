//! All diagnostics of one run: as text for a person, as lines for a log, as JSON for a program.

use annotate_snippets::{AnnotationKind, Element, Group, Level, Origin, Renderer, Snippet};

use super::diagnostic::{Diagnostic, MAX_DIAGNOSTICS, Severity, escaped};

/// All diagnostics of a run. If one of them is an error, the configuration is refused.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    pub(super) diagnostics: Vec<Diagnostic>,
    pub(super) omitted: usize,
    pub(super) unread: bool,
}

/// How a report is displayed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    /// Without colour.
    Plain,
    /// With terminal colours.
    Colour,
}

impl Report {
    /// Adds the diagnostics of later steps about the same files, and sorts all by place. If there are too many, errors are
    /// kept first.
    pub(crate) fn extend(&mut self, diagnostics: impl IntoIterator<Item = Diagnostic>) {
        self.diagnostics.extend(diagnostics);
        self.diagnostics.sort_by_key(|diagnostic| diagnostic.severity != Severity::Error);
        self.omitted += self.diagnostics.len().saturating_sub(MAX_DIAGNOSTICS);
        self.diagnostics.truncate(MAX_DIAGNOSTICS);
        self.diagnostics.sort_by(|a, b| a.order().cmp(&b.order()));
    }

    /// Whether the configuration is refused.
    pub fn refuses(&self) -> bool {
        self.diagnostics.iter().any(|diagnostic| diagnostic.severity == Severity::Error)
    }

    /// Whether anything is at least a warning.
    pub fn warns(&self) -> bool {
        self.diagnostics.iter().any(|diagnostic| diagnostic.severity != Severity::Note)
    }

    /// Whether the main file is missing, unreadable, or not a regular file.
    pub fn is_unread(&self) -> bool {
        self.unread
    }

    /// The diagnostics: those about whole files first, the others by place.
    pub fn diagnostics(&self) -> &[Diagnostic] {
        &self.diagnostics
    }

    /// The number of diagnostics beyond those kept.
    pub fn omitted(&self) -> usize {
        self.omitted
    }

    /// One line each, for a log: `file:line:column: error: message; help`.
    pub fn one_lines(&self) -> impl Iterator<Item = String> {
        let more = (self.omitted > 0).then(|| format!("error: {}", self.more()));
        self.diagnostics.iter().map(Diagnostic::one_line).chain(more)
    }

    /// Every diagnostic with its line and the underlined part.
    pub fn render(&self, style: Style) -> String {
        let mut out = String::new();
        for diagnostic in &self.diagnostics {
            out += &diagnostic.render(style);
            out += "\n\n";
        }
        if self.omitted > 0 {
            out += &self.more();
            out.push('\n');
        }
        out
    }

    fn more(&self) -> String {
        format!("{} more are not shown; correct these first", self.omitted)
    }
}

impl std::fmt::Display for Report {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str(self.render(Style::Plain).trim_end())
    }
}

impl std::error::Error for Report {}

impl From<Vec<Diagnostic>> for Report {
    fn from(diagnostics: Vec<Diagnostic>) -> Self {
        Report { diagnostics, ..Report::default() }
    }
}

impl From<Diagnostic> for Report {
    fn from(diagnostic: Diagnostic) -> Self {
        Report { diagnostics: vec![diagnostic], ..Report::default() }
    }
}

/// [`Diagnostic::render`] without colour.
impl std::fmt::Display for Diagnostic {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str(&self.render(Style::Plain))
    }
}

impl Diagnostic {
    /// The diagnostic with its line, the underlined part, and the remedy.
    pub fn render(&self, style: Style) -> String {
        let level = match self.severity {
            Severity::Error => Level::ERROR,
            Severity::Warning => Level::WARNING,
            Severity::Note => Level::NOTE,
        };
        let mut group = level.primary_title(escaped(&self.message)).elements(self.elements());
        if !self.help.is_empty() {
            group = group.element(Level::HELP.message(escaped(&self.help)));
        }
        let renderer = match style {
            Style::Plain => Renderer::plain(),
            Style::Colour => Renderer::styled(),
        };
        renderer.render(&[group] as &[Group<'_>])
    }

    /// The order in which diagnostics are shown: those about whole files, then the others by place.
    fn order(&self) -> (bool, &str, usize, usize) {
        (self.line > 0, &self.file, self.line, self.column)
    }

    fn elements(&self) -> Vec<Element<'_>> {
        let origin = Origin::path(escaped(&self.file));
        if self.line == 0 {
            return vec![origin.into()];
        }
        let excerpt = &self.excerpt;
        let snippet = Snippet::source(excerpt.text.as_str())
            .line_start(self.line)
            .annotation(AnnotationKind::Primary.span(excerpt.start..excerpt.end));
        if excerpt.whole {
            return vec![snippet.path(escaped(&self.file)).into()];
        }
        // In a truncated line the column would be that of the excerpt.
        let origin = origin.line(self.line).char_column(self.column);
        vec![origin.into(), snippet.into()]
    }
}
