//! Faults: the error reply to a request.

use serde::{Deserialize, Serialize};

use crate::bounded::Text;

/// The kind of a fault. The numbers are stable. A number that this version does not know becomes [`FaultCode::Other`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(from = "u16", into = "u16")]
#[non_exhaustive]
pub enum FaultCode {
    /// No permit allows the request.
    Denied,
    /// The broker did not retain the capability that the request needs.
    NotRetained,
    /// The endpoint is already in use (EADDRINUSE).
    InUse,
    /// No interface of this host has the address (EADDRNOTAVAIL).
    NotLocal,
    /// The interface does not exist.
    UnknownInterface,
    /// The IPv6 address is still in duplicate address detection.
    Tentative,
    /// Another host uses the address.
    Conflict,
    /// A quota is exhausted.
    Quota,
    /// The request violates the protocol.
    Malformed,
    /// The broker does not know the operation or cannot perform it.
    Unsupported,
    /// The broker cannot serve the request now; a later attempt can succeed.
    Busy,
    /// The lease has expired, or a request with a higher epoch has replaced it.
    Expired,
    /// A system call failed; [`Fault::errno`] has the error number.
    Os,
    /// This peer has no such listener or address.
    NotFound,
    /// The configuration is invalid; the fault names the file, line and column of the first error.
    Invalid,
    /// A code of a later version.
    Other(u16),
}

/// The number, variant and name of each code. The name appears in JSON, logs and tables.
const CODES: [(u16, FaultCode, &str); 15] = [
    (1, FaultCode::Denied, "denied"),
    (2, FaultCode::NotRetained, "not-retained"),
    (3, FaultCode::InUse, "in-use"),
    (4, FaultCode::NotLocal, "not-local"),
    (5, FaultCode::UnknownInterface, "unknown-interface"),
    (6, FaultCode::Tentative, "tentative"),
    (7, FaultCode::Conflict, "conflict"),
    (8, FaultCode::Quota, "quota"),
    (9, FaultCode::Malformed, "malformed"),
    (10, FaultCode::Unsupported, "unsupported"),
    (11, FaultCode::Busy, "busy"),
    (12, FaultCode::Expired, "expired"),
    (13, FaultCode::Os, "os"),
    (14, FaultCode::NotFound, "not-found"),
    (15, FaultCode::Invalid, "invalid"),
];

impl From<u16> for FaultCode {
    fn from(number: u16) -> Self {
        CODES.iter().find(|row| row.0 == number).map_or(FaultCode::Other(number), |row| row.1)
    }
}

impl From<FaultCode> for u16 {
    fn from(code: FaultCode) -> u16 {
        match code {
            FaultCode::Other(number) => number,
            known => CODES.iter().find(|row| row.1 == known).map_or(0, |row| row.0),
        }
    }
}

impl FaultCode {
    /// The name of the code: `denied`, `in-use`, …; `other` for a code of a later version.
    pub fn name(self) -> &'static str {
        CODES.iter().find(|row| row.1 == self).map_or("other", |row| row.2)
    }
}

/// The reason that the broker refused a request or failed to perform it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}{}{remedy}", if remedy.is_empty() { "" } else { ": " })]
pub struct Fault {
    /// The kind of fault.
    pub code: FaultCode,
    /// The error number of the failed system call, 0 if none failed. See errno(3).
    pub errno: u32,
    /// The object of the fault; its meaning depends on the code: the nearest rule, the missing capability, the current
    /// owner, the other host's hardware address, or the system call. May be empty.
    pub subject: Text<128>,
    /// What failed, and its cause, in words for an operator.
    pub message: Text<512>,
    /// How to correct it; may be empty.
    pub remedy: Text<512>,
}

impl Fault {
    /// Creates a fault with a code and a message. Text beyond the maximum length is cut off, here and below.
    pub fn new(code: FaultCode, message: &str) -> Self {
        Self {
            code,
            errno: 0,
            subject: Text::default(),
            message: Text::truncated(message),
            remedy: Text::default(),
        }
    }

    /// Sets the subject.
    pub fn subject(self, subject: &str) -> Self {
        Self { subject: Text::truncated(subject), ..self }
    }

    /// Sets the remedy.
    pub fn remedy(self, remedy: &str) -> Self {
        Self { remedy: Text::truncated(remedy), ..self }
    }

    /// Sets the error number.
    pub fn errno(self, errno: i32) -> Self {
        Self { errno: errno.unsigned_abs(), ..self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_converts_to_its_number_and_back() {
        for (number, code, name) in CODES {
            assert_eq!(FaultCode::from(number), code);
            assert_eq!(u16::from(code), number);
            assert_eq!(code.name(), name);
        }
        assert_eq!(u16::from(FaultCode::from(700)), 700);
    }
}
