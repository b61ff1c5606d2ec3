//! Why an endpoint cannot be bound, as the fault that a peer or an operator reads: what failed, its cause, what to do.

use caps::Capability::{CAP_NET_BIND_SERVICE, CAP_NET_RAW};
use nix::errno::Errno;
use portreeve_protocol::{Endpoint, Fault, FaultCode};

use super::entry::Owner;
use crate::capability::CapabilitySet;
use crate::holder::Holder;

/// The system call that failed, and its error.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{call} failed: {}", errno.desc())]
pub struct BindError {
    /// The call; for setsockopt(2), with the option.
    pub call: &'static str,
    /// Its errno.
    pub errno: Errno,
}

/// Adds to an errno the call that failed.
pub(super) trait Context<T> {
    fn context(self, call: &'static str) -> Result<T, BindError>;
}

impl<T> Context<T> for nix::Result<T> {
    fn context(self, call: &'static str) -> Result<T, BindError> {
        self.map_err(|errno| BindError { call, errno })
    }
}

/// Where an endpoint was named: the remedies differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequestedBy {
    /// In a peer's request.
    Peer,
    /// In the configuration.
    Configuration,
}

/// What the kernel lets this process bind.
#[derive(Clone, Copy, Debug)]
pub struct BindPrivileges {
    /// The effective capabilities.
    pub capabilities: CapabilitySet,
    /// The first port that needs no capability: net.ipv4.ip_unprivileged_port_start.
    pub unprivileged_port_start: u16,
    /// Whether net.ipv6.conf.all.disable_ipv6 was set when the broker started.
    pub ipv6_disabled: bool,
    /// Whether the broker has confined itself: until then it has what it was started with, afterwards what it retains.
    pub confined: bool,
}

impl BindPrivileges {
    /// The capability that the broker lacks and that the failed call needs; `None` if the error has another cause.
    fn missing(&self, call: &str, endpoint: &Endpoint) -> Option<&'static str> {
        let port = endpoint.inet()?.port;
        let (capability, name) = match call {
            "bind" if port < self.unprivileged_port_start => (CAP_NET_BIND_SERVICE, "cap_net_bind_service"),
            "setsockopt SO_BINDTODEVICE" => (CAP_NET_RAW, "cap_net_raw"),
            _ => return None,
        };
        (!self.capabilities.contains(capability.index())).then_some(name)
    }
}

impl BindError {
    /// The fault of a listener that could not be bound.
    pub fn fault(self, endpoint: &Endpoint, by: RequestedBy, privileges: &BindPrivileges) -> Fault {
        let unix = endpoint.inet().is_none();
        let fault = |code, cause: &str, remedy: &str| {
            let message = format!("cannot listen on {endpoint}: {cause}");
            Fault::new(code, &message).remedy(remedy).errno(self.errno as i32).subject(self.call)
        };
        let choose = match by {
            RequestedBy::Peer => "request another endpoint",
            RequestedBy::Configuration => "configure another endpoint",
        };
        match self.errno {
            Errno::EADDRINUSE if unix => fault(
                FaultCode::InUse,
                "the file is in use: another program listens on it, or it is not a socket",
                &format!("stop that program (ss -lxp names it), remove the file, or {choose}"),
            )
            .subject("another program"),
            Errno::EADDRINUSE => fault(
                FaultCode::InUse,
                "address already in use by another program",
                &format!("stop that program (ss -lntup names it) or {choose}"),
            )
            .subject("another program"),
            Errno::EADDRNOTAVAIL if privileges.ipv6_disabled && is_ipv6(endpoint) => fault(
                FaultCode::NotLocal,
                "IPv6 is disabled on this host (net.ipv6.conf.all.disable_ipv6 = 1)",
                &without_ipv6(by),
            ),
            Errno::EADDRNOTAVAIL => fault(
                FaultCode::NotLocal,
                "no interface of this host has the address, or only one in another VRF, or duplicate address detection has \
                 not ended",
                match by {
                    RequestedBy::Peer => {
                        "add the address first, or set device to its VRF or free_bind in the request"
                    }
                    RequestedBy::Configuration => {
                        "add the address first (for the start: After=network-online.target in the unit), or set free_bind \
                         = true in its Listen scope; for a floating address, set enable_duravip = true"
                    }
                },
            ),
            Errno::EAFNOSUPPORT if is_ipv6(endpoint) => fault(
                FaultCode::Unsupported,
                "this host has no IPv6: the kernel was started with ipv6.disable=1 or has no such module, or \
                 RestrictAddressFamilies= of the unit excludes AF_INET6",
                &without_ipv6(by),
            ),
            Errno::EACCES | Errno::EPERM => match privileges.missing(self.call, endpoint) {
                Some(capability) if privileges.confined => fault(
                    FaultCode::NotRetained,
                    &format!("the broker does not retain {capability}"),
                    "add it to security.capabilities and restart portreeved",
                )
                .subject(capability),
                Some(capability) => fault(
                    FaultCode::NotRetained,
                    &format!("portreeved was started without {capability}"),
                    "add it to CapabilityBoundingSet= of the unit, or to the capabilities of the container",
                )
                .subject(capability),
                None if unix => fault(
                    FaultCode::Os,
                    &format!("no permission to create its file ({})", self.errno.desc()),
                    "check the owner and the mode of its directory; a security module may forbid it too",
                ),
                None => fault(
                    FaultCode::Os,
                    &format!(
                        "{} failed: {}, though the broker has every capability that it needs",
                        self.call,
                        self.errno.desc()
                    ),
                    "check whether a security module, Landlock of the process that started portreeved, or SocketBindDeny= \
                     of its unit forbids it",
                ),
            },
            Errno::ENODEV | Errno::ENXIO => fault(
                FaultCode::UnknownInterface,
                "the interface that it names does not exist",
                "name an interface that ip link lists",
            ),
            Errno::EMFILE | Errno::ENFILE => fault(
                FaultCode::Quota,
                "the broker has no free file descriptor",
                "stop listeners, or start portreeved with a higher limit of open files (LimitNOFILE=, ulimit -n)",
            ),
            Errno::ENOENT if unix => fault(
                FaultCode::Os,
                "its directory does not exist, or did not when the broker started",
                "create the directory, owned by root, and restart portreeved",
            ),
            Errno::ENOMEM | Errno::ENOBUFS => {
                fault(FaultCode::Os, &self.to_string(), "free memory on this host and try again")
            }
            errno => {
                let page = self.call.split(' ').next().unwrap_or(self.call);
                fault(
                    FaultCode::Os,
                    &self.to_string(),
                    &format!("see {errno:?} in the manual page of {page}"),
                )
            }
        }
    }
}

