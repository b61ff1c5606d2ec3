//! The `worker` scope: the program that the launcher starts.

use std::path::Path;
use std::str::FromStr as _;
use std::time::Duration;

use nix::sys::signal::Signal;
use portreeve_protocol::Endpoint;
use portreeve_protocol::endpoint::EndpointError;

use super::limit::Limit;
use super::reader::Reader;
use super::source::{Span, Spanned};

/// The options of the `worker` scope.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Worker {
    /// The program's absolute path and its arguments; never empty.
    pub command: Vec<Spanned<String>>,
    /// Environment variables, besides those that the broker sets.
    pub environment: Vec<(Spanned<String>, Spanned<String>)>,
    /// Its resource limits.
    pub limits: Vec<Spanned<Limit>>,
    /// Its file mode creation mask.
    pub umask: u32,
    /// Who answers its bind(2).
    pub bind: Bind,
    /// The static listener that is its standard input.
    pub stdin: Option<Spanned<Endpoint>>,
    /// Whether the worker is restarted when it ends.
    pub restart: bool,
    /// A worker that ran at least this long is restarted at once; after a shorter run the restart is delayed, longer each
    /// time.
    pub stable_after: Duration,
    /// The signal that tells the worker to exit.
    pub stop_signal: Signal,
    /// How long the worker may take to end after that signal before it is killed.
    pub stop_timeout: Duration,
    /// How long the worker may run without its broker before it is stopped.
    pub orphan_timeout: Duration,
    /// Whether the processes that a worker has left are ended before the next worker starts.
    pub end_descendants: bool,
    /// The place of the scope.
    pub span: Span,
}

/// Who answers bind(2) of the worker.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Bind {
    /// The kernel.
    #[default]
    Direct,
    /// The broker, as far as policy permits: the worker gets neither a channel nor listeners as descriptors.
    Brokered,
}

impl Bind {
    /// Its name in the configuration.
    pub fn name(self) -> &'static str {
        match self {
            Bind::Direct => "direct",
            Bind::Brokered => "brokered",
        }
    }
}

impl Worker {
    pub(crate) fn read(mut reader: Reader<'_, '_>) -> Option<Self> {
        reader.no_instance();
        let command = command(&mut reader);
        let worker = Worker {
            command,
            environment: environment(&mut reader),
            limits: limits(&mut reader),
            umask: reader.mode("umask").unwrap_or(0o022),
            bind: reader.parsed("bind", bind).map_or(Bind::default(), |bind| bind.value),
            stdin: reader
                .parsed("stdin", |text| text.parse().map_err(|error: EndpointError| error.to_string())),
            restart: reader.boolean("restart").unwrap_or(true),
            stable_after: reader.seconds("stable_after", 0..=86_400).unwrap_or(Duration::from_secs(60)),
            stop_signal: reader
                .parsed("stop_signal", stop_signal)
                .map_or(Signal::SIGTERM, |signal| signal.value),
            stop_timeout: reader.seconds("stop_timeout", 0..=3_600).unwrap_or(Duration::from_secs(30)),
            orphan_timeout: reader.seconds("orphan_timeout", 0..=3_600).unwrap_or(Duration::ZERO),
            end_descendants: reader.boolean("end_descendants").unwrap_or(false),
            span: reader.section.name,
        };
        if let (Bind::Brokered, Some(stdin)) = (worker.bind, &worker.stdin) {
            let message = "bind = brokered passes no listener to the worker, and stdin would";
            reader.error(stdin.span, message, "remove stdin, or bind = brokered");
        }
        reader.no_other_options();
        reader.no_other_scopes();
        Some(worker).filter(|worker| !worker.command.is_empty())
    }
}

fn command(reader: &mut Reader<'_, '_>) -> Vec<Spanned<String>> {
    let list = reader.list("command");
    // A mistake in the list has been reported already.
    if list.is_none() && reader.section.option("command").is_some() {
        return Vec::new();
    }
    let command = list.unwrap_or_default();
    match command.first() {
        Some(program) if Path::new(&program.value).is_absolute() => {}
        Some(program) => {
            let message = format!("the program {:?} is not an absolute path", program.value);
            reader.error(program.span, message, "write its absolute path");
            return Vec::new();
        }
        None => {
            let place = reader.section.option("command");
            let place = place.map_or(reader.section.name, |option| option.value.span());
            reader.error(
                place,
                "the worker has no command",
                "add command = ( /PATH/OF/PROGRAM \"ARGUMENT\" ) to it, or remove the scope",
            );
        }
    }
    command
}

fn bind(text: &str) -> Result<Bind, String> {
    let known = [Bind::Direct, Bind::Brokered].into_iter().find(|bind| bind.name() == text);
    known.ok_or_else(|| "write direct or brokered".to_owned())
}

/// A signal by its name in signal(7), with or without SIG, or by its number.
fn stop_signal(text: &str) -> Result<Signal, String> {
    let upper = text.to_ascii_uppercase();
    let name = if upper.starts_with("SIG") { upper } else { format!("SIG{upper}") };
    let signal = match text.parse::<i32>() {
        Ok(number) => Signal::try_from(number).ok(),
        Err(_) => Signal::from_str(&name).ok(),
    };
    signal.ok_or_else(|| "write a name as in signal(7), for example SIGQUIT".to_owned())
}

fn environment(reader: &mut Reader<'_, '_>) -> Vec<(Spanned<String>, Spanned<String>)> {
    let environment = reader.dict("environment").unwrap_or_default();
    for (key, _) in &environment {
        if key.value.is_empty() || key.value.contains('=') {
            let message = format!("{:?} is not the name of an environment variable", key.value);
            reader.error(key.span, message, "write a name that is not empty and has no =");
        }
    }
    environment
}

fn limits(reader: &mut Reader<'_, '_>) -> Vec<Spanned<Limit>> {
    let mut limits = Vec::new();
    for (key, value) in reader.dict("limit").unwrap_or_default() {
        let span = key.span.to(value.span);
        match Limit::parse(&key.value, &value.value) {
            Ok(limit) => limits.push(Spanned { value: limit, span }),
            Err(help) => {
                let message = format!("{} = {} is not a resource limit", key.value, value.value);
                reader.error(span, message, help);
            }
        }
    }
    limits
}
