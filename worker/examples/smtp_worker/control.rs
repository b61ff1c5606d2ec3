//! The control socket: one line per command, one line per reply. It parses commands; the main loop executes them.

use std::io;
use std::os::unix::fs::FileTypeExt as _;
use std::path::Path;

use portreeve::Endpoint;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, oneshot};

/// Maximum length of a line.
const MAX_LINE: u64 = 256;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    Start,
    Stop,
    List,
}

/// One command, and the channel for its reply.
pub struct Command {
    pub verb: Verb,
    pub endpoint: Option<Endpoint>,
    pub reply: oneshot::Sender<Result<String, String>>,
}

/// Accepts commands at `path`, and replaces a socket of an earlier run.
pub fn open(path: &Path, commands: mpsc::Sender<Command>) -> io::Result<()> {
    if path.symlink_metadata().is_ok_and(|found| found.file_type().is_socket()) {
        std::fs::remove_file(path)?;
    }
    let listener = UnixListener::bind(path)?;
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let commands = commands.clone();
            tokio::spawn(async move {
                let _ = serve(stream, commands).await; // the client closed the connection
            });
        }
    });
    Ok(())
}

async fn serve(mut stream: UnixStream, commands: mpsc::Sender<Command>) -> io::Result<()> {
    let (read, mut write) = stream.split();
    let mut read = BufReader::new(read);
    loop {
        let mut line = String::new();
        if (&mut read).take(MAX_LINE).read_line(&mut line).await? == 0 {
            return Ok(());
        }
        let result = match parse(line.trim()) {
            Ok((verb, endpoint)) => {
                let (reply, result) = oneshot::channel();
                let _ = commands.send(Command { verb, endpoint, reply }).await; // see the next line
                result.await.unwrap_or_else(|_| Err("the server is stopping".to_owned()))
            }
            Err(why) => Err(why),
        };
        let line = match result {
            Ok(done) => format!("ok {done}\n"),
            Err(why) => format!("error {why}\n"),
        };
        write.write_all(line.as_bytes()).await?;
    }
}

fn parse(line: &str) -> Result<(Verb, Option<Endpoint>), String> {
    let (verb, rest) = line.split_once(' ').unwrap_or((line, ""));
    let endpoint = || rest.trim().parse().map(Some).map_err(|why| format!("{rest:?}: {why}"));
    match verb {
        "start" => Ok((Verb::Start, endpoint()?)),
        "stop" => Ok((Verb::Stop, endpoint()?)),
        "list" if rest.is_empty() => Ok((Verb::List, None)),
        other => Err(format!("unknown command {other:?}. Use start ENDPOINT, stop ENDPOINT or list")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_commands_are_parsed_and_unknown_ones_are_named() {
        let endpoint = Some("*:25".parse().unwrap());
        assert_eq!(parse("start *:25"), Ok((Verb::Start, endpoint.clone())));
        assert_eq!(parse("stop *:25"), Ok((Verb::Stop, endpoint)));
        assert_eq!(parse("list"), Ok((Verb::List, None)));
        assert!(parse("start").unwrap_err().contains("the port is missing"));
        assert!(parse("sing *:25").unwrap_err().starts_with("unknown command \"sing\""));
    }
}
