//! The `engine` scope of `cluster`: the key-value store in which the nodes of a cluster agree.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::path::PathBuf;

use portreeve_protocol::cluster::{MAX_ENGINE_ENDPOINTS, MAX_ENGINE_USER, MAX_FILE_PATH};

use super::coordinator::name;
use super::reader::Reader;
use super::security::absolute;
use super::source::Spanned;
use super::tree::Value;

/// The port of an endpoint whose URL has none: that of etcd's clients.
const DEFAULT_PORT: u16 = 2379;

/// The options of the `engine` scope.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Engine {
    /// The URLs of the members; never empty.
    pub endpoints: Vec<Spanned<EngineUrl>>,
    /// The certificates of the authorities that sign the members' certificates; present if an endpoint is https.
    pub ca: Option<Spanned<PathBuf>>,
    /// This node's own certificate.
    pub certificate: Option<Spanned<PathBuf>>,
    /// Its private key; present if there is a certificate.
    pub key: Option<Spanned<PathBuf>>,
    /// The engine's user.
    pub user: Option<Spanned<String>>,
    /// A file with that user's password; present if there is a user.
    pub password_file: Option<Spanned<PathBuf>>,
    /// Whether the coordinator compacts the engine's history.
    pub compaction: bool,
}

/// The URL of one member.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct EngineUrl {
    /// Whether it is https.
    secure: bool,
    /// The host as the URL has it: a name in lower case, an IPv4 address, or an IPv6 address in brackets.
    host: String,
    port: u16,
}

impl fmt::Display for EngineUrl {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.secure { "https" } else { "http" };
        write!(out, "{scheme}://{}:{}", self.host, self.port)
    }
}

impl Engine {
    pub(crate) fn read(mut reader: Reader<'_, '_>) -> Self {
        reader.no_instance();
        let engine = Engine {
            endpoints: endpoints(&mut reader),
            ca: reader.parsed("ca", file),
            certificate: reader.parsed("certificate", file),
            key: reader.parsed("key", file),
            user: reader.parsed("user", |text| name(text, MAX_ENGINE_USER)),
            password_file: reader.parsed("password_file", file),
            compaction: reader.boolean("compaction").unwrap_or(true),
        };
        tls(&mut reader, &engine);
        needs_each_other(&mut reader, "certificate", "key");
        needs_each_other(&mut reader, "user", "password_file");
        reader.no_other_options();
        reader.no_other_scopes();
        engine
    }
}

fn endpoints(reader: &mut Reader<'_, '_>) -> Vec<Spanned<EngineUrl>> {
    let endpoints = reader.parsed_list("endpoints", url);
    let place = match reader.section.option("endpoints").map(|option| &option.value) {
        None => Some(reader.section.name),
        Some(Value::List { span, items }) if items.is_empty() => Some(*span),
        Some(_) => None,
    };
    if let Some(place) = place {
        let help = "add endpoints = ( \"https://HOST:2379\" ) to it, with every member of the engine";
        reader.error(place, "the engine has no endpoints", help);
    }
    if let Some(surplus) = endpoints.get(MAX_ENGINE_ENDPOINTS) {
        let message = format!("an engine has at most {MAX_ENGINE_ENDPOINTS} endpoints");
        reader.error(surplus.span, message, "remove the others");
    }
    for (at, endpoint) in endpoints.iter().enumerate() {
        let earlier = endpoints.iter().take(at).find(|earlier| earlier.value == endpoint.value);
        if let Some(earlier) = earlier {
            let place = reader.sources.file_line(earlier.span);
            let message = format!("{} is named twice", endpoint.value);
            reader.error(endpoint.span, message, format!("remove one of them; the other is at {place}"));
        }
    }
    endpoints
}

/// An encrypted endpoint needs the authorities to trust, and certificates need an encrypted endpoint.
fn tls(reader: &mut Reader<'_, '_>, engine: &Engine) {
    let secure = engine.endpoints.iter().find(|endpoint| endpoint.value.secure);
    match secure {
        Some(endpoint) if reader.section.option("ca").is_none() => {
            let message = format!(
                "{} needs ca: without it, the coordinator cannot verify that this is the engine",
                endpoint.value
            );
            reader.error(endpoint.span, message, "add ca = \"/PATH/OF/CA.pem\" to the engine scope");
        }
        None if !engine.endpoints.is_empty() => {
            for option in ["ca", "certificate", "key"] {
                if let Some(option_set) = reader.section.option(option) {
                    let message = format!("{option} has no effect: every endpoint is http");
                    reader.error(
                        option_set.value.span(),
                        message,
                        format!("write https://, or remove {option}"),
                    );
                }
            }
        }
        _ => {}
    }
}

/// Two options of which each has an effect only with the other.
fn needs_each_other(reader: &mut Reader<'_, '_>, one: &str, other: &str) {
    for (present, absent) in [(one, other), (other, one)] {
        let (option, missing) = (reader.section.option(present), reader.section.option(absent));
        if let (Some(option), None) = (option, missing) {
            let message = format!("{present} needs {absent}");
            let help = format!("add {absent} to the engine scope, or remove {present}");
            reader.error(option.value.span(), message, help);
        }
    }
}

/// The absolute path of a file that the coordinator reads.
fn file(text: &str) -> Result<PathBuf, String> {
    match text.len() <= MAX_FILE_PATH {
        true => absolute(text),
        false => Err(format!("write a path of at most {MAX_FILE_PATH} bytes")),
    }
}

