//! The `portreeve` command: its output and its exit codes, with and without a broker.
#![allow(clippy::unwrap_used)]

#[path = "../../tests/support/mod.rs"]
mod support;

use std::path::Path;
use std::process::{Command, Output, Stdio};

use portreeve::ListenerId;
use portreeve_protocol::message::{Listen, Listening, StatusRequest, Stop, Stopped};
use portreeve_protocol::status::{Credentials, Listener, Process, Quota, Session, Status};
use portreeve_protocol::{List, Text};
use support::broker_at;

fn portreeve(socket: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_portreeve"));
    command.env_clear().args(["--socket".as_ref(), socket.as_os_str()]).args(arguments);
    command
}

fn run(socket: &Path, arguments: &[&str]) -> (Option<i32>, String, String) {
    let Output { status, stdout, stderr } = portreeve(socket, arguments).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (status.code(), text(stdout), text(stderr))
}

#[test]
fn without_a_broker_every_subcommand_exits_69_with_the_cause_and_the_remedy() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("broker.sock");
    for verb in [&["status"][..], &["listen", "*:25"], &["unlisten", "1"], &["ping", "-c", "1"]] {
        let (code, stdout, stderr) = run(&socket, verb);
        assert_eq!(code, Some(69), "{verb:?}");
        assert_eq!(stdout, "");
        assert_eq!(
            stderr,
            format!(
                "portreeve: cannot connect to the broker at {}: No such file or directory (os error 2). \
                 Start portreeved, or name the control socket of its configuration\n",
                socket.display()
            )
        );
    }
}

#[test]
fn a_simulated_cluster_keeps_its_addresses_without_the_engine_only_if_told_so() {
    let folder = tempfile::tempdir().unwrap();
    let script = folder.path().join("script");
    std::fs::write(&script, "30 engine down\n90 end\n").unwrap();
    let without_host = |options: &[&str]| {
        let arguments = [&["--json", "cluster", "simulate"], options, &[script.to_str().unwrap()]].concat();
        let (code, stdout, stderr) = run(&folder.path().join("none"), &arguments);
        let report: serde_json::Value = serde_json::from_str(&stdout).unwrap();
        let rows = report["rows"].as_array().unwrap();
        let row = rows.iter().find(|row| row["event"] == "engine down").unwrap();
        assert_eq!((code, stderr.as_str()), (Some(0), ""));
        row["unowned"].as_u64()
    };
    assert_eq!(without_host(&["--hold"]), Some(0));
    assert_eq!(without_host(&[]), Some(10));
}

#[test]
fn with_json_an_error_is_one_json_value() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("broker.sock");
    for (arguments, code, word) in [
        (&["--json", "status"][..], 69, "unavailable"),
        (&["status", "--json"], 69, "unavailable"),
        (&["--json", "listen", "25"], 64, "usage"),
        (&["--json", "sing"], 64, "usage"),
    ] {
        let (exit, stdout, stderr) = run(&socket, arguments);
        let value: serde_json::Value = serde_json::from_str(&stdout).unwrap();
        assert_eq!(value["error"]["code"], word, "{arguments:?}");
        assert_eq!((exit, stderr.as_str()), (Some(code), ""), "{arguments:?}");
    }
}

#[test]
fn a_wrong_command_line_exits_64_and_names_the_wrong_argument() {
    let folder = tempfile::tempdir().unwrap();
    for (arguments, named) in [
        (&["sing"][..], "'sing'"),
        (&["listen", "mx1:25"], "\"mx1\" is not an IPv4 address"),
        (&["listen", "587"], "write *:587 or an address and port"),
        (&["listen", "*:25", "--backlog", "x"], "--backlog takes a whole number"),
        (
            &["address", "add", "10.1.1.7", "--lease", "x"],
            "--lease takes whole seconds, such as 10, 10s or 2m",
        ),
        (&["address", "renew-all", "--until", "1.5"], "--until takes a whole number"),
        (&["address", "add", "mx1"], "write an IP address, such as 10.1.1.7"),
        (&["link", "eth1", "mtu", "x"], "MTU takes a whole number"),
        (&["--timeout", "5h", "status"], "--timeout must be 1 to 3600 s"),
        (&["metrics", "--listen", "9100"], "such as 127.0.0.1:9100"),
        (&["listen"], "<ENDPOINT>"),
        (&["unlisten", "one"], "'one'"),
        (&["ping", "-c", "0"], "'0'"),
    ] {
        let (code, stdout, stderr) = run(folder.path(), arguments);
        assert_eq!((code, stdout.as_str()), (Some(64), ""), "{arguments:?}");
        assert!(stderr.contains(named), "{stderr}");
    }
}

