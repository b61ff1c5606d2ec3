//! The options of a listener, and a listener as one item of a batch; the same for both clients.

use portreeve_protocol::message::ListenMode;
use portreeve_protocol::{Endpoint, Text, message};

use crate::build;
use crate::error::Error;

/// The options of a listener's socket. An option that is not set has the value that the broker's configuration has for the
/// endpoint.
///
/// ```
/// use portreeve::ListenOptions;
///
/// let options = ListenOptions::new().backlog(1024).reuse_port(true).device("eth0");
/// assert_eq!(options.device.as_deref(), Some("eth0"));
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct ListenOptions {
    /// Maximum number of connections that wait to be accepted; the kernel caps it at net.core.somaxconn. See listen(2). For a
    /// Unix socket, on which this library calls listen(2), it is 500 if it is not set.
    pub backlog: Option<u32>,
    /// SO_REUSEPORT: several sockets may share the endpoint. See socket(7).
    pub reuse_port: bool,
    /// Accept IPv4 as well on an IPv6 wildcard: IPV6_V6ONLY is off. See ipv6(7).
    pub dual_stack: bool,
    /// IP_FREEBIND: bind an address that this host does not have yet. See ip(7).
    pub free_bind: bool,
    /// SO_BINDTODEVICE: receive packets of this interface only. See socket(7).
    pub device: Option<String>,
    /// SO_RCVBUF in bytes; 0 leaves the size to the kernel.
    pub receive_buffer: Option<u32>,
    /// SO_SNDBUF in bytes; 0 leaves the size to the kernel.
    pub send_buffer: Option<u32>,
    /// TCP_NODELAY, which accepted connections inherit. See tcp(7).
    pub no_delay: Option<bool>,
    /// TCP_DEFER_ACCEPT in seconds: a connection is accepted when its first data has arrived. 0 turns it off.
    pub defer_accept: u32,
    /// TCP_FASTOPEN: maximum number of connections whose handshake is not complete. 0 turns it off.
    pub fast_open: u32,
    /// The permission bits of a Unix socket's file.
    pub mode: Option<u32>,
    /// The broker keeps no copy of the socket: its endpoint is free as soon as this program has closed it, and the listener ends
    /// with the session. Needs a permit with `unkept = true`, and a broker of this release.
    pub unkept: bool,
    /// The request stands for a bind(2) of another program. The broker's audit line says so; there is no other effect.
    pub intercepted: bool,
}

impl ListenOptions {
    /// Returns options with every value unset.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets [`backlog`](Self::backlog).
    #[must_use]
    pub fn backlog(self, connections: u32) -> Self {
        Self { backlog: Some(connections), ..self }
    }

    /// Sets [`reuse_port`](Self::reuse_port).
    #[must_use]
    pub fn reuse_port(self, on: bool) -> Self {
        Self { reuse_port: on, ..self }
    }

    /// Sets [`dual_stack`](Self::dual_stack).
    #[must_use]
    pub fn dual_stack(self, on: bool) -> Self {
        Self { dual_stack: on, ..self }
    }

    /// Sets [`free_bind`](Self::free_bind).
    #[must_use]
    pub fn free_bind(self, on: bool) -> Self {
        Self { free_bind: on, ..self }
    }

    /// Sets [`device`](Self::device). An interface name has at most 15 bytes; a request with a longer one fails with
    /// [`Error::Request`].
    #[must_use]
    pub fn device(self, interface: impl Into<String>) -> Self {
        Self { device: Some(interface.into()), ..self }
    }

    /// Sets [`receive_buffer`](Self::receive_buffer).
    #[must_use]
    pub fn receive_buffer(self, bytes: u32) -> Self {
        Self { receive_buffer: Some(bytes), ..self }
    }

    /// Sets [`send_buffer`](Self::send_buffer).
    #[must_use]
    pub fn send_buffer(self, bytes: u32) -> Self {
        Self { send_buffer: Some(bytes), ..self }
    }

    /// Sets [`no_delay`](Self::no_delay).
    #[must_use]
    pub fn no_delay(self, on: bool) -> Self {
        Self { no_delay: Some(on), ..self }
    }

