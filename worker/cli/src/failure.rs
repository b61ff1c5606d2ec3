//! Why the command failed: its exit code, and the same reason as a line for people or JSON for programs.

use std::io::{self, ErrorKind, Write as _};
use std::process::ExitCode;

use portreeve::{Error, Fault, FaultCode};
use serde_json::{Value, json};

use crate::open::Broker;
use crate::output::{Output, Style};

/// What each exit code means, as --help and the man pages tell it.
pub const EXIT_CODES: &[(u8, &str)] = &[
    (0, "It was done."),
    (FAULT, "The broker refused some of it or could not do it, for another reason than policy."),
    (USAGE, "The command line is wrong."),
    (UNAVAILABLE, "No broker answers at the control socket."),
    (OS_ERROR, "The system refused something to this command."),
    (IO_ERROR, "The result could not be written."),
    (PROTOCOL, "What answers at the control socket is no broker, or one of another version."),
    (NO_PERMISSION, "Policy does not permit it, or the control socket may not be used."),
];

/// The same in short, for --help.
pub fn exit_codes_line() -> String {
    let codes =
        "0 done, 1 fault, 64 wrong usage, 69 no broker, 71 system, 74 output, 76 protocol, 77 not permitted";
    format!("Exit codes: {codes}; see portreeve(1).")
}

/// The codes of sysexits(3) that are used, and 1 for a fault.
const FAULT: u8 = 1;
const USAGE: u8 = 64;
const UNAVAILABLE: u8 = 69;
const OS_ERROR: u8 = 71;
const IO_ERROR: u8 = 74;
const PROTOCOL: u8 = 76;
const NO_PERMISSION: u8 = 77;
pub const CONFIG: u8 = 78;

/// Why there is no result.
pub enum Failure {
    /// The command line is wrong, or asked for help.
    Usage(Box<clap::Error>),
    /// The broker refused, or cannot be reached.
    Session(Error),
    /// Whoever is at the control socket says nothing.
    Silent(Broker),
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
            Failure::Silent(_) => UNAVAILABLE,
            Failure::Refused(faults) => faults.first().map_or(FAULT, |(_, fault)| fault_code(fault)),
            Failure::Output(_) => IO_ERROR,
            Failure::System(..) => OS_ERROR,
        }
    }

    /// The reason in a line, or one for each listener.
    pub fn line(&self) -> String {
        match self {
            Failure::Usage(error) => error.kind().to_string(),
            Failure::Session(error) => error.to_string(),
            Failure::Silent(Broker { socket, timeout }) => format!(
                "nobody answered at {} in {timeout} s: see whether it is the broker's socket, and whether portreeved hangs",
                socket.display()
            ),
            Failure::Refused(faults) => {
                let lines: Vec<_> = faults.iter().map(|(what, fault)| format!("{what}: {fault}")).collect();
                lines.join("\nportreeve: ")
            }
            Failure::Output(error) => format!("the result could not be written: {error}"),
            Failure::System(what, error) => format!("{what} failed: {error}"),
        }
    }

    fn reason(&self) -> Value {
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

    /// As JSON.
    pub fn value(&self) -> Value {
        json!({ "error": self.reason() })
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
                let _ = Output { json }.value(&self.value());
            }
            _ => {
                let name = Style::Error.on(&io::stderr(), "portreeve:");
                let _ = io::stderr().write_all(format!("{name} {}\n", self.line()).as_bytes());
            }
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

/// The exit code for the faults of a batch.
pub fn of_faults(all_denied: bool) -> ExitCode {
    ExitCode::from(if all_denied { NO_PERMISSION } else { FAULT })
}

fn fault_code(fault: &Fault) -> u8 {
    match fault.code {
        FaultCode::Denied => NO_PERMISSION,
        FaultCode::Invalid => CONFIG,
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
        "code": fault.code.name(),
        "number": u16::from(fault.code),
        "errno": fault.errno,
        "subject": fault.subject.as_str(),
        "message": fault.message.as_str(),
        "remedy": fault.remedy.as_str(),
    })
}
