//! Converts refusals and failures to the faults that a peer receives.

use std::net::IpAddr;

use nix::errno::Errno;
use portreeve_protocol::{Fault, FaultCode};

use super::frame::Claim;
use super::prober::Rival;
use crate::sys::interface::Mac;

/// What a call does with an address.
fn action(call: &str) -> &str {
    match call {
        "RTM_NEWADDR" => "set the address",
        "RTM_DELADDR" => "remove the address",
        "RTM_GETADDR" => "look up the address",
        "RTM_GETROUTE" => "look up the route to",
        "RTM_GETLINK" => "look up the interface of",
        "opening the fence" => "open the fence for",
        "renewing the fence" => "renew the fence for",
        other => other,
    }
}

/// A failed system call about an address.
pub fn address_failed(call: &str, address: IpAddr, errno: Errno) -> Fault {
    let action = action(call);
    let fault = match errno {
        Errno::EEXIST => on_interface(address, "an interface of this host"),
        // The kernel's answer where disable_ipv6 is set; a missing capability is EPERM.
        Errno::EACCES if address.is_ipv6() => {
            let message = format!("cannot add {address}: IPv6 is disabled on its interface");
            Fault::new(FaultCode::Unsupported, &message)
                .subject("disable_ipv6")
                .remedy("set net.ipv6.conf.INTERFACE.disable_ipv6 = 0 with sysctl(8)")
        }
        Errno::ENOENT => {
            let message = format!("cannot {action} {address}: another program keeps removing the fence");
            Fault::new(FaultCode::Os, &message)
                .subject("nf_tables")
                .remedy("find the program that flushes the packet filter, with `nft monitor`, and try again")
        }
        Errno::ETIME => {
            let message = format!("cannot {action} {address}: this host is too slow to keep its deadline");
            Fault::new(FaultCode::Os, &message)
                .subject("nf_tables")
                .remedy("find what keeps the broker from running, or request a longer lease")
        }
        Errno::ENODEV | Errno::ENXIO => {
            let message = format!("cannot {action} {address}: its interface does not exist");
            Fault::new(FaultCode::UnknownInterface, &message)
                .remedy("create the interface, or name another one in the topology of the cluster scope")
        }
        Errno::EADDRNOTAVAIL => {
            Fault::new(FaultCode::NotLocal, &format!("{address} is not on its interface"))
        }
        _ => Fault::new(FaultCode::Os, &format!("cannot {action} {address}: {}", errno.desc())).subject(call),
    };
    fault.errno(errno as i32)
}

/// An address that an interface of this host has already; `interface` names it.
pub fn on_interface(address: IpAddr, interface: &str) -> Fault {
    let message = format!("{interface} has {address} already, and this broker did not add it");
    Fault::new(FaultCode::InUse, &message)
        .subject("another program")
        .remedy("find it with `ip address`, then remove it or stop the program that added it")
        .errno(Errno::EEXIST as i32)
}

/// An address that no interface of this host has, but to which a route sends packets.
pub fn has_local_route(address: IpAddr) -> Fault {
    let message =
        format!("packets to {address} reach this host already: a route of the type local covers the address");
    Fault::new(FaultCode::InUse, &message)
        .subject("a local route")
        .remedy("find it with `ip route show table all type local`, then remove it with `ip route del`")
        .errno(Errno::EEXIST as i32)
}

/// An address that the kernel does not send to a single host; `what` says what it is.
pub fn no_host_address(address: IpAddr, what: &str) -> Fault {
    let message = format!("{address} is {what} on a link of this host, not the address of a single host");
    Fault::new(FaultCode::Invalid, &message)
        .subject(what)
        .remedy("request another address, or correct the prefix length of the link's own address")
}

/// A failed lookup of an interface.
pub fn interface_failed(name: &str, errno: Errno) -> Fault {
    match errno {
        Errno::ENODEV | Errno::EINVAL | Errno::ERANGE => {
            Fault::new(FaultCode::UnknownInterface, &format!("the interface {name:?} does not exist"))
                .subject(name)
                .remedy("create it, or name another one")
        }
        _ => Fault::new(FaultCode::Os, &format!("cannot look up the interface {name:?}: {}", errno.desc()))
            .subject("RTM_GETLINK"),
    }
    .errno(errno as i32)
}

