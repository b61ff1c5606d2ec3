//! The `*_listener` scopes and the `listen` scopes in them: the configured sockets and their options.

use portreeve_protocol::Endpoint;

use super::duravip::DuraVip;
use super::nearest::nearest;
use super::pattern::well_formed;
use super::reader::Reader;
use super::source::{Span, Spanned};

/// One `listen` scope.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listener {
    /// The enclosing listener scope as it is written, with its name if it has one.
    pub scope: String,
    /// The endpoint; the place is the name of the `listen` scope.
    pub endpoint: Spanned<Endpoint>,
    /// The name of its socket in LISTEN_FDNAMES, if the `listen` scope has one.
    pub name: Option<String>,
    /// The options of its socket.
    pub socket: SocketOptions,
    /// Whether its address floats between hosts.
    pub duravip: DuraVip,
}

/// The options of a listener's socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SocketOptions {
    /// Open the socket when the broker starts; otherwise only on request of the worker.
    pub enable: bool,
    /// The maximum length of the accept queue. See listen(2).
    pub backlog: u32,
    /// SO_RCVBUF in bytes; 0 lets the system decide. See socket(7).
    pub receive_buffer: u32,
    /// SO_SNDBUF in bytes; 0 lets the system decide.
    pub send_buffer: u32,
    /// TCP_NODELAY. See tcp(7).
    pub no_delay: bool,
    /// The permission bits of a Unix socket's file.
    pub mode: u32,
    /// IP_FREEBIND: listen on an address that no interface has yet. See ip(7).
    pub free_bind: bool,
    /// Whether the start, or a reload, goes on without the listener if its socket cannot be opened.
    pub optional: bool,
}

impl Default for SocketOptions {
    fn default() -> Self {
        SocketOptions {
            enable: true,
            backlog: 500,
            receive_buffer: 0,
            send_buffer: 0,
            no_delay: false,
            mode: 0o660,
            free_bind: false,
            optional: false,
        }
    }
}

/// The highest value that the kernel accepts for a backlog or a buffer size: INT_MAX.
const INT_MAX: u32 = 0x7fff_ffff;

impl SocketOptions {
    fn read(reader: &mut Reader<'_, '_>, outer: &SocketOptions) -> Self {
        SocketOptions {
            enable: reader.boolean("enable").unwrap_or(outer.enable),
            backlog: reader.number("listen_backlog", 1..=INT_MAX).unwrap_or(outer.backlog),
            receive_buffer: reader
                .number("tcp_recv_buffer_size", 0..=INT_MAX)
                .unwrap_or(outer.receive_buffer),
            send_buffer: reader.number("tcp_send_buffer_size", 0..=INT_MAX).unwrap_or(outer.send_buffer),
            no_delay: reader.boolean("disable_nagle_algorithm").unwrap_or(outer.no_delay),
            mode: reader.mode("file_mode").unwrap_or(outer.mode),
            free_bind: reader.boolean("free_bind").unwrap_or(outer.free_bind),
            optional: reader.boolean("optional").unwrap_or(outer.optional),
        }
    }
}

impl Listener {
    /// Whether the broker opens it at start: it is enabled and its address does not float.
    pub fn is_static(&self) -> bool {
        self.socket.enable && !self.duravip.floats()
    }

    /// The name of its socket in LISTEN_FDNAMES and in `status`: its own, or that of the scope without the characters that
    /// LISTEN_FDNAMES cannot hold. See sd_listen_fds_with_names(3).
    pub fn name(&self) -> String {
        let of_scope = || {
            let allowed = |c: char| if c.is_ascii_graphic() && c != ':' { c } else { '_' };
            self.scope.chars().take(MAX_NAME).map(allowed).collect()
        };
        self.name.clone().unwrap_or_else(of_scope)
    }

