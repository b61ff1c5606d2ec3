//! [`Config`]: all scopes of a configuration, and the functions that load it.

use std::ops::Range;
use std::path::Path;

use portreeve_protocol::Endpoint;

use super::binding::Binding;
use super::broker::Broker;
use super::bundle::{Bundle, Recorder, Replay};
use super::check;
use super::check_duravip;
use super::cluster::Cluster;
use super::diagnostic::{Diagnostic, Problems, Severity};
use super::files::{Disk, Files, Trust};
use super::include::Loader;
use super::lexer::unquote;
use super::listener::Listener;
use super::momentum2;
use super::pace::{Pace, without_pauses};
use super::parser::parse;
use super::reader::Reader;
use super::report::Report;
use super::section::{Section, Top};
use super::security::Security;
use super::source::{Place, Sources, Span, Spanned};
use super::top_level;
use super::tree::Item;
use super::worker::Worker;

/// A configuration without errors.
#[derive(Debug, Default)]
pub struct Config {
    /// The `security` scope.
    pub security: Security,
    /// Every `listen` scope of every `*_listener` scope, in the order of the files.
    pub listeners: Vec<Listener>,
    /// The `binding` scopes.
    pub bindings: Vec<Binding>,
    /// The `cluster` scope.
    pub cluster: Cluster,
    /// The `broker` scope.
    pub broker: Broker,
    /// The `worker` scope, if there is one.
    pub worker: Option<Worker>,
    /// The scopes and options at top level that belong to the MTA and were skipped, each with its first place.
    pub skipped: Vec<Spanned<String>>,
    pub(super) sources: Sources,
}

impl Config {
    /// `file:line:column` of a span.
    pub fn place(&self, span: Span) -> String {
        let Place { file, line, column, .. } = self.sources.place(span);
        format!("{file}:{line}:{column}")
    }

    /// The static listener at this endpoint.
    pub fn static_listener(&self, endpoint: &Endpoint) -> Option<&Listener> {
        self.listeners.iter().find(|listener| listener.is_static() && listener.endpoint.value == *endpoint)
    }

    /// The files that were read.
    pub fn sources(&self) -> &Sources {
        &self.sources
    }

    /// The span of a part of a value, given as a byte range of the value, so that an error inside a text can be
    /// underlined.
    pub fn within(&self, value: &Spanned<String>, part: Range<usize>) -> Span {
        let raw = self.sources.text(value.span);
        let quoted = raw.starts_with('"');
        // The offset in the file of a byte of the value; for its end, the offset of the closing quote.
        let offset = |byte: usize| {
            let mut seen = 0;
            for (at, c) in unquote(raw) {
                if seen >= byte {
                    return at;
                }
                seen += c.len_utf8();
            }
            raw.len() - usize::from(quoted && raw.len() > 1)
        };
        let place = |byte| value.span.start + u32::try_from(offset(byte)).unwrap_or_default();
        Span { start: place(part.start), end: place(part.end.max(part.start)), ..value.span }
    }

    /// An error about a place, for checks outside this module.
    pub fn error(&self, span: Span, message: impl Into<String>, help: impl Into<String>) -> Diagnostic {
        Diagnostic::at(&self.sources, span, Severity::Error, message, help)
    }

    /// A note about a place, for checks outside this module.
    pub fn note(&self, span: Span, message: impl Into<String>, help: impl Into<String>) -> Diagnostic {
        Diagnostic::at(&self.sources, span, Severity::Note, message, help)
    }

    /// A warning about a place, for checks outside this module.
    pub fn warning(&self, span: Span, message: impl Into<String>, help: impl Into<String>) -> Diagnostic {
        Diagnostic::at(&self.sources, span, Severity::Warning, message, help)
    }
}

/// Reads a configuration file and what it includes. Diagnostics returned with a configuration are warnings.
pub fn load(path: &Path, trust: Trust) -> Result<(Config, Vec<Diagnostic>), Report> {
    without_errors(examine(path, trust))
}

/// Reads a configuration file like [`load`], but also returns a configuration that has errors, for further checks. Such a
/// configuration may lack scopes and options. It is `None` if the syntax is wrong.
pub fn examine(path: &Path, trust: Trust) -> (Option<Config>, Report) {
    without_pauses(async |pace| examine_in(path, &mut Disk(trust), pace).await)
}

/// Reads a configuration file like [`load`], and records everything that was read for [`replay`].
pub fn record(path: &Path, trust: Trust) -> (Result<(Config, Vec<Diagnostic>), Report>, Bundle) {
    let mut files = Recorder::new(Disk(trust));
    let examined = without_pauses(async |pace| examine_in(path, &mut files, pace).await);
    (without_errors(examined), files.finish())
}

