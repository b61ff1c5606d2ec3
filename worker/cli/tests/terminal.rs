//! The command on a terminal: tables fit, only a terminal gets colour, and a watched page is redrawn in place.
#![allow(clippy::unwrap_used)]

#[path = "../../tests/support/mod.rs"]
mod support;

use std::fs::File;
use std::io::Read as _;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Command, Stdio};

use portreeve::ListenerId;
use portreeve_protocol::address::{AddAddress, Lease, Leases, ListAddresses};
use portreeve_protocol::message::{Outcome, StatusRequest};
use portreeve_protocol::status::{Listener, Session, Status};
use portreeve_protocol::{List, Text};
use rustix::pty::{OpenptFlags, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};
use support::{Broker, broker_at};

fn status() -> Status {
    Status {
        release: Text::truncated("0.1.0"),
        uptime_ms: 1_000,
        processes: List::default(),
        warnings: List::truncated([Text::truncated("this kernel lacks Landlock")]),
        quotas: List::default(),
        listeners_held: 1,
        sessions: List::truncated([Session {
            id: 1,
            peer: Text::truncated("user 8"),
            client: Text::truncated("a-client-with-a-long-name"),
            pid: 4_194_303,
            listeners: 1,
            refused: 12,
        }]),
        listeners: List::truncated([Listener {
            id: ListenerId(7),
            endpoint: Text::truncated("[2001:db8:1111:2222:3333:4444:5555:6666]:25"),
            owner: Text::truncated("session 1"),
            retained: true,
        }]),
        next: 0,
    }
}

fn serve(broker: &mut Broker) {
    while let Some(request) = broker.next() {
        if request.is::<StatusRequest>() {
            broker.reply::<StatusRequest>(&request, &status(), &[]);
        } else if request.is::<ListAddresses>() {
            broker.no_addresses(&request);
        } else {
            let addresses = request.read::<AddAddress>().addresses;
            let lease = |address| Lease {
                address,
                interface: Text::truncated("eth1"),
                prefix: 32,
                remaining_ms: 9_000,
                epoch: 0,
                follows: None,
            };
            let results = addresses.iter().map(|address| Outcome::Done(lease(*address)));
            broker.reply::<AddAddress>(
                &request,
                &Leases { results: List::truncated(results), ..Leases::default() },
                &[],
            );
        }
    }
}

/// A terminal of 40 columns: the end of the test, and the end of the command.
fn terminal() -> (File, OwnedFd) {
    let ours = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
    unlockpt(&ours).unwrap();
    let path = ptsname(&ours, Vec::new()).unwrap();
    let theirs = File::options().read(true).write(true).open(path.to_str().unwrap()).unwrap();
    tcsetwinsize(&ours, Winsize { ws_col: 40, ws_row: 10, ws_xpixel: 0, ws_ypixel: 0 }).unwrap();
    (ours.into(), theirs.into())
}

fn command(socket: &Path, arguments: &[&str], terminal: &OwnedFd) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_portreeve"));
    command.env_clear().env("TERM", "xterm").args(["--socket".as_ref(), socket.as_os_str()]).args(arguments);
    let end = || Stdio::from(terminal.try_clone().unwrap());
    command.stdin(Stdio::null()).stdout(end()).stderr(end());
    command
}

/// The whole output of the command.
fn shown(arguments: &[&str], change: impl FnOnce(&mut Command)) -> String {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("broker.sock");
    drop(broker_at(&socket, serve));
    let (mut ours, theirs) = terminal();
    let mut command = command(&socket, arguments, &theirs);
    change(&mut command);
    let mut child = command.spawn().unwrap();
    drop((command, theirs));
    let mut bytes = Vec::new();
    // Reading fails after the last copy of the other end is closed.
    let _ = ours.read_to_end(&mut bytes);
    assert!(child.wait().unwrap().success());
    String::from_utf8(bytes).unwrap().replace("\r\n", "\n")
}

fn plain(text: &str) -> String {
    ["\x1b[1m", "\x1b[33m", "\x1b[0m"].iter().fold(text.to_owned(), |text, code| text.replace(code, ""))
}

#[test]
fn a_page_fits_the_terminal_and_has_colour_unless_the_environment_forbids_it() {
    let coloured = shown(&["status"], |_| ());
    assert!(coloured.contains("\x1b[33mwarning: this kernel lacks Landlock\x1b[0m"), "{coloured:?}");
    assert!(coloured.contains("\x1b[1mLIS"), "{coloured:?}");
    for line in plain(&coloured).lines() {
        assert!(line.chars().count() <= 40, "{line:?}");
    }
    for (name, value) in [("NO_COLOR", "1"), ("TERM", "dumb")] {
        let text = shown(&["status"], |command| _ = command.env(name, value));
        assert_eq!(text, plain(&coloured), "{name}");
    }
}

#[test]
fn a_long_batch_shows_its_progress_and_clears_it_at_the_end() {
    let addresses: Vec<String> = (0..600).map(|n| format!("10.0.{}.{}", n / 250, n % 250)).collect();
    let mut arguments = vec!["address", "add"];
    arguments.extend(addresses.iter().map(String::as_str));
    let text = shown(&arguments, |_| ());
    assert!(
        text.starts_with("\r256 of 600\r512 of 600\r600 of 600\r\x1b[K10.0.0.0/32 is on eth1"),
        "{text:?}"
    );
    let few = shown(&["address", "add", "10.0.0.1"], |_| ());
    assert!(!few.contains('\r'), "{few:?}");
}

#[test]
fn a_watched_page_is_redrawn_in_place_and_fits_the_lines_of_the_terminal() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("broker.sock");
    let (mut ours, theirs) = terminal();
    let mut child = command(&socket, &["status", "--watch", "1"], &theirs).spawn().unwrap();
    let mut text = String::new();
    let mut read_until = |words: &str| {
        while !text.contains(words) {
            let mut bytes = [0; 4096];
            let length = ours.read(&mut bytes).unwrap();
            text.push_str(&String::from_utf8_lossy(&bytes[..length]));
        }
        std::mem::take(&mut text)
    };
    read_until("cannot connect");
    drop(broker_at(&socket, serve));
    let page = read_until("more lines\x1b[J");
    let page = page.rsplit("\x1b[H").next().unwrap();
    assert!(page.starts_with("portreeved 0.1.0") && page.lines().count() == 9, "{page:?}");
    read_until("more lines\x1b[J");
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    assert!(child.wait().unwrap().success());
}
