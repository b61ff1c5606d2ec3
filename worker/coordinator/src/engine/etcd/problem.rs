//! Why an endpoint does not answer, in words for an operator.

use std::error::Error;
use std::fmt;
use std::io;

use rustls::{AlertDescription, CertificateError};
use tonic::{Code, ConnectError, Status};

/// How much of a text of etcd is shown.
const MAX_TEXT: usize = 200;

/// Why an endpoint does not answer, or refuses. `Display` says what to do.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Problem {
    /// A file of the settings cannot be used.
    File(String),
    /// The URL cannot be used.
    Url(String),
    /// Its host name has no address.
    NoAddress(String),
    /// Nothing listens there.
    Refused,
    /// It cannot be connected.
    Network(String),
    /// The connection ended before the reply.
    Lost(String),
    /// No answer in time.
    TimedOut,
    /// Its certificate has expired, or is not valid yet.
    CertificateExpired,
    /// Its certificate is from another authority.
    UnknownIssuer,
    /// Its certificate is for other names.
    NameMismatch,
    /// It refuses this node's certificate, or wants one.
    ClientCertificateRefused(String),
    /// TLS failed for another reason.
    Tls(String),
    /// Another program listens there.
    NotEtcd(String),
    /// It belongs to another cluster than the endpoint that answered first.
    OtherCluster {
        /// The id of the cluster that is used.
        expected: u64,
        /// The id of its cluster.
        found: u64,
    },
    /// The user or the password is wrong.
    WrongPassword,
    /// It demands a user, and the settings have none.
    NoUser,
    /// The user may not read or write the group's keys.
    PermissionDenied,
    /// It tells its status to administrators only.
    StatusDenied,
    /// etcd's database has reached its quota.
    SpaceExceeded,
    /// The member has no leader: it has lost the majority of its cluster.
    NoLeader,
    /// The revision has been compacted.
    Compacted,
    /// The reply is larger than this program accepts.
    TooLarge,
    /// Anything else that etcd says.
    Engine(String),
}

impl fmt::Display for Problem {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Problem::File(text) | Problem::Url(text) => out.write_str(text),
            Problem::NoAddress(text) => write!(
                out,
                "the host name has no address ({text}). Check the name in `endpoints` and this host's resolver"
            ),
            Problem::Refused => {
                out.write_str("connection refused: etcd is not running there, or listens elsewhere")
            }
            Problem::Network(text) => write!(out, "cannot connect: {text}"),
            Problem::Lost(text) => write!(out, "the connection was lost: {text}"),
            Problem::TimedOut => {
                out.write_str("no answer in time: the member, its disk or the network is down or overloaded")
            }
            Problem::CertificateExpired => out.write_str(
                "its certificate has expired or is not valid yet. Renew it, or correct the clock of this host",
            ),
            Problem::UnknownIssuer => out.write_str(
                "its certificate is from an unknown authority. Set `ca` to the certificate of the authority \
                 that issued it",
            ),
            Problem::NameMismatch => out.write_str(
                "its certificate is for other names. Write a name of the certificate in `endpoints`, or issue \
                 one for this name",
            ),
            Problem::ClientCertificateRefused(text) => write!(
                out,
                "it refuses this node's certificate, or demands one ({text}). Set `certificate` and `key` to \
                 one that has not expired, of the authority in its --trusted-ca-file"
            ),
            Problem::Tls(text) => write!(out, "TLS failed: {text}"),
            Problem::NotEtcd(text) => write!(out, "this is not the client port of an etcd with API 3 ({text})"),
            Problem::OtherCluster { expected, found } => write!(
                out,
                "it belongs to another cluster, {found:x}; the other endpoints are of {expected:x}. It is not \
                 used. Remove it from `endpoints`"
            ),
            Problem::WrongPassword => out.write_str(
                "the user or the password is wrong. Check `user` and the contents of `password_file`",
            ),
            Problem::NoUser => out.write_str("it demands a user. Set `user` and `password_file`"),
            Problem::PermissionDenied => out.write_str(
                "the user may not read and write the keys of this group. Grant it a role with: \
                 etcdctl role grant-permission ROLE readwrite --prefix /portreeve/GROUP/",
            ),
            Problem::StatusDenied => out.write_str(
                "it answers, but this version tells its status to administrators only, so that it cannot be checked. Upgrade \
                 etcd to 3.6.12 or later",
            ),
            Problem::SpaceExceeded => out.write_str(
                "its database has reached its space quota, and it refuses writes. Compact and defragment it, \
                 then run: etcdctl alarm disarm",
            ),
            Problem::NoLeader => {
                out.write_str("it has no leader: a majority of the members is down or out of reach of this one")
            }
            Problem::Compacted => out.write_str("the revision has been compacted"),
            Problem::TooLarge => out.write_str(
                "the keys of the group are larger than expected. Delete those that are not the coordinator's",
            ),
            Problem::Engine(text) => write!(out, "it answers: {text}"),
        }
    }
}