/// Reads a configuration from what [`record`] recorded, with the same result and without opening a file.
pub async fn replay(path: &Path, bundle: &Bundle, pace: &Pace) -> Result<(Config, Vec<Diagnostic>), Report> {
    without_errors(examine_in(path, &mut Replay::new(bundle), pace).await)
}

async fn examine_in(path: &Path, files: &mut impl Files, pace: &Pace) -> (Option<Config>, Report) {
    let (mut sources, mut problems) = (Sources::default(), Problems::default());
    let items = Loader::new(&mut sources, &mut problems, files, pace).main(path, true).await;
    let examined = typed(&items, sources, problems, pace).await;
    pace.drop_each(items).await;
    examined
}

fn without_errors(examined: (Option<Config>, Report)) -> Result<(Config, Vec<Diagnostic>), Report> {
    match examined {
        (Some(config), report) if !report.refuses() => Ok((config, report.diagnostics)),
        (_, report) => Err(report),
    }
}

/// Reads a configuration from a text; includes are not followed.
pub fn parse_text(name: &str, text: &str) -> Result<(Config, Vec<Diagnostic>), Report> {
    let (mut sources, mut problems) = (Sources::default(), Problems::default());
    let items = text_items(name, text, &mut sources, &mut problems);
    without_errors(without_pauses(async |pace| typed(&items, sources, problems, pace).await))
}

/// Checks the syntax of one file only; includes are not followed.
pub fn check_syntax(path: &Path, trust: Trust) -> Result<(), Report> {
    let (mut sources, mut problems) = (Sources::default(), Problems::default());
    let files = &mut Disk(trust);
    without_pauses(async |pace| {
        Loader::new(&mut sources, &mut problems, files, pace).main(path, false).await
    });
    syntax(&sources, problems)
}

/// Like [`check_syntax`], for a text.
pub fn check_syntax_text(name: &str, text: &str) -> Result<(), Report> {
    let (mut sources, mut problems) = (Sources::default(), Problems::default());
    text_items(name, text, &mut sources, &mut problems);
    syntax(&sources, problems)
}

fn text_items(name: &str, text: &str, sources: &mut Sources, problems: &mut Problems) -> Vec<Item> {
    let file = sources.add(name.to_owned(), text.to_owned());
    without_pauses(async |pace| parse(file, sources.whole(file), 0, problems, pace).await)
}

fn syntax(sources: &Sources, problems: Problems) -> Result<(), Report> {
    if !problems.any_error() {
        return Ok(());
    }
    Err(problems.finish(sources))
}

async fn typed(
    items: &[Item],
    sources: Sources,
    mut problems: Problems,
    pace: &Pace,
) -> (Option<Config>, Report) {
    // Interpreting a broken tree would only produce misleading messages.
    if problems.any_error() {
        return (None, problems.finish(&sources));
    }
    let mut config = Config::default();
    momentum2::refuse(items, &sources, &mut problems);
    let mut top = Top::default();
    top.add(items, &sources, pace).await;
    let (sections, skipped) = top.into_parts();
    for section in sections {
        config.read(&section, &sources, &mut problems, pace).await;
    }
    check::config(&config, &sources, &mut problems);
    pace.pause().await;
    check_duravip::config(&mut config, &sources, &mut problems, pace).await;
    check::wildcards(&config.listeners, &sources, &mut problems);
    config.skipped = top_level::check(items, skipped, &sources, &mut problems);
    pace.pause().await;
    let report = problems.finish(&sources);
    config.sources = sources;
    (Some(config), report)
}

impl Config {
    async fn read(&mut self, section: &Section<'_>, sources: &Sources, problems: &mut Problems, pace: &Pace) {
        let is = |name| section.is(name, sources);
        let mut reader = Reader::new(section, sources, problems);
        if is("security") {
            self.security = Security::read(reader);
        } else if is("broker") {
            self.broker = Broker::read(reader);
        } else if is("worker") {
            self.worker = Worker::read(reader);
        } else if is("cluster") {
            self.cluster = Cluster::read(reader);
        } else if is("binding") {
            self.bindings.extend(Binding::read(reader));
        } else if is("binding_group") {
            for section in reader.scopes("binding") {
                self.bindings.extend(Binding::read(Reader::new(section, sources, reader.problems)));
                pace.pause().await;
            }
        } else {
            self.listeners.extend(Listener::read_all(reader));
        }
        pace.pause().await;
    }
}