fn is_ipv6(endpoint: &Endpoint) -> bool {
    endpoint.inet().is_some_and(|inet| inet.address.is_ipv6())
}

/// The remedy on a host without IPv6.
fn without_ipv6(by: RequestedBy) -> String {
    let otherwise = match by {
        RequestedBy::Peer => "request an IPv4 endpoint",
        RequestedBy::Configuration => "set optional = true in its Listen scope, or remove that scope",
    };
    format!("enable IPv6, or {otherwise}")
}

/// The fault of a request for an endpoint where another owner of this broker listens.
pub fn in_use(endpoint: &Endpoint, owner: Owner) -> Fault {
    in_use_at(endpoint, endpoint, owner)
}

/// The same for a listener at another endpoint that overlaps: a wildcard address and a specific one.
pub(super) fn in_use_at(endpoint: &Endpoint, other: &Endpoint, owner: Owner) -> Fault {
    let owner = match owner {
        Owner::Worker => "the worker".to_owned(),
        Owner::Session(number) => format!("session {number}"),
        Owner::Former(user) => format!("a former session of user {user}"),
    };
    let overlaps = if other == endpoint { String::new() } else { format!(", which listens on {other}") };
    let message =
        format!("cannot listen on {endpoint}: address already in use by {owner} of this broker{overlaps}");
    Fault::new(FaultCode::InUse, &message)
        .subject(&owner)
        .remedy("stop that listener (portreeve unlisten) or choose another endpoint")
}

/// The fault of a request for an endpoint that is in use, and where a listener has stopped whose holder may keep a copy.
pub(super) fn in_use_by_stopped(endpoint: &Endpoint, holder: Holder) -> Fault {
    let message = format!(
        "cannot listen on {endpoint}: address already in use by another program, or by {holder}, which may keep a copy of the \
         socket of a stopped listener"
    );
    Fault::new(FaultCode::InUse, &message)
        .subject(&holder.to_string())
        .remedy("end the process that ss -lntup names or that keeps the socket, or choose another endpoint")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fault(errno: Errno, call: &'static str, endpoint: &str, capabilities: u64) -> Fault {
        let privileges = BindPrivileges {
            capabilities: CapabilitySet::from_bits(capabilities),
            unprivileged_port_start: 1024,
            ipv6_disabled: false,
            confined: true,
        };
        BindError { call, errno }.fault(&endpoint.parse().unwrap(), RequestedBy::Peer, &privileges)
    }

    #[test]
    fn a_capability_is_named_only_where_the_broker_lacks_it_and_the_call_needs_it() {
        let lacking = fault(Errno::EACCES, "bind", "*:25", 0);
        assert_eq!((lacking.code, &*lacking.subject), (FaultCode::NotRetained, "cap_net_bind_service"));
        assert_eq!(
            &*lacking.message,
            "cannot listen on *:25: the broker does not retain cap_net_bind_service"
        );
        let device = fault(Errno::EPERM, "setsockopt SO_BINDTODEVICE", "*:25", 0);
        assert_eq!((device.code, &*device.subject), (FaultCode::NotRetained, "cap_net_raw"));
        let others = [
            fault(Errno::EACCES, "bind", "*:25", CAP_NET_BIND_SERVICE.bitmask()),
            fault(Errno::EPERM, "bind", "*:8025", 0),
            fault(Errno::EPERM, "setsockopt SO_BINDTODEVICE", "*:25", CAP_NET_RAW.bitmask()),
            fault(Errno::EPERM, "listen", "*:25", 0),
            fault(Errno::EACCES, "bind", "/run/mail.sock", 0),
        ];
        for other in others {
            assert!(other.code == FaultCode::Os && !other.message.contains("cap_"), "{other}");
            assert!(other.remedy.contains("security module"), "{other}");
        }
    }

    #[test]
    fn every_fault_has_a_remedy_and_the_remedy_fits_its_reader() {
        let privileges = BindPrivileges {
            capabilities: CapabilitySet::EMPTY,
            unprivileged_port_start: 1024,
            ipv6_disabled: false,
            confined: false,
        };
        for number in 1..=133 {
            let errno = Errno::from_raw(number);
            for endpoint in ["*:25", "[::]:53/udp", "/run/mail.sock"] {
                let endpoint: Endpoint = endpoint.parse().unwrap();
                let of = |by| BindError { call: "bind", errno }.fault(&endpoint, by, &privileges);
                let (peer, configuration) = (of(RequestedBy::Peer), of(RequestedBy::Configuration));
                assert!(!peer.remedy.is_empty() && !configuration.remedy.is_empty(), "{errno}");
                assert!(!configuration.remedy.contains("request"), "{configuration}");
            }
        }
    }
}
