//! Failures of the command: the exit code, and the message as a line for people or JSON for programs.

use std::fmt::Display;
use std::io;
use std::net::IpAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::CommandFactory as _;
use clap::error::ErrorKind;
use portreeve::{Error, Fault, FaultCode};
use portreeve_coordinator::control;
use serde_json::{Value, json};

use crate::Arguments;
use crate::broker::Broker;
use crate::output::{self, Output};

/// Each exit code and its meaning, for the man page.
pub const EXIT_CODES: &[(u8, &str)] = &[
    (0, "Success."),
    (
        FAULT,
        "The broker could not carry out the request or a part of it, for another reason than policy; or a check of portreeve cluster \
         check failed.",
    ),
    (USAGE, "The command line is wrong."),
    (
        UNAVAILABLE,
        "No broker, or for portreeve cluster no coordinator, replies at the control socket, or it has closed the session; or the \
         cluster's engine does not reply.",
    ),
    (OS_ERROR, "A system call of this command failed."),
    (IO_ERROR, "The result could not be written."),
    (
        PROTOCOL,
        "The program at the control socket is not a broker or coordinator, or is one of another protocol version.",
    ),
    (NO_PERMISSION, "Policy denies the request, or this user may not use the control socket."),
    (
        CONFIG,
        "The broker refused its new configuration; the old one stays in force. See portreeve-reload(1).",
    ),
    (NOT_EXECUTABLE, "The program of portreeve run cannot be executed."),
    (NO_PROGRAM, "There is no such program."),
];

/// The same in short, for --help.
pub fn exit_codes_line() -> String {
    let codes = "0 success, 1 fault, 64 usage, 69 no broker, 71 system call, 74 output, 76 protocol, 77 denied, \
                 78 invalid configuration";
    format!("Exit codes, as in sysexits(3): {codes}. See portreeve(1).")
}

pub const FAULT: u8 = 1;
const USAGE: u8 = 64;
const UNAVAILABLE: u8 = 69;
const OS_ERROR: u8 = 71;
const IO_ERROR: u8 = 74;
const PROTOCOL: u8 = 76;
const NO_PERMISSION: u8 = 77;
pub const CONFIG: u8 = 78;
const NOT_EXECUTABLE: u8 = 126;
const NO_PROGRAM: u8 = 127;

/// The reason that there is no result.
pub enum Failure {
    /// The command line is wrong, or requests help.
    Usage(Box<clap::Error>),
    /// The broker refused the request, or the session failed.
    Session(Error),
    /// The program at the control socket does not reply.
    NoReply(Broker),
    /// The broker refused listeners of a batch: the endpoint and the fault of each.
    Refused(Vec<(String, Fault)>),
    /// An address cannot be held any more.
    Address(IpAddr, Error),
    /// The result could not be written.
    Output(io::Error),
    /// A program cannot be executed: its name, and the cause.
    Program(String, io::Error),
    /// Policy permits nothing that a command could do.
    NotPermitted(String),
    /// The coordinator refused the request, or could not carry it out.
    Coordinator(control::Fault),
    /// No coordinator replies at its control socket.
    NoCoordinator(PathBuf, io::Error),
    /// What replies there is not a coordinator of this version.
    NotCoordinator(String),
    /// A system call failed: the action of this command that failed, and the cause.
    System(String, io::Error),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Session(error)
    }
}

impl Failure {
    /// A mistake of the command line that its definition does not exclude.
    pub fn usage(kind: ErrorKind, message: impl Display) -> Self {
        Self::Usage(Box::new(Arguments::command().error(kind, message)))
    }

    fn code(&self) -> u8 {
        match self {
            Failure::Usage(error) if !error.use_stderr() => 0,
            Failure::Usage(_) => USAGE,
            Failure::Session(error) | Failure::Address(_, error) => session_code(error),
            Failure::NoReply(_) => UNAVAILABLE,
            Failure::Refused(faults) => faults.first().map_or(FAULT, |(_, fault)| fault_code(fault)),
            Failure::Output(_) => IO_ERROR,
            Failure::Program(_, error) if error.kind() == io::ErrorKind::NotFound => NO_PROGRAM,
            Failure::Program(..) => NOT_EXECUTABLE,
            Failure::NotPermitted(_) => NO_PERMISSION,
            Failure::Coordinator(fault) => match fault.code {
                control::FaultCode::Malformed => PROTOCOL,
                control::FaultCode::NoPermission => NO_PERMISSION,
                control::FaultCode::Busy | control::FaultCode::EngineUnreachable => UNAVAILABLE,
                _ => FAULT,
            },
            Failure::NoCoordinator(_, error) if error.kind() == io::ErrorKind::PermissionDenied => {
                NO_PERMISSION
            }
            Failure::NoCoordinator(..) => UNAVAILABLE,
            Failure::NotCoordinator(_) => PROTOCOL,
            Failure::System(..) => OS_ERROR,
        }
    }