/// `https://HOST:PORT`, or `http://` with a loopback address; see RFC 3986 section 3. The error is the remedy.
fn url(text: &str) -> Result<EngineUrl, String> {
    let Some((scheme, authority)) = text.split_once("://") else {
        return Err(format!("write https:// before it, such as https://HOST:{DEFAULT_PORT}"));
    };
    let secure = match scheme.to_ascii_lowercase().as_str() {
        "https" => true,
        "http" => false,
        _ => return Err("write https://, or http:// with a loopback address".to_owned()),
    };
    if authority.contains('@') {
        return Err("write user and password_file in the engine scope, not in the URL".to_owned());
    }
    if authority.contains(['/', '?', '#']) {
        return Err(format!("end the URL after the port, such as https://HOST:{DEFAULT_PORT}"));
    }
    let (host, port) = host_and_port(authority)?;
    let address = host.parse::<IpAddr>().ok();
    if address.is_some_and(|address| address.is_unspecified()) {
        return Err("write the address of one member".to_owned());
    }
    if address.is_none() && !is_host_name(host) {
        return Err("write a host name, an IPv4 address, or an IPv6 address in brackets".to_owned());
    }
    if !secure && !address.is_some_and(|address| address.is_loopback()) {
        return Err(match host.eq_ignore_ascii_case("localhost") {
            true => format!("write http://127.0.0.1:{port} or http://[::1]:{port}"),
            false => "write https://: http is for 127.0.0.1 and [::1] only, because whoever can change what the engine \
                      answers decides which node holds which address"
                .to_owned(),
        });
    }
    let host = match address {
        Some(IpAddr::V6(address)) => format!("[{address}]"),
        Some(IpAddr::V4(address)) => address.to_string(),
        None => host.to_ascii_lowercase(),
    };
    Ok(EngineUrl { secure, host, port })
}

/// The host without brackets, and the port.
fn host_and_port(authority: &str) -> Result<(&str, u16), String> {
    let bracketed = authority.strip_prefix('[').and_then(|rest| rest.split_once(']'));
    let (host, port) = match bracketed {
        Some((host, port)) if host.parse::<Ipv6Addr>().is_ok() => {
            (host, if port.is_empty() { None } else { Some(port.strip_prefix(':').unwrap_or_default()) })
        }
        Some(_) => return Err("write an IPv6 address without a scope in the brackets".to_owned()),
        None if authority.matches(':').count() > 1 => {
            return Err("write an IPv6 address in brackets, such as https://[2001:db8::1]:2379".to_owned());
        }
        None => match authority.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (authority, None),
        },
    };
    let Some(port) = port else { return Ok((host, DEFAULT_PORT)) };
    let digits = port.bytes().all(|byte| byte.is_ascii_digit());
    let number = port.parse().ok().filter(|number| digits && *number > 0);
    number
        .map(|number| (host, number))
        .ok_or_else(|| "write a port from 1 to 65535 after the host".to_owned())
}

/// A host name: labels of letters, digits and hyphens (RFC 1123 section 2.1). The last label has a letter, so that a
/// misspelt IPv4 address is none.
fn is_host_name(text: &str) -> bool {
    let label = |label: &str| {
        let plain = label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
        plain && (1..=63).contains(&label.len()) && !label.starts_with('-') && !label.ends_with('-')
    };
    let last = text.rsplit('.').next().unwrap_or_default();
    text.len() <= 253 && text.split('.').all(label) && last.contains(|c: char| c.is_ascii_alphabetic())
}

#[cfg(test)]
mod tests {
    use portreeve_protocol::cluster::MAX_ENGINE_URL;

    use super::*;

    #[test]
    fn a_url_gets_the_default_port_and_is_written_in_one_way() {
        for (text, written) in [
            ("https://etcd1.example.net", "https://etcd1.example.net:2379"),
            ("HTTPS://Etcd1:2380", "https://etcd1:2380"),
            ("https://192.0.2.1:1", "https://192.0.2.1:1"),
            ("https://[2001:DB8:0::1]", "https://[2001:db8::1]:2379"),
            ("http://127.0.0.1:2379", "http://127.0.0.1:2379"),
            ("http://[::1]", "http://[::1]:2379"),
        ] {
            assert_eq!(url(text).map(|url| url.to_string()), Ok(written.to_owned()), "{text}");
        }
    }

    #[test]
    fn the_longest_url_fits_in_a_message() {
        let label = "x".repeat(63);
        let host = format!("{label}.{label}.{label}.{}", "x".repeat(61));
        let url = url(&format!("https://{host}:65535")).unwrap();
        assert_eq!(url.to_string().len(), MAX_ENGINE_URL);
        assert!(super::url(&format!("https://x{host}")).is_err());
    }

    #[test]
    fn everything_but_a_plain_url_is_refused() {
        for text in [
            "",
            "etcd1:2379",
            "https://",
            "https://:2379",
            "https://a:0",
            "https://a:65536",
            "https://a:+1",
            "https://a:",
            "https://a/",
            "https://a?x",
            "https://a#x",
            "https://me@a",
            "https://2001:db8::1",
            "https://[2001:db8::1",
            "https://[2001:db8::1]2379",
            "https://[fe80::1%eth0]",
            "https://[192.0.2.1]",
            "https://0.0.0.0",
            "https://[::]",
            "https://a..b",
            "https://-a",
            "https://a_b",
            "https://192.0.2",
            "https://192.0.2.256",
            "unix:///run/etcd.sock",
            "http://localhost:2379",
            "http://192.0.2.1:2379",
            "http://127.0.0.1.example.net",
            "http://[::ffff:127.0.0.1]",
        ] {
            assert!(url(text).is_err(), "{text}");
        }
    }
}