#[test]
fn the_socket_of_another_program_exits_69_and_is_named_as_such() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("other.sock");
    let _other = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    let (code, _, stderr) = run(&socket, &["status"]);
    assert_eq!(code, Some(69));
    assert!(stderr.contains("belongs to another program"), "{stderr}");
}

#[test]
fn a_program_that_is_not_a_broker_exits_69_if_silent_and_76_if_it_violates_the_protocol() {
    use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
    let folder = tempfile::tempdir().unwrap();
    let bind = |name: &str| {
        let path = folder.path().join(name);
        let kind = (AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC);
        let listener = rustix::net::socket_with(kind.0, kind.1, kind.2, None).unwrap();
        rustix::net::bind(&listener, &SocketAddrUnix::new(&path).unwrap()).unwrap();
        rustix::net::listen(&listener, 8).unwrap();
        (path, listener)
    };
    let (silent, _listener) = bind("silent.sock");
    let (code, stdout, stderr) = run(&silent, &["--timeout", "1", "status"]);
    assert_eq!((code, stdout.as_str()), (Some(69), ""));
    assert!(stderr.starts_with("portreeve: no reply from "), "{stderr}");

    let (babbling, listener) = bind("babbling.sock");
    std::thread::spawn(move || {
        let channel = rustix::net::accept_with(&listener, SocketFlags::CLOEXEC).unwrap();
        rustix::net::send(&channel, b"220 mail.example ESMTP", rustix::net::SendFlags::NOSIGNAL).unwrap();
        let _ = rustix::net::recv(&channel, &mut [0; 64][..], rustix::net::RecvFlags::empty());
    });
    let (code, stdout, stderr) = run(&babbling, &["status"]);
    assert_eq!((code, stdout.as_str()), (Some(76), ""), "{stderr}");
    assert!(stderr.contains("the broker violated the protocol"), "{stderr}");

    let file = folder.path().join("file");
    std::fs::write(&file, "").unwrap();
    let (code, _, stderr) = run(&file, &["status"]);
    assert_eq!(code, Some(69), "{stderr}");
}

#[test]
fn unlisten_names_unknown_listeners_and_exits_1() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("broker.sock");
    let thread = broker_at(&socket, |broker| {
        let request = broker.next().unwrap();
        let unknown = List::truncated([ListenerId(9)]);
        broker.reply::<Stop>(&request, &Stopped { unknown, not_revoked: Default::default() }, &[]);
        request.read::<Stop>().listeners.into_vec()
    });
    let (code, stdout, stderr) = run(&socket, &["unlisten", "7", "9"]);
    assert_eq!(code, Some(1));
    assert_eq!(stdout, "stopped: 7\n");
    assert_eq!(stderr, "portreeve: no such listener, or not yours: 9\n");
    assert_eq!(thread.join().unwrap(), [ListenerId(7), ListenerId(9)]);
}

#[test]
fn the_deprecated_name_stop_says_what_to_use() {
    let folder = tempfile::tempdir().unwrap();
    let (code, _, stderr) = run(&folder.path().join("broker.sock"), &["stop", "7"]);
    assert_eq!(code, Some(69));
    assert!(stderr.starts_with("portreeve: `portreeve stop` is deprecated"), "{stderr}");
    let (_, help, _) = run(folder.path(), &["--help"]);
    assert!(help.contains("unlisten") && !help.contains(" stop "), "{help}");
}

/// Runs `portreeve listen *:25`, these arguments, and then a shell script as the command.
fn listen_and_run(before: &[&str]) {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("broker.sock");
    let thread = broker_at(&socket, |broker| {
        let request = broker.next().unwrap();
        let id = ListenerId(5);
        broker.reply::<Listen>(&request, &Listening { id }, &[support::marker(0x4241)]);
        let request = broker.next().unwrap();
        broker.reply_default(&request);
        request.read::<Stop>().listeners.into_vec()
    });
    let script = "test $LISTEN_PID = $$ && echo $LISTEN_FDS $LISTEN_FDNAMES && cat <&3; exit 7";
    let arguments = [&["listen", "*:25"], before, &["/bin/sh", "-c", script, "--", "-x"]].concat();
    let (code, stdout, stderr) = run(&socket, &arguments);
    assert_eq!((code, stdout.as_str(), stderr.as_str()), (Some(7), "1 *_25\nAB", ""));
    assert_eq!(thread.join().unwrap(), [ListenerId(5)]);
}

#[test]
fn listeners_are_passed_to_a_command_and_stopped_when_it_ends() {
    listen_and_run(&["--"]);
}