    /// Sets [`defer_accept`](Self::defer_accept).
    #[must_use]
    pub fn defer_accept(self, seconds: u32) -> Self {
        Self { defer_accept: seconds, ..self }
    }

    /// Sets [`fast_open`](Self::fast_open).
    #[must_use]
    pub fn fast_open(self, connections: u32) -> Self {
        Self { fast_open: connections, ..self }
    }

    /// Sets [`mode`](Self::mode).
    #[must_use]
    pub fn mode(self, bits: u32) -> Self {
        Self { mode: Some(bits), ..self }
    }

    /// Sets [`unkept`](Self::unkept): with `false` the broker keeps no copy of the socket. All listeners of a batch must have the
    /// same value; a request with different ones fails with [`Error::Request`].
    #[must_use]
    pub fn kept(self, kept: bool) -> Self {
        Self { unkept: !kept, ..self }
    }

    /// Sets [`intercepted`](Self::intercepted). As with [`kept`](Self::kept), it is the same for all listeners of a batch.
    #[must_use]
    pub fn intercepted(self, intercepted: bool) -> Self {
        Self { intercepted, ..self }
    }

    pub(crate) fn listen_mode(&self) -> ListenMode {
        ListenMode { kept: !self.unkept, intercepted: self.intercepted }
    }

    pub(crate) fn to_wire(&self) -> Result<message::ListenOptions, Error> {
        let device = match &self.device {
            Some(interface) => build::text("the interface name", interface)?,
            None => Text::default(),
        };
        Ok(message::ListenOptions {
            backlog: self.backlog,
            reuse_port: self.reuse_port,
            dual_stack: self.dual_stack,
            free_bind: self.free_bind,
            device,
            receive_buffer: self.receive_buffer,
            send_buffer: self.send_buffer,
            no_delay: self.no_delay,
            defer_accept: self.defer_accept,
            fast_open: self.fast_open,
            mode: self.mode,
        })
    }
}

/// One listener of a batch: see `Client::listen_many`.
///
/// ```
/// use portreeve::{Listen, ListenOptions};
///
/// let submission = Listen::new("*:587".parse()?).options(ListenOptions::new().backlog(1024));
/// assert_eq!(submission.endpoint.to_string(), "*:587");
/// # Ok::<(), portreeve::EndpointError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Listen {
    /// The endpoint.
    pub endpoint: Endpoint,
    /// The options of its socket.
    pub options: ListenOptions,
}

impl Listen {
    /// A listener on this endpoint with the default options.
    #[must_use]
    pub fn new(endpoint: Endpoint) -> Self {
        Self { endpoint, options: ListenOptions::new() }
    }

    /// Sets [`options`](Self::options).
    #[must_use]
    pub fn options(self, options: ListenOptions) -> Self {
        Self { options, ..self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_option_reaches_the_message() {
        let options = ListenOptions::new()
            .backlog(1)
            .reuse_port(true)
            .dual_stack(true)
            .free_bind(true)
            .device("eth0")
            .receive_buffer(2)
            .send_buffer(3)
            .no_delay(false)
            .defer_accept(4)
            .fast_open(5)
            .mode(0o660);
        let message = message::ListenOptions {
            backlog: Some(1),
            reuse_port: true,
            dual_stack: true,
            free_bind: true,
            device: Text::truncated("eth0"),
            receive_buffer: Some(2),
            send_buffer: Some(3),
            no_delay: Some(false),
            defer_accept: 4,
            fast_open: 5,
            mode: Some(0o660),
        };
        assert_eq!(options.to_wire().ok(), Some(message));
        let mode = ListenOptions::new().kept(false).intercepted(true).listen_mode();
        assert_eq!(mode, ListenMode { kept: false, intercepted: true });
        assert_eq!(ListenOptions::new().listen_mode(), ListenMode::default());
        assert_eq!(ListenOptions::new().to_wire().ok(), Some(message::ListenOptions::default()));
    }

    #[test]
    fn an_interface_name_that_is_too_long_is_named_in_the_error() {
        let error =
            ListenOptions::new().device("an-interface-name").to_wire().map_err(|error| error.to_string());
        let expected = "cannot send the request: the interface name \"an-interface-name\" is too long: it has 17 bytes, \
                        at most 15 are allowed";
        assert_eq!(error, Err(expected.to_owned()));
    }
}
