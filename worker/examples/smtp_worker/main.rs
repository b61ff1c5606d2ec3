//! A small SMTP server without privileges: it requests its listeners from Portreeve's broker, and starts and stops them at run
//! time by command or signal, as a mail server does.
//!
//! In its root directory it needs only a writable Maildir: no name service, no device, no /proc. SIGUSR1 starts and SIGUSR2
//! stops the endpoint of `--toggle`; `--control` accepts commands; SIGTERM ends the server once the open dialogues have
//! ended. The server continues to serve when the broker ends.

mod address;
mod connection;
mod control;
mod data;
mod dialogue;
mod listeners;
mod maildir;

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::Parser;
use portreeve::{CHANNEL_VARIABLE, Channel, Client, Endpoint, Error, listeners_from_environment};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, watch};

use connection::Service;
use control::{Command, Verb};
use listeners::Listeners;
use maildir::Maildir;

/// Receives mail into a Maildir, on listeners from the broker.
#[derive(Parser)]
struct Arguments {
    /// A listener to request at the start; may be given more than once.
    #[arg(long, value_name = "ENDPOINT")]
    listen: Vec<Endpoint>,
    /// The listener that SIGUSR1 starts and SIGUSR2 stops.
    #[arg(long, value_name = "ENDPOINT")]
    toggle: Option<Endpoint>,
    /// The path of a Unix socket that accepts the lines `start ENDPOINT`, `stop ENDPOINT` and `list`.
    #[arg(long, value_name = "PATH")]
    control: Option<PathBuf>,
    /// The Maildir for messages.
    #[arg(long, value_name = "DIRECTORY", default_value = "/Maildir")]
    maildir: PathBuf,
    /// The name of this host in the greeting and in Received fields.
    #[arg(long, value_name = "NAME", default_value = "localhost")]
    greeting: String,
    /// Maximum size of a message, in bytes.
    #[arg(long, value_name = "BYTES", default_value_t = 25 * 1024 * 1024)]
    max_size: u64,
    /// Seconds that open dialogues may continue after SIGTERM.
    #[arg(long, value_name = "SECONDS", default_value_t = 10)]
    grace: u64,
    /// The broker's control socket, if the broker does not start this server.
    #[arg(long, value_name = "PATH")]
    broker: Option<PathBuf>,
}

#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(transparent)]
    Broker(#[from] Error),
    #[error(transparent)]
    Inherited(#[from] portreeve::InheritedError),
    #[error("{0}: {1}")]
    Start(String, String),
    #[error("no listener to serve on. Use --listen, or pass a listener by LISTEN_FDS")]
    NoListener,
}

impl Failure {
    fn of(what: impl ToString) -> impl FnOnce(std::io::Error) -> Failure {
        move |error| Failure::Start(what.to_string(), error.to_string())
    }
}

/// Writes a line to standard error, in one write so that it stays whole.
pub fn note(text: impl std::fmt::Display) {
    let _ = std::io::stderr().write_all(format!("smtp_worker: {text}\n").as_bytes()); // the server continues without a log
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let result = match runtime {
        Ok(runtime) => runtime.block_on(serve(arguments)),
        Err(error) => Err(Failure::of("cannot start the runtime")(error)),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            note(failure);
            ExitCode::FAILURE
        }
    }
}

async fn connect(broker: Option<&PathBuf>) -> Result<Option<Client>, Error> {
    let channel = match broker {
        Some(path) => Channel::connect(path)?,
        None if std::env::var_os(CHANNEL_VARIABLE).is_some() => Channel::from_environment()?,
        None => return Ok(None),
    };
    Client::open(channel, "smtp_worker").await.map(Some)
}

/// Waits for the end of the session, if there is one.
async fn session_closed(client: Option<&Client>) -> Error {
    match client {
        Some(client) => client.closed().await,
        None => std::future::pending().await,
    }
}

async fn serve(arguments: Arguments) -> Result<(), Failure> {
    let inherited = listeners_from_environment()?;
    let on = |kind| -> Result<Signal, Failure> { signal(kind).map_err(Failure::of("cannot handle signals")) };
    let mut start = on(SignalKind::user_defined1())?;
    let mut stop = on(SignalKind::user_defined2())?;

    let maildir = Maildir::open(&arguments.maildir, &arguments.greeting)
        .map_err(Failure::of(arguments.maildir.display()))?;
    let (close, closing) = watch::channel(false);
    let (open, mut all_closed) = mpsc::channel(1);
    let service =
        Arc::new(Service { name: arguments.greeting, max_size: arguments.max_size, maildir, closing });
    let client = connect(arguments.broker.as_ref()).await?;
    let mut broker = client.as_ref();
    let mut listeners = Listeners::new(client.clone(), service, open);
    for one in inherited {
        listeners.adopt(one);
    }
    for endpoint in &arguments.listen {
        listeners.start(endpoint).await.map_err(|why| Failure::Start(endpoint.to_string(), why))?;
    }
    if listeners.list().is_empty() && arguments.control.is_none() && arguments.toggle.is_none() {
        return Err(Failure::NoListener);
    }
    // Registered only now, so that before this these signals end the process at once.
    let mut terminate = on(SignalKind::terminate())?;
    let mut interrupt = on(SignalKind::interrupt())?;
    let (commands, mut received) = mpsc::channel(16);
    if let Some(path) = &arguments.control {
        control::open(path, commands.clone()).map_err(Failure::of(path.display()))?;
    }
    loop {
        let toggled = tokio::select! {
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            _ = start.recv() => Verb::Start,
            _ = stop.recv() => Verb::Stop,
            Some(Command { verb, endpoint, reply }) = received.recv() => {
                let _ = reply.send(execute(&mut listeners, verb, endpoint.as_ref()).await);
                continue;
            }
            why = session_closed(broker) => {
                note(why);
                broker = None;
                continue;
            }
        };
        match execute(&mut listeners, toggled, arguments.toggle.as_ref()).await {
            Ok(done) => note(done),
            Err(why) => note(why),
        }
    }
    listeners.stop_all().await;
    drop(listeners);
    let _ = close.send(true); // no dialogue is open if it fails
    note("finishing open dialogues");
    let grace = Duration::from_secs(arguments.grace);
    if tokio::time::timeout(grace, all_closed.recv()).await.is_err() {
        note(format_args!("open dialogues were closed after {} s", arguments.grace));
    }
    Ok(())
}

async fn execute(
    listeners: &mut Listeners,
    verb: Verb,
    endpoint: Option<&Endpoint>,
) -> Result<String, String> {
    match (verb, endpoint) {
        (Verb::List, _) => Ok(listeners.list().join(" ")),
        (Verb::Start, Some(endpoint)) => listeners.start(endpoint).await,
        (Verb::Stop, Some(endpoint)) => listeners.stop(endpoint).await,
        (_, None) => Err("no endpoint: use --toggle or name one".to_owned()),
    }
}
