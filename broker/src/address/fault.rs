//! Converts refusals and failures to the faults that a peer receives.

use std::net::IpAddr;

use nix::errno::Errno;
use portreeve_protocol::{Fault, FaultCode};

use crate::sys::interface::Mac;

/// A failed system call about an address.
pub fn address_failed(call: &str, address: IpAddr, errno: Errno) -> Fault {
    let fault = match errno {
        Errno::EEXIST => {
            let message = format!("{address} is on this host already, and this broker did not add it");
            Fault::new(FaultCode::InUse, &message)
                .subject("another program")
                .remedy("find it with `ip address`, then remove it or stop the program that added it")
        }
        Errno::ENODEV | Errno::ENXIO => {
            let message = format!("{call} failed for {address}: its interface does not exist");
            Fault::new(FaultCode::UnknownInterface, &message)
                .remedy("create the interface, or name another one in the topology of the cluster scope")
        }
        Errno::EADDRNOTAVAIL => {
            Fault::new(FaultCode::NotLocal, &format!("{address} is not on its interface"))
        }
        _ => {
            Fault::new(FaultCode::Os, &format!("{call} failed for {address}: {}", errno.desc())).subject(call)
        }
    };
    fault.errno(errno as i32)
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

/// An interface that is not Ethernet, so that probing and announcing are impossible.
pub fn no_mac(name: &str) -> Fault {
    let message =
        format!("the interface {name:?} has no MAC address: probing and announcing are impossible there");
    Fault::new(FaultCode::Unsupported, &message)
        .subject(name)
        .remedy("send the request with no probes and without announcement")
}

/// Another host uses the address; its MAC address is known for IPv4.
pub fn conflict(address: IpAddr, rival: Option<Mac>) -> Fault {
    let rival = rival.map(format_mac);
    let host = rival.as_ref().map_or_else(|| "another host".to_owned(), |rival| format!("the host {rival}"));
    Fault::new(FaultCode::Conflict, &format!("{host} already uses {address}"))
        .subject(rival.as_deref().unwrap_or_default())
        .remedy("remove the address from that host first")
}

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

/// An address that another program removed and that is not restored yet.
pub fn removed_by_other_program(address: IpAddr) -> Fault {
    let message = format!("another program removed {address}, and the broker has not restored it");
    Fault::new(FaultCode::NotLocal, &message)
        .remedy("find and stop that program, then remove the address and add it again")
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
