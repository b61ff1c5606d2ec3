//! Every finding of one run, as a person, a log or a program reads it.

use annotate_snippets::{AnnotationKind, Element, Group, Level, Origin, Renderer, Snippet};

use super::diagnostic::{Diagnostic, Severity, escaped};

/// Why a configuration is refused: every error and warning of the run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    diagnostics: Vec<Diagnostic>,
    omitted: usize,
}

/// How a report is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    /// Without colour.
    Plain,
    /// With terminal colours.
    Colour,
}

impl Report {
    pub(crate) fn new(diagnostics: Vec<Diagnostic>, omitted: usize) -> Self {
        Report { diagnostics, omitted }
    }

    /// The findings, those about whole files first, the others by place.
    pub fn diagnostics(&self) -> &[Diagnostic] {
        &self.diagnostics
    }

    /// How many findings there were beyond those kept.
    pub fn omitted(&self) -> usize {
        self.omitted
    }

    /// One line each, for a log: `file:line:column: error: message; help`.
    pub fn one_lines(&self) -> impl Iterator<Item = String> {
        let more = (self.omitted > 0).then(|| format!("error: {}", self.more()));
        self.diagnostics.iter().map(Diagnostic::one_line).chain(more)
    }

    /// Every finding with its line and what is underlined in it.
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
        format!("{} more findings are not shown; put these right first", self.omitted)
    }
}

impl std::fmt::Display for Report {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str(self.render(Style::Plain).trim_end())
    }
}

impl std::error::Error for Report {}

impl From<Diagnostic> for Report {
    fn from(diagnostic: Diagnostic) -> Self {
        Report::new(vec![diagnostic], 0)
    }
}

/// [`Diagnostic::render`] without colour.
impl std::fmt::Display for Diagnostic {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str(&self.render(Style::Plain))
    }
}

impl Diagnostic {
    /// The finding with its line, what is underlined in it, and what would be right.
    pub fn render(&self, style: Style) -> String {
        let level = match self.severity {
            Severity::Error => Level::ERROR,
            Severity::Warning => Level::WARNING,
        };
        let mut group = level.primary_title(escaped(&self.message)).elements(self.shown());
        if !self.help.is_empty() {
            group = group.element(Level::HELP.message(escaped(&self.help)));
        }
        let renderer = match style {
            Style::Plain => Renderer::plain(),
            Style::Colour => Renderer::styled(),
        };
        renderer.render(&[group] as &[Group<'_>])
    }

    fn shown(&self) -> Vec<Element<'_>> {
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
        // Of a cut line the column would be the excerpt's.
        let origin = origin.line(self.line).char_column(self.column);
        vec![origin.into(), snippet.into()]
    }
}
