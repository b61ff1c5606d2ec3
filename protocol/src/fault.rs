//! Faults: a typed refusal or failure, as the peer receives it.

use serde::{Deserialize, Serialize};

use crate::bounded::Text;

/// Which fault it is. The number is stable; one that this version does not know is kept as it came.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(from = "u16", into = "u16")]
#[non_exhaustive]
pub enum FaultCode {
    /// No permit allows it.
    Denied,
    /// The broker does not retain the capability that it needs.
    NotRetained,
    /// The endpoint is taken.
    InUse,
    /// The address is on no interface of this host.
    NotLocal,
    /// There is no such interface.
    UnknownInterface,
    /// The IPv6 address is still in duplicate address detection.
    Tentative,
    /// Another host has the address.
    Conflict,
    /// A quota is used up.
    Quota,
    /// The request is not well formed.
    Malformed,
    /// The broker does not know or offer this.
    Unsupported,
    /// Not now; asking again may succeed.
    Busy,
    /// The lease has ended.
    Expired,
    /// A system call failed; the fault carries its errno.
    Os,
    /// There is no such listener or address of this peer's.
    NotFound,
    /// The configuration is refused; the fault names the first mistake's file, line and column.
    Invalid,
    /// A fault of a later version.
    Other(u16),
}

/// The codes and the words that stand for them in JSON, logs and tables; one row is one fault.
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
    /// The word for it: `denied`, `in-use`, …; `other` for a code of a later version.
    pub fn name(self) -> &'static str {
        CODES.iter().find(|row| row.1 == self).map_or("other", |row| row.2)
    }
}

/// A refusal or failure.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}{}{remedy}", if remedy.is_empty() { "" } else { ": " })]
pub struct Fault {
    /// Which one.
    pub code: FaultCode,
    /// The errno of the failed call, 0 where there is none. See errno(3).
    pub errno: u32,
    /// What the fault is about, in the code's own terms: the nearest permit, the missing capability, the
    /// owner, the hardware address, the call; empty where there is nothing to name.
    pub subject: Text<128>,
    /// What was refused or failed and why, as a sentence for a person.
    pub message: Text<512>,
    /// What to do about it; empty where nothing can be done.
    pub remedy: Text<512>,
}

impl Fault {
    /// A fault with a sentence and nothing else.
    pub fn new(code: FaultCode, message: &str) -> Self {
        Self {
            code,
            errno: 0,
            subject: Text::default(),
            message: Text::truncated(message),
            remedy: Text::default(),
        }
    }

    /// The same fault with the thing it is about.
    pub fn subject(self, subject: &str) -> Self {
        Self { subject: Text::truncated(subject), ..self }
    }

    /// The same fault with a remedy.
    pub fn remedy(self, remedy: &str) -> Self {
        Self { remedy: Text::truncated(remedy), ..self }
    }

    /// The same fault with an errno.
    pub fn errno(self, errno: i32) -> Self {
        Self { errno: errno.unsigned_abs(), ..self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_survives_the_wire() {
        for (number, code, word) in CODES {
            assert_eq!(FaultCode::from(number), code);
            assert_eq!(u16::from(code), number);
            assert_eq!(code.name(), word);
        }
        assert_eq!(u16::from(FaultCode::from(700)), 700);
    }
}
