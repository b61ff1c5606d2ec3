//! What the kernel refuses, as the fault that a peer understands.

use std::io;
use std::net::IpAddr;

use nix::errno::Errno;
use portreeve_protocol::{Fault, FaultCode};

/// The errno of an exchange that failed as a whole.
pub fn errno(error: &io::Error) -> Errno {
    Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO))
}

/// A call about an address that failed.
pub fn of_address(call: &str, address: IpAddr, errno: Errno) -> Fault {
    let what = |text: &str| format!("{address}: {text}");
    let fault = match errno {
        Errno::EEXIST => Fault::new(FaultCode::InUse, &what("it is on that interface, and not the broker's"))
            .subject("another program")
            .remedy("remove it there, or leave it to who put it there"),
        Errno::ENODEV | Errno::ENXIO => {
            Fault::new(FaultCode::UnknownInterface, &what("its interface is gone"))
                .remedy("make the interface, or name another in the cluster scope's topology")
        }
        Errno::EADDRNOTAVAIL => Fault::new(FaultCode::NotLocal, &what("it is not on its interface")),
        _ => Fault::new(FaultCode::Os, &what(&format!("{call}: {}", errno.desc()))).subject(call),
    };
    fault.errno(errno as i32)
}

/// An interface that cannot be asked for.
pub fn of_interface(name: &str, errno: Errno) -> Fault {
    match errno {
        Errno::ENODEV | Errno::EINVAL | Errno::ERANGE => {
            Fault::new(FaultCode::UnknownInterface, &format!("there is no interface {name:?}"))
                .subject(name)
                .remedy("make it, or name another")
        }
        _ => Fault::new(FaultCode::Os, &format!("asking for the interface {name:?}: {}", errno.desc()))
            .subject("RTM_GETLINK"),
    }
    .errno(errno as i32)
}
