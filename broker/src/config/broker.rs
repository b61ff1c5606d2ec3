//! The `broker` scope: the control socket, how long things last, and who else may ask for what.

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

/// What `broker` says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Broker {
    /// The control socket's absolute path; without one there is none.
    pub socket: Option<Spanned<PathBuf>>,
    /// The permission bits of its file.
    pub socket_mode: u32,
    /// Its group, a name or a number; root's where none is named.
    pub socket_group: Option<Spanned<String>>,
    /// How long listeners outlive their worker.
    pub retain: Duration,
    /// How long an address stays without renewal where the peer does not say.
    pub lease: Duration,
    /// A kernel without Landlock is fatal.
    pub require_landlock: bool,
    /// The configuration can be read again while the broker runs. Otherwise there is no process that could.
    pub reload: bool,
    /// What becomes of listeners and addresses that a reload no longer permits.
    pub on_narrow: OnNarrow,
    /// What one peer may use up.
    pub quotas: Quotas,
    /// What may be asked for beyond the listener scopes.
    pub permits: Vec<Permit>,
    /// Who may ask over the control socket.
    pub peers: Vec<Peer>,
    /// Where the scope stands, if it does.
    pub span: Option<Span>,
}

/// What a reload does with what it no longer permits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnNarrow {
    /// Stop it, and say so in the log.
    #[default]
    Close,
    /// Let it run until its owner gives it back.
    Keep,
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
            reload: true,
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
            reload: reader.boolean("reload").unwrap_or(default.reload),
            on_narrow: reader.parsed("on_narrow", on_narrow).map_or(default.on_narrow, |found| found.value),
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
