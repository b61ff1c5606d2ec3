//! `portreeve listen`: requests listeners, and holds them, because they end with their session; or passes them to a command
//! as a service manager does, and ends with the command.

mod command;
pub mod exec;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::error::ErrorKind;
use portreeve::{Client, Endpoint, FaultCode, Listen, ListenOptions, Listener};
use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};

use crate::arguments::number;
use crate::failure::Failure;
use crate::output::{Output, note, render, table};
use crate::unlisten::MAX_BATCH;

#[derive(clap::Args)]
pub struct Arguments {
    /// Endpoints: *:25, 192.0.2.1:25, [2001:db8::1]:25, *:53/udp, /run/mail.sock.
    #[arg(required = true, value_name = "ENDPOINT")]
    endpoints: Vec<Endpoint>,
    /// Maximum number of connections that wait to be accepted.
    #[arg(long, value_name = "N", value_parser = number::<u32>("--backlog"))]
    backlog: Option<u32>,
    /// Let several sockets share the endpoint (SO_REUSEPORT).
    #[arg(long)]
    reuse_port: bool,
    /// Accept IPv4 as well on an IPv6 wildcard.
    #[arg(long)]
    dual_stack: bool,
    /// Bind an address that is not on this host yet (IP_FREEBIND).
    #[arg(long)]
    free_bind: bool,
    /// Pass the only listener as standard input, not as LISTEN_FDS: as inetd does for `wait`, for example for `exim -bw`.
    #[arg(long)]
    stdin: bool,
    /// The deprecated form of `-- COMMAND`.
    #[arg(long, hide = true, value_name = "COMMAND", num_args = 1.., allow_hyphen_values = true, conflicts_with = "command")]
    exec: Vec<OsString>,
    /// The command to run with the listeners, which LISTEN_FDS passes to it; they stop when it ends. Without a command, the
    /// listeners are held until interrupted.
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

pub async fn run(client: &Client, out: Output, mut arguments: Arguments) -> Result<ExitCode, Failure> {
    let mut options = ListenOptions::new()
        .reuse_port(arguments.reuse_port)
        .dual_stack(arguments.dual_stack)
        .free_bind(arguments.free_bind);
    options.backlog = arguments.backlog;
    arguments.command.append(&mut arguments.exec);
    if arguments.stdin && (arguments.endpoints.len() != 1 || arguments.command.is_empty()) {
        let message = "--stdin takes one ENDPOINT and a COMMAND";
        return Err(Failure::usage(ErrorKind::ArgumentConflict, message));
    }
    let listeners = request(client, &arguments.endpoints, &options).await?;
    let code = if arguments.command.is_empty() {
        show(&listeners, out)?;
        hold(client, listeners.len()).await?;
        ExitCode::SUCCESS
    } else {
        command::run(&listeners, arguments.stdin, &arguments.command, out).await?
    };
    let ids: Vec<_> = listeners.iter().map(Listener::id).collect();
    for batch in ids.chunks(MAX_BATCH) {
        // Without a session there is no listener. The exit status is that of the command.
        if client.stop(batch).await.is_err() {
            break;
        }
    }
    listeners.into_iter().for_each(|listener| drop(listener.into_socket()));
    Ok(code)
}

async fn request(
    client: &Client,
    endpoints: &[Endpoint],
    options: &ListenOptions,
) -> Result<Vec<Listener>, Failure> {
    if let [endpoint] = endpoints {
        return Ok(vec![client.listen(endpoint, options).await?]);
    }
    let requested: Vec<_> =
        endpoints.iter().map(|endpoint| Listen::new(endpoint.clone()).options(options.clone())).collect();
    let (mut listeners, mut faults) = (Vec::new(), Vec::new());
    for batch in requested.chunks(MAX_BATCH) {
        let results = client.listen_many(batch, true).await?;
        for (result, requested) in results.into_iter().zip(batch) {
            match result {
                Ok(listener) => listeners.push(listener),
                Err(fault) => faults.push((requested.endpoint.to_string(), fault)),
            }
        }
    }
    if faults.is_empty() {
        return Ok(listeners);
    }
    // A listener that failed only because another one did has the fault `busy`. It is shown last.
    faults.sort_by_key(|(_, fault)| fault.code == FaultCode::Busy);
    Err(Failure::Refused(faults))
}

fn show(listeners: &[Listener], out: Output) -> Result<(), Failure> {
    if out.json {
        let listeners: Vec<_> = listeners
            .iter()
            .map(|listener| json!({ "id": listener.id(), "endpoint": listener.endpoint().to_string() }))
            .collect();
        return out.value(&json!({ "listeners": listeners }));
    }
    let mut table = table(["LISTENER", "ENDPOINT"]);
    for listener in listeners {
        table.add_row([listener.id().0.to_string(), listener.endpoint().to_string()]);
    }
    out.text(render(table))
}

async fn hold(client: &Client, count: usize) -> Result<(), Failure> {
    let mut terminate = signals(SignalKind::terminate())?;
    let mut interrupt = signals(SignalKind::interrupt())?;
    let what = if count == 1 { "the listener" } else { "the listeners" };
    note(format_args!("holding {what} until interrupted"));
    tokio::select! {
        _ = terminate.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
        error = client.closed() => Err(error.into()),
    }
}

/// Handles the signals of one kind from now on.
pub fn signals(kind: SignalKind) -> Result<tokio::signal::unix::Signal, Failure> {
    signal(kind).map_err(|error| Failure::System("cannot handle signals".to_owned(), error))
}