/// A text of a peer, without control characters, and not too long.
pub(super) fn printable(text: &str) -> String {
    let shown = text.chars().take(MAX_TEXT);
    let mut printable = String::new();
    for character in shown {
        if character.is_control() {
            printable.extend(character.escape_default());
        } else {
            printable.push(character);
        }
    }
    printable
}

impl Problem {
    /// What a failed call means.
    pub(super) fn of_status(status: &Status) -> Self {
        // etcd's own errors have no source; those of the connection have.
        match status.source().and_then(Problem::of_chain) {
            Some(problem) => problem,
            None => Problem::of_text(status.code(), status.message()),
        }
    }

    /// What an error of the connection means.
    pub(super) fn of_error(error: &(dyn Error + 'static)) -> Self {
        Problem::of_chain(error).unwrap_or_else(|| Problem::Network(printable(&error.to_string())))
    }

    /// The innermost error of a chain that says something. An error in an `io::Error` is not among its sources.
    fn of_chain(error: &(dyn Error + 'static)) -> Option<Self> {
        let (mut next, mut last, mut is_dns, mut is_connected) = (Some(error), None, false, true);
        while let Some(error) = next {
            let text = error.to_string();
            is_dns |= text.contains("dns error");
            is_connected &= !error.is::<ConnectError>();
            if let Some(tls) = error.downcast_ref::<rustls::Error>() {
                return Some(Problem::of_tls(tls));
            }
            let io = error.downcast_ref::<io::Error>();
            match io.map(io::Error::kind) {
                Some(io::ErrorKind::ConnectionRefused) => return Some(Problem::Refused),
                Some(io::ErrorKind::TimedOut) => return Some(Problem::TimedOut),
                _ => {}
            }
            last = Some(text);
            next = match io.and_then(|io| io.get_ref()) {
                Some(inner) => Some(inner),
                None => error.source(),
            };
        }
        let text = printable(&last?);
        Some(match () {
            () if is_dns => Problem::NoAddress(text),
            () if text.contains("HTTP/2 was not negotiated") => Problem::NotEtcd(text),
            () if text.contains("frame with invalid size") || text.contains("unexpected frame type") => {
                Problem::NotEtcd("it does not speak HTTP/2".to_owned())
            }
            () if is_connected => Problem::Lost(text),
            () => Problem::Network(text),
        })
    }

    fn of_tls(error: &rustls::Error) -> Self {
        use rustls::Error as Tls;
        match error {
            Tls::InvalidCertificate(
                CertificateError::Expired
                | CertificateError::ExpiredContext { .. }
                | CertificateError::NotValidYet
                | CertificateError::NotValidYetContext { .. },
            ) => Problem::CertificateExpired,
            Tls::InvalidCertificate(CertificateError::UnknownIssuer | CertificateError::BadSignature) => {
                Problem::UnknownIssuer
            }
            Tls::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            ) => Problem::NameMismatch,
            Tls::AlertReceived(
                alert @ (AlertDescription::CertificateRequired
                | AlertDescription::BadCertificate
                | AlertDescription::UnsupportedCertificate
                | AlertDescription::CertificateExpired
                | AlertDescription::CertificateRevoked
                | AlertDescription::CertificateUnknown
                | AlertDescription::UnknownCA
                | AlertDescription::AccessDenied),
            ) => Problem::ClientCertificateRefused(format!("{alert:?}")),
            Tls::InvalidMessage(_) => Problem::NotEtcd("it does not speak TLS".to_owned()),
            other => Problem::Tls(printable(&other.to_string())),
        }
    }

    /// What an error of etcd means. Its codes alone do not tell.
    pub(super) fn of_text(code: Code, text: &str) -> Self {
        let has = |part: &str| text.contains(part);
        match code {
            _ if has("permission denied") => Problem::PermissionDenied,
            _ if has("invalid user ID or password") => Problem::WrongPassword,
            _ if has("user name is empty") => Problem::NoUser,
            _ if has("database space exceeded") => Problem::SpaceExceeded,
            _ if has("no leader") => Problem::NoLeader,
            _ if has("has been compacted") => Problem::Compacted,
            Code::OutOfRange if has("message length too large") => Problem::TooLarge,
            Code::Unimplemented => Problem::NotEtcd(printable(text)),
            _ => Problem::Engine(printable(text)),
        }
    }

    /// Whether the connection may be dead, or was made with files that have changed since.
    pub(super) fn is_of_connection(&self) -> bool {
        matches!(
            self,
            Problem::Refused
                | Problem::Network(_)
                | Problem::Lost(_)
                | Problem::TimedOut
                | Problem::NoAddress(_)
                | Problem::CertificateExpired
                | Problem::UnknownIssuer
                | Problem::NameMismatch
                | Problem::ClientCertificateRefused(_)
                | Problem::Tls(_)
                | Problem::NotEtcd(_)
        )
    }

    /// Whether the same request can succeed soon without anybody's doing.
    pub(super) fn is_transient(&self) -> bool {
        matches!(
            self,
            Problem::Refused
                | Problem::Network(_)
                | Problem::Lost(_)
                | Problem::TimedOut
                | Problem::NoLeader
                | Problem::Engine(_)
        )
    }

    /// Whether only writes are refused, and reads succeed.
    pub(super) fn is_of_writes(&self) -> bool {
        matches!(self, Problem::SpaceExceeded | Problem::PermissionDenied)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_of_a_peer_are_short_and_printable() {
        assert_eq!(printable("a\n\u{1b}[1mé"), "a\\n\\u{1b}[1mé");
        assert_eq!(printable(&"x".repeat(1 << 20)).len(), MAX_TEXT);
    }

    #[test]
    fn errors_of_etcd_have_names() {
        for (code, text, expected) in [
            (Code::PermissionDenied, "etcdserver: permission denied", Problem::PermissionDenied),
            (
                Code::InvalidArgument,
                "etcdserver: authentication failed, invalid user ID or password",
                Problem::WrongPassword,
            ),
            (Code::InvalidArgument, "etcdserver: user name is empty", Problem::NoUser),
            (Code::ResourceExhausted, "etcdserver: mvcc: database space exceeded", Problem::SpaceExceeded),
            (Code::Unavailable, "etcdserver: no leader", Problem::NoLeader),
            (Code::OutOfRange, "etcdserver: mvcc: required revision has been compacted", Problem::Compacted),
            (Code::Unimplemented, "unknown service", Problem::NotEtcd("unknown service".to_owned())),
            (Code::Unavailable, "etcdserver: x", Problem::Engine("etcdserver: x".to_owned())),
        ] {
            assert_eq!(Problem::of_text(code, text), expected);
        }
    }
}
