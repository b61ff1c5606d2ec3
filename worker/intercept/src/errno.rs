//! The error of bind(2) that a program gets when the broker opens no listener for it.

use portreeve_protocol::{Fault, FaultCode};

/// The error number for a fault of the broker. See bind(2).
pub fn errno(fault: &Fault) -> i32 {
    match fault.code {
        FaultCode::InUse => libc::EADDRINUSE,
        FaultCode::NotLocal | FaultCode::Tentative | FaultCode::Conflict => libc::EADDRNOTAVAIL,
        FaultCode::UnknownInterface => libc::ENODEV,
        FaultCode::Quota => libc::ENOBUFS,
        FaultCode::Busy => NO_REPLY,
        FaultCode::Os => i32::try_from(fault.errno).ok().filter(|errno| *errno > 0).unwrap_or(libc::EACCES),
        _ => libc::EACCES,
    }
}

/// The error number when no broker replies.
pub const NO_REPLY: i32 = libc::EAGAIN;