    /// The message in a line, or one line for each listener.
    pub fn line(&self) -> String {
        match self {
            Failure::Usage(error) => error.kind().to_string(),
            Failure::Session(error) => error.to_string(),
            Failure::Address(address, error) => format!("{address} is not held: {error}"),
            Failure::NoReply(Broker { socket, timeout }) => format!(
                "no reply from {} within {timeout} s. Check that this is the broker's control socket and that portreeved \
                 is not suspended",
                socket.display()
            ),
            Failure::Refused(faults) => {
                let lines: Vec<_> = faults.iter().map(|(what, fault)| format!("{what}: {fault}")).collect();
                lines.join("\nportreeve: ")
            }
            Failure::Output(error) => format!("cannot write the result: {error}"),
            Failure::Program(program, error) => format!("cannot run {program:?}: {error}"),
            Failure::NotPermitted(what) => what.clone(),
            Failure::Coordinator(fault) if fault.remedy.is_empty() => fault.message.clone(),
            Failure::Coordinator(fault) => format!("{}. {}", fault.message, fault.remedy),
            Failure::NoCoordinator(socket, error) => {
                let remedy = match error.kind() {
                    io::ErrorKind::PermissionDenied => {
                        "Repeat the command as root or as a member of the socket's group"
                    }
                    io::ErrorKind::TimedOut | io::ErrorKind::UnexpectedEof => {
                        "Check that this is its control socket, and see its log"
                    }
                    _ => "Start portreeve-coordinator, or name its control socket with --coordinator",
                };
                format!("no reply from the coordinator at {}: {error}. {remedy}", socket.display())
            }
            Failure::NotCoordinator(what) => what.clone(),
            Failure::System(what, error) => format!("{what}: {error}"),
        }
    }

    fn reason(&self) -> Value {
        match self {
            Failure::Session(Error::Fault(fault) | Error::Ended(fault))
            | Failure::Address(_, Error::Fault(fault) | Error::Ended(fault)) => fault_value(fault),
            Failure::Refused(faults) => faults.first().map_or(Value::Null, |(_, fault)| fault_value(fault)),
            Failure::Coordinator(fault) => {
                json!({ "code": fault.code.name(), "message": fault.message, "remedy": fault.remedy })
            }
            Failure::Usage(error) => json!({ "code": "usage", "message": error.to_string().trim_end() }),
            other => json!({ "code": word(other.code()), "message": other.line() }),
        }
    }

    /// The message as JSON: an object with the member `error`, and what the error is about.
    pub fn value(&self) -> Value {
        let error = self.reason();
        match self {
            Failure::Refused(faults) => {
                let row = |(endpoint, fault): &(String, Fault)| json!({ "endpoint": endpoint, "error": fault_value(fault) });
                json!({ "error": error, "listeners": faults.iter().map(row).collect::<Vec<_>>() })
            }
            Failure::Address(address, _) => json!({ "error": error, "address": address }),
            _ => json!({ "error": error }),
        }
    }

    /// Prints the message and returns the exit code. A closed standard output is not a failure.
    pub fn report(self, json: bool) -> ExitCode {
        let code = self.code();
        match &self {
            Failure::Output(error) if error.kind() == io::ErrorKind::BrokenPipe => return ExitCode::SUCCESS,
            Failure::Usage(error) if code == 0 || !json => {
                let _ = error.print(); // the exit code remains
            }
            _ if json => {
                let _ = Output { json }.value(&self.value()); // the exit code remains
            }
            _ => output::error(self.line()),
        }
        ExitCode::from(code)
    }
}

fn session_code(error: &Error) -> u8 {
    match error {
        Error::Fault(fault) | Error::Ended(fault) => fault_code(fault),
        Error::Connect { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => NO_PERMISSION,
        Error::Connect { .. } | Error::Closed => UNAVAILABLE,
        Error::Version { .. } | Error::Protocol(_) => PROTOCOL,
        Error::Request(_) => USAGE,
        _ => OS_ERROR,
    }
}

/// The exit code for the faults of a batch.
pub fn batch_code(all_denied: bool) -> ExitCode {
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
        NOT_EXECUTABLE => "not-executable",
        NO_PROGRAM => "no-program",
        _ => "os",
    }
}

/// A fault as the member `error` of JSON.
pub fn fault_value(fault: &Fault) -> Value {
    json!({
        "code": fault.code.name(),
        "number": u16::from(fault.code),
        "errno": fault.errno,
        "subject": fault.subject.as_str(),
        "message": fault.message.as_str(),
        "remedy": fault.remedy.as_str(),
    })
}