    /// Reads every `listen` scope of one listener scope.
    pub(crate) fn read_all(mut outer: Reader<'_, '_>) -> Vec<Self> {
        let socket = SocketOptions::read(&mut outer, &SocketOptions::default());
        let duravip = DuraVip::read(&mut outer, &DuraVip::default());
        let mut scope = outer.name().to_owned();
        if let Some(instance) = outer.section.instance {
            scope += &format!(" {:?}", instance.text(outer.sources));
        }
        let mut all = Vec::new();
        for section in outer.scopes("listen") {
            let mut reader = Reader::new(section, outer.sources, outer.problems);
            let socket = SocketOptions::read(&mut reader, &socket);
            let duravip = DuraVip::read(&mut reader, &duravip);
            let name = reader.parsed("name", socket_name).map(|name| name.value);
            options_of_requests(&mut reader);
            reader.misspelt_options();
            let Some(text) = reader.instance("ENDPOINT") else {
                continue;
            };
            if let Some(endpoint) = endpoint(&mut reader, text) {
                all.push(Listener { scope: scope.clone(), endpoint, name, socket, duravip });
            }
        }
        options_of_requests(&mut outer);
        outer.misspelt_options();
        misspelt_listen(&mut outer);
        listen_option(&mut outer);
        all
    }
}

/// The longest name of a socket in LISTEN_FDNAMES: FDNAME_MAX of systemd.
const MAX_NAME: usize = 255;

/// A name as FileDescriptorName= of systemd.socket(5) accepts it.
fn socket_name(text: &str) -> Result<String, String> {
    let allowed = |byte: u8| (byte.is_ascii_graphic() || byte == b' ') && byte != b':';
    match !text.is_empty() && text.len() <= MAX_NAME && text.bytes().all(allowed) {
        true => Ok(text.to_owned()),
        false => Err(format!("write 1 to {MAX_NAME} printable ASCII characters without a colon")),
    }
}

/// Reports options that requests of peers have, and `listen` does not.
fn options_of_requests(reader: &mut Reader<'_, '_>) {
    for name in ["reuse_port", "reuseport", "dual_stack", "device", "defer_accept", "fast_open"] {
        if let Some(option) = reader.section.option(name) {
            let message = format!("{name} has no effect here: only requests have this option");
            let help = "permit the endpoint in the broker scope instead, and set the option in the request";
            reader.problems.warning(option.name, message, help);
        }
    }
}

fn endpoint(reader: &mut Reader<'_, '_>, text: Spanned<String>) -> Option<Spanned<Endpoint>> {
    let span = text.span;
    let refuse = |reader: &mut Reader<'_, '_>, why: String| {
        reader.error(span, format!("{:?} is not a valid endpoint", text.value), why);
        None
    };
    let endpoint = match text.value.parse::<Endpoint>() {
        Ok(endpoint) => endpoint,
        Err(_) if text.value.contains("://") => {
            return refuse(
                reader,
                "write only the address and the port, without the scheme before ://".to_owned(),
            );
        }
        Err(error) => return refuse(reader, error.to_string()),
    };
    match well_formed(&endpoint) {
        Ok(()) => Some(Spanned { value: endpoint, span }),
        Err(error) => refuse(reader, error.to_string()),
    }
}

/// An option `listen` would be skipped like every option of the MTA, and nothing would listen.
fn listen_option(outer: &mut Reader<'_, '_>) {
    if let Some(option) = outer.section.option("listen") {
        let help = "write Listen \"ENDPOINT\" { }, one for each endpoint";
        outer.error(option.name, "listen is a scope, not an option", help);
    }
}

/// The MTA's own scopes are skipped, but a misspelt `Lisen` is reported: nothing would listen.
fn misspelt_listen(outer: &mut Reader<'_, '_>) {
    let sections: Vec<(Span, &str)> = outer
        .section
        .scopes()
        .iter()
        .map(|section| (section.name, outer.sources.text(section.name)))
        .collect();
    for (span, name) in sections {
        if !name.eq_ignore_ascii_case("listen") && nearest(name, ["listen"]).is_some() {
            let message = format!("a listener scope has no scope {name:?}");
            outer.error(span, message, "did you mean listen?");
        }
    }
}
