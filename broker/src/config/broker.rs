//! The `broker` scope: the control socket, lifetimes, quotas, and which peers are allowed which requests.

use std::collections::HashSet;
use std::path::PathBuf;
use std::time::Duration;

use portreeve_protocol::endpoint::MAX_PATH;

use super::peer::Peer;
use super::permit::Permit;
use super::quotas::Quotas;
use super::reader::Reader;
use super::security::absolute;
use super::source::{Span, Spanned};

/// The options of the `broker` scope.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Broker {
    /// The absolute path of the control socket; `None`: no control socket.
    pub socket: Option<Spanned<PathBuf>>,
    /// The permission bits of the control socket's file.
    pub socket_mode: u32,
    /// The group of the control socket's file, a name or a number; `None`: root's group.
    pub socket_group: Option<Spanned<String>>,
    /// How long the broker keeps a dead worker's listeners open for the next worker.
    pub retain: Duration,
    /// The lifetime of a lease if the request names none.
    pub lease: Duration,
    /// Whether the broker refuses to start on a kernel without Landlock.
    pub require_landlock: bool,
    /// Whether the broker refuses to start on a kernel without seccomp.
    pub require_seccomp: bool,
    /// Whether the configuration can be reloaded. If not, no reader process is started.
    pub reload: bool,
    /// The least severe lines that the log shows.
    pub log_level: LogLevel,
    /// What happens to listeners and addresses that a new configuration no longer allows.
    pub on_narrow: OnNarrow,
    /// The limits of each peer.
    pub quotas: Quotas,
    /// What peers can be allowed besides the configured listeners.
    pub permits: Vec<Permit>,
    /// Which users and groups are allowed which requests over the control socket.
    pub peers: Vec<Peer>,
    /// The place of the scope, if the configuration has one.
    pub span: Option<Span>,
}

/// What a reload does with listeners and addresses that are no longer allowed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnNarrow {
    /// Close them and log it.
    #[default]
    Close,
    /// Keep them until their owner gives them up.
    Keep,
}

/// The severity of a log line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogLevel {
    /// Something failed.
    Error,
    /// Something was refused, or needs attention.
    Warn,
    /// Something changed.
    #[default]
    Info,
    /// Everything else.
    Debug,
}

impl LogLevel {
    /// The word in the configuration.
    pub fn word(self) -> &'static str {
        match self {
            LogLevel::Error => "error",
            LogLevel::Warn => "warn",
            LogLevel::Info => "info",
            LogLevel::Debug => "debug",
        }
    }
}

impl Default for Broker {
    fn default() -> Self {
        Broker {
            socket: None,
            socket_mode: 0o660,
            socket_group: None,
            retain: Duration::from_secs(30),
            lease: Duration::from_secs(10),
            require_landlock: false,
            require_seccomp: false,
            reload: true,
            log_level: LogLevel::default(),
            on_narrow: OnNarrow::default(),
            quotas: Quotas::default(),
            permits: Vec::new(),
            peers: Vec::new(),
            span: None,
        }
    }
}

impl Broker {
    pub(crate) fn read(mut reader: Reader<'_, '_>) -> Self {
        reader.no_instance();
        let default = Broker::default();
        let permits: Vec<Permit> = reader
            .scopes("permit")
            .filter_map(|section| Permit::read(Reader::new(section, reader.sources, reader.problems)))
            .collect();
        let names: HashSet<String> = reader
            .scopes("permit")
            .filter_map(|section| Some(section.instance?.text(reader.sources).into_owned()))
            .collect();
        let peers = reader
            .scopes("peer")
            .filter_map(|section| Peer::read(Reader::new(section, reader.sources, reader.problems), &names))
            .collect();
        let broker = Broker {
            socket: reader.parsed("socket", socket),
            socket_mode: reader.mode("socket_mode").unwrap_or(default.socket_mode),
            socket_group: reader.text("socket_group"),
            retain: reader.seconds("retain", 0..=86_400).unwrap_or(default.retain),
            lease: reader.seconds("lease", 3..=86_400).unwrap_or(default.lease),
            require_landlock: reader.boolean("require_landlock").unwrap_or(default.require_landlock),
            require_seccomp: reader.boolean("require_seccomp").unwrap_or(default.require_seccomp),
            reload: reader.boolean("reload").unwrap_or(default.reload),
            log_level: reader
                .parsed("log_level", log_level)
                .map_or(default.log_level, |spanned| spanned.value),
            on_narrow: reader
                .parsed("on_narrow", on_narrow)
                .map_or(default.on_narrow, |spanned| spanned.value),
            quotas: Quotas::read(&mut reader),
            permits,
            peers,
            span: Some(reader.section.name),
        };
        reader.no_other_options();
        reader.no_other_scopes();
        broker
    }
}

fn socket(text: &str) -> Result<PathBuf, String> {
    if text.len() > MAX_PATH {
        return Err(format!("a Unix socket's path has at most {MAX_PATH} bytes"));
    }
    absolute(text)
}

fn on_narrow(text: &str) -> Result<OnNarrow, String> {
    match text.to_ascii_lowercase().as_str() {
        "close" => Ok(OnNarrow::Close),
        "keep" => Ok(OnNarrow::Keep),
        _ => Err("write close or keep".to_owned()),
    }
}

fn log_level(text: &str) -> Result<LogLevel, String> {
    let levels = [LogLevel::Error, LogLevel::Warn, LogLevel::Info, LogLevel::Debug];
    let level = levels.into_iter().find(|level| level.word() == text.to_ascii_lowercase());
    level.ok_or_else(|| "write error, warn, info or debug".to_owned())
}