/// An interface that is down.
pub fn interface_down(name: &str) -> Fault {
    Fault::new(FaultCode::Os, &format!("the interface {name:?} is down"))
        .subject("RTM_GETLINK")
        .errno(Errno::ENETDOWN as i32)
        .remedy("bring it up first")
}

/// An interface without a carrier: no probe reaches another host.
pub fn no_carrier(name: &str) -> Fault {
    let message = format!(
        "the interface {name:?} has no carrier: whether another host uses the address cannot be found out there"
    );
    Fault::new(FaultCode::Os, &message)
        .subject("RTM_GETLINK")
        .errno(Errno::ENETDOWN as i32)
        .remedy("see to its cable, or what it is connected to; or send the request with no probes if no other host can have it")
}

/// An interface that is not Ethernet, so that probing and announcing are impossible.
pub fn no_mac(name: &str) -> Fault {
    let message =
        format!("the interface {name:?} has no MAC address: probing and announcing are impossible there");
    Fault::new(FaultCode::Unsupported, &message)
        .subject(name)
        .remedy("send the request with no probes and without announcement")
}

/// Another host uses the address, or probes for it; its MAC address is known for IPv4.
pub fn conflict(address: IpAddr, rival: Option<Rival>) -> Fault {
    let (message, mac, remedy) = match rival {
        None => (format!("another host already uses {address}"), String::new(), REMOVE_THERE),
        Some((Claim::Use, mac)) => {
            let mac = format_mac(mac);
            (format!("the host {mac} already uses {address}"), mac, REMOVE_THERE)
        }
        Some((Claim::Probe, mac)) => {
            let mac = format_mac(mac);
            let message = format!(
                "the host {mac} does not use {address}, but probed for it twice at the same time (RFC 5227)"
            );
            (message, mac, FIND_PROBER)
        }
    };
    Fault::new(FaultCode::Conflict, &message).subject(&mac).remedy(remedy)
}

const REMOVE_THERE: &str = "remove the address from that host first";
const FIND_PROBER: &str = "if that is a host that is about to use the address, configure another one there; if it is a \
    switch that tracks devices, let it send its probes from an address of its own; otherwise try again";

/// Duplicate address detection did not end in time.
pub fn tentative(address: IpAddr) -> Fault {
    let message = format!("{address} is still tentative: duplicate address detection did not end in time");
    Fault::new(FaultCode::Tentative, &message)
        .remedy("check that its interface has a carrier, and add the address again")
}

/// A lease that has expired.
pub fn lease_expired(address: IpAddr) -> Fault {
    Fault::new(FaultCode::Expired, &format!("the lease of {address} has expired"))
        .remedy("add the address again")
}

/// A lease that would end within a second.
pub fn deadline_passed() -> Fault {
    Fault::new(FaultCode::Expired, "the requested end of the lease has passed, or is less than a second away")
        .subject("until")
        .remedy("give a later time of CLOCK_BOOTTIME, in nanoseconds; a process in another time namespace has another clock")
}

/// An address that another program removed and that is not restored yet.
pub fn removed_by_other_program(address: IpAddr) -> Fault {
    let message = format!("another program removed {address}, and the broker has not restored it");
    Fault::new(FaultCode::NotLocal, &message)
        .remedy("find and stop that program, then remove the address and add it again")
}

/// An address that the kernel removed because its interface went down or was deleted.
pub fn removed_with_link(address: IpAddr, interface: &str) -> Fault {
    let message = format!(
        "{address} is missing: its interface {interface:?} went down or was deleted, and the kernel removed it"
    );
    Fault::new(FaultCode::NotLocal, &message)
        .subject(interface)
        .errno(Errno::ENETDOWN as i32)
        .remedy("bring the interface up: the broker then restores the address, if its lease still runs")
}

/// An address that was removed while its request was in flight.
pub fn removed_meanwhile(address: IpAddr) -> Fault {
    Fault::new(FaultCode::NotFound, &format!("{address} was removed meanwhile"))
}

/// A MAC address in the usual notation.
pub fn format_mac(mac: Mac) -> String {
    let bytes: Vec<String> = mac.iter().map(|byte| format!("{byte:02x}")).collect();
    bytes.join(":")
}