#[test]
fn the_deprecated_option_exec_passes_listeners_and_is_hidden_from_help() {
    listen_and_run(&["--exec"]);
    let folder = tempfile::tempdir().unwrap();
    let (code, stdout, _) = run(folder.path(), &["listen", "--help"]);
    assert_eq!(code, Some(0));
    assert!(stdout.contains("<ENDPOINT>... [-- <COMMAND>...]") && !stdout.contains("--exec"), "{stdout}");
    let (code, _, stderr) = run(folder.path(), &["listen", "*:25", "--exec", "a"]);
    assert_eq!(code, Some(69), "{stderr}");
}

#[test]
fn limit_takes_its_command_as_listen_does() {
    let folder = tempfile::tempdir().unwrap();
    for verb in ["listen", "limit"] {
        let (_, stdout, _) = run(folder.path(), &[verb, "--help"]);
        let usage = stdout.lines().find(|line| line.starts_with("Usage:")).unwrap();
        assert!(usage.ends_with("... [-- <COMMAND>...]"), "{usage}");
    }
}

#[test]
fn a_denied_request_prints_the_message_of_the_broker_and_exits_77() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("broker.sock");
    let _thread = broker_at(&socket, |broker| {
        let request = broker.next().unwrap();
        broker.reply_default(&request);
    });
    let (code, _, stderr) = run(&socket, &["listen", "*:25"]);
    assert_eq!((code, stderr.as_str()), (Some(77), "portreeve: 25\n"));
}

/// A status that contains hostile text in every field that a peer can set.
fn status(after: u64) -> Status {
    let listener = |number| Listener {
        id: ListenerId(number),
        endpoint: Text::truncated(&format!("[2001:db8::{number:x}]:25")),
        owner: Text::truncated("worker"),
        retained: number == 2,
    };
    let process = |role: &str, effective| Process {
        role: Text::truncated(role),
        pid: 4711,
        restarts: 0,
        root: Text::truncated("/var/lib/portreeve/root"),
        locks: List::truncated(["landlock: 25", "securebits: locked"].map(Text::truncated)),
        credentials: Credentials { effective, permitted: effective, ..Credentials::default() },
    };
    Status {
        release: Text::truncated("0.1.0"),
        uptime_ms: 3_723_000,
        processes: List::truncated([process("broker", 0x2400), process("worker", 0)]),
        warnings: List::truncated([Text::truncated("this kernel lacks Landlock")]),
        quotas: List::truncated([Quota { name: Text::truncated("max_sessions"), limit: 64 }]),
        listeners_held: 3,
        sessions: List::truncated([Session {
            id: 1,
            peer: Text::truncated("worker"),
            client: Text::truncated("evil\n\u{1b}[2J\u{9b}2J"),
            pid: 0,
            listeners: 3,
            refused: 12,
        }]),
        listeners: List::truncated((after + 1..=3).take(2).map(listener)),
        next: if after == 0 { 2 } else { 0 },
    }
}

fn status_broker(socket: &Path) {
    drop(broker_at(socket, |broker| {
        while let Some(request) = broker.next() {
            if !request.is::<StatusRequest>() {
                broker.no_addresses(&request);
                continue;
            }
            let after = request.read::<StatusRequest>().after;
            broker.reply::<StatusRequest>(&request, &status(after), &[]);
        }
    }));
}

#[test]
fn status_shows_every_page_escaped_and_fits_forty_columns() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("broker.sock");
    status_broker(&socket);
    let output = portreeve(&socket, &["status"]).env("COLUMNS", "40").output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(0));
    for line in text.lines() {
        assert!(line.chars().count() <= 40, "{line:?}");
    }
    assert!(!text.contains(|c: char| c.is_control() && c != '\n'), "{text:?}");
    for word in [
        "cap_net_bind_service",
        "securebits: locked",
        "none",
        "LISTENER",
        "[2001:db8::3]:",
        "retained",
        "1 h 2 min 3 s",
    ] {
        assert!(text.contains(word), "{word} in {text}");
    }
}

#[test]
fn status_as_json_has_the_capabilities_by_name_and_no_control_character() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("broker.sock");
    status_broker(&socket);
    let (code, stdout, _) = run(&socket, &["status", "--json"]);
    assert_eq!(code, Some(0));
    assert!(!stdout.trim_end().contains(char::is_control));
    let value: serde_json::Value = serde_json::from_str(&stdout).unwrap();
    let effective = &value["processes"][0]["capabilities"]["effective"];
    assert_eq!(*effective, serde_json::json!(["cap_net_bind_service", "cap_net_raw"]));
    assert_eq!(value["listeners"].as_array().unwrap().len(), 3);
    assert_eq!(value["sessions"][0]["client"], "evil\n\u{1b}[2J\u{9b}2J");
}

#[test]
fn a_closed_standard_output_ends_the_command_without_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("broker.sock");
    status_broker(&socket);
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let child = portreeve(&socket, &["status"]).stdout(writer).stderr(Stdio::piped()).spawn().unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(String::from_utf8(output.stderr).unwrap(), "");
}
