//! Completions of the command line: the shells ask this program for them, also for what only this host and its broker know.

use std::ffi::{OsStr, OsString};
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::IpAddr;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::mpsc;
use std::time::Duration;

use clap_complete::CompletionCandidate;
use clap_complete::env::{CompleteEnv, Shells};
use portreeve::printable::Escaped;
use portreeve::{Channel, blocking};
use portreeve_coordinator::control::{MAX_RESPONSE, Request, Response};
use portreeve_coordinator::core::report::{AddressRow, Status};
use serde_json::json;

use crate::cluster::COORDINATOR_SOCKET;
use crate::limit::RESOURCES;

/// The variable by which a shell asks for completions.
const VARIABLE: &str = "PORTREEVE_COMPLETE";

/// How long a shell waits for the broker or the coordinator.
const PATIENCE: Duration = Duration::from_millis(500);

/// Answers a shell that asks for completions; it then ends this process.
pub fn answer(command: fn() -> clap::Command) {
    CompleteEnv::with_factory(command).var(VARIABLE).bin("portreeve").completer("portreeve").complete();
}

/// The script that makes a shell ask.
pub fn script(shell: &str) -> std::io::Result<Vec<u8>> {
    let mut script = Vec::new();
    let shells = Shells::builtins();
    let unknown = || std::io::Error::other("no such shell");
    let shell = shells.completer(shell).ok_or_else(unknown)?;
    shell.write_registration(VARIABLE, "portreeve", "portreeve", "portreeve", &mut script)?;
    Ok(script)
}

/// The interfaces of this host.
pub fn interfaces() -> Vec<CompletionCandidate> {
    // Unlike /sys, it shows those of the network namespace of this process. Two lines are the header.
    let table = std::fs::read_to_string("/proc/self/net/dev").unwrap_or_default();
    let names = table.lines().skip(2).filter_map(|line| line.split_once(':'));
    names.map(|(name, _)| CompletionCandidate::new(name.trim())).collect()
}

/// The resource limits.
pub fn limits() -> Vec<CompletionCandidate> {
    RESOURCES.iter().map(|(name, _)| CompletionCandidate::new(*name)).collect()
}

/// The addresses that the broker has added.
pub fn added_addresses() -> Vec<CompletionCandidate> {
    let rows = ask("list-addresses", |client| {
        let (mut rows, mut after) = (Vec::new(), None);
        loop {
            let page = client.addresses(after)?;
            after = page.addresses.iter().last().map(|row| row.lease.address);
            rows.extend(page.addresses.into_vec());
            if !page.more || after.is_none() {
                return Ok(rows);
            }
        }
    });
    let row = |row: portreeve::address::AddressRow| {
        CompletionCandidate::new(row.lease.address.to_string())
            .help(Some(format!("on {}", row.lease.interface).into()))
    };
    rows.into_iter().map(row).collect()
}

/// The floating addresses that this user is allowed.
pub fn floating_addresses() -> Vec<CompletionCandidate> {
    let rows: Vec<IpAddr> =
        ask("policy", |client| Ok(client.policy(0)?.floating.iter().map(|row| row.address).collect()));
    rows.iter().map(|address| CompletionCandidate::new(address.to_string())).collect()
}

/// The numbers of the broker's listeners.
pub fn listeners() -> Vec<CompletionCandidate> {
    let rows = ask("status", |client| Ok(client.status(0)?.listeners.into_vec()));
    let row = |row: portreeve::status::Listener| {
        CompletionCandidate::new(row.id.0.to_string()).help(Some(row.endpoint.to_string().into()))
    };
    rows.into_iter().map(row).collect()
}

/// Asks the broker, if this user is allowed the operation; nothing if the broker does not reply soon.
fn ask<T: Send + 'static>(
    operation: &'static str,
    request: impl FnOnce(&blocking::Client) -> Result<Vec<T>, portreeve::Error> + Send + 'static,
) -> Vec<T> {
    let socket = socket("--socket", "PORTREEVE_SOCKET", portreeve::DEFAULT_SOCKET);
    with_patience(move || {
        let client = blocking::Client::open(Channel::connect(socket).ok()?, "portreeve completions").ok()?;
        let allowed = &client.welcome()?.operations;
        let is_allowed = allowed.iter().any(|allowed| allowed.as_str() == operation);
        if is_allowed { request(&client).ok() } else { None }
    })
    .unwrap_or_default()
}

/// The nodes of the cluster.
pub fn nodes() -> Vec<CompletionCandidate> {
    let status = cluster_status();
    let nodes = status.iter().flat_map(|status| &status.nodes).filter(|row| is_printable(&row.name));
    nodes
        .map(|row| {
            CompletionCandidate::new(&*row.name).help(Some(format!("{} addresses", row.addresses).into()))
        })
        .collect()
}

/// The addresses of the cluster.
pub fn cluster_addresses() -> Vec<CompletionCandidate> {
    let status = cluster_status();
    let help = |owner: Option<&str>| match owner.filter(|owner| is_printable(owner)) {
        Some(owner) => format!("on {owner}"),
        None => "on no node".to_owned(),
    };
    let row = |row: &AddressRow| {
        CompletionCandidate::new(row.address.to_string()).help(Some(help(row.owner.as_deref()).into()))
    };
    status.iter().flat_map(|status| &status.addresses).map(row).collect()
}

/// Other hosts wrote the names of nodes.
fn is_printable(name: &str) -> bool {
    Escaped(name).to_string() == name
}

/// Asks the coordinator of this host.
fn cluster_status() -> Option<Box<Status>> {
    let socket = socket("--coordinator", "PORTREEVE_COORDINATOR_SOCKET", COORDINATOR_SOCKET);
    with_patience(move || {
        let mut stream = UnixStream::connect(socket).ok()?;
        stream.write_all(format!("{}\n", json!(Request::Status {})).as_bytes()).ok()?;
        let mut line = Vec::new();
        let limit = u64::try_from(MAX_RESPONSE).unwrap_or(u64::MAX);
        BufReader::new(stream.take(limit)).read_until(b'\n', &mut line).ok()?;
        match serde_json::from_slice(&line).ok()? {
            Response::Status(status) => Some(status),
            _ => None,
        }
    })
}

/// What a request gets; `None` if that takes too long.
fn with_patience<T: Send + 'static>(request: impl FnOnce() -> Option<T> + Send + 'static) -> Option<T> {
    let (sender, receiver) = mpsc::channel();
    // The thread ends with the process.
    std::thread::spawn(move || sender.send(request()));
    receiver.recv_timeout(PATIENCE).ok()?
}

/// The control socket of the command line that is completed.
fn socket(option: &str, variable: &str, default: &str) -> PathBuf {
    let words: Vec<OsString> = std::env::args_os().collect();
    let named = words.windows(2).find_map(|pair| match pair {
        [word, path] if word == option => Some(path.clone()),
        _ => None,
    });
    let of_environment = || std::env::var_os(variable);
    named.or_else(of_environment).unwrap_or_else(|| OsStr::new(default).to_owned()).into()
}
