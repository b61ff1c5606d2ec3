//! Why the command failed: its exit code, and the same reason as a line for people or JSON for programs.

use std::io::{self, ErrorKind};
use std::process::ExitCode;

use portreeve_worker::{Error, Fault, FaultCode};
use serde_json::{Value, json};

use crate::output::{Output, note};

/// The codes of sysexits(3) that are used, and 1 for a fault.
const FAULT: u8 = 1;
const USAGE: u8 = 64;
const UNAVAILABLE: u8 = 69;
const OS_ERROR: u8 = 71;
const IO_ERROR: u8 = 74;
const PROTOCOL: u8 = 76;
const NO_PERMISSION: u8 = 77;

/// Why there is no result.
pub enum Failure {
    /// The command line is wrong, or asked for help.
    Usage(Box<clap::Error>),
    /// The broker refused, or cannot be reached.
    Session(Error),
    /// Some of the listeners that were asked for are refused.
    Refused(Vec<(String, Fault)>),
    /// The result could not be written.
    Output(io::Error),
    /// Something else that the system refused.
    System(&'static str, io::Error),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Session(error)
    }
}

impl Failure {
    fn code(&self) -> u8 {
        match self {
            Failure::Usage(error) if !error.use_stderr() => 0,
            Failure::Usage(_) => USAGE,
            Failure::Session(error) => session_code(error),
            Failure::Refused(faults) => faults.first().map_or(FAULT, |(_, fault)| fault_code(fault)),
            Failure::Output(_) => IO_ERROR,
            Failure::System(..) => OS_ERROR,
        }
    }

    fn line(&self) -> String {
        match self {
            Failure::Usage(error) => error.kind().to_string(),
            Failure::Session(error) => error.to_string(),
            Failure::Refused(faults) => {
                let lines: Vec<_> = faults.iter().map(|(what, fault)| format!("{what}: {fault}")).collect();
                lines.join("\nportreeve: ")
            }
            Failure::Output(error) => format!("the result could not be written: {error}"),
            Failure::System(what, error) => format!("{what} failed: {error}"),
        }
    }

    fn value(&self) -> Value {
        match self {
            Failure::Session(Error::Fault(fault) | Error::Ended(fault)) => fault_value(fault),
            Failure::Refused(faults) => {
                let listeners: Vec<_> = faults
                    .iter()
                    .map(|(endpoint, fault)| json!({ "endpoint": endpoint, "error": fault_value(fault) }))
                    .collect();
                let first = faults.first().map_or(Value::Null, |(_, fault)| fault_value(fault));
                let mut value = first;
                if let Some(fields) = value.as_object_mut() {
                    fields.insert("listeners".into(), listeners.into());
                }
                value
            }
            Failure::Usage(error) => json!({ "code": "usage", "message": error.to_string().trim_end() }),
            other => json!({ "code": word(other.code()), "message": other.line() }),
        }
    }

    /// Tells the user and gives the exit code. A reader that went away is no failure of this program's.
    pub fn report(self, json: bool) -> ExitCode {
        let code = self.code();
        match &self {
            Failure::Output(error) if error.kind() == ErrorKind::BrokenPipe => return ExitCode::SUCCESS,
            Failure::Usage(error) if code == 0 || !json => {
                let _ = error.print();
            }
            _ if json => {
                let _ = Output { json }.value(&json!({ "error": self.value() }));
            }
            _ => note(self.line()),
        }
        ExitCode::from(code)
    }
}

fn session_code(error: &Error) -> u8 {
    match error {
        Error::Fault(fault) | Error::Ended(fault) => fault_code(fault),
        Error::Connect { source, .. } if source.kind() == ErrorKind::PermissionDenied => NO_PERMISSION,
        Error::Connect { .. } | Error::Closed => UNAVAILABLE,
        Error::Version { .. } | Error::Protocol(_) => PROTOCOL,
        Error::Request(_) => USAGE,
        _ => OS_ERROR,
    }
}

fn fault_code(fault: &Fault) -> u8 {
    match fault.code {
        FaultCode::Denied => NO_PERMISSION,
        _ => FAULT,
    }
}

fn word(code: u8) -> &'static str {
    match code {
        USAGE => "usage",
        UNAVAILABLE => "unavailable",
        IO_ERROR => "io",
        PROTOCOL => "protocol",
        NO_PERMISSION => "no-permission",
        _ => "os",
    }
}

fn fault_value(fault: &Fault) -> Value {
    json!({
        "code": fault.code.word(),
        "number": u16::from(fault.code),
        "errno": fault.errno,
        "subject": fault.subject.as_str(),
        "message": fault.message.as_str(),
        "remedy": fault.remedy.as_str(),
    })
}
