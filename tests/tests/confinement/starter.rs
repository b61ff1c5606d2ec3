//! What the broker and the worker inherit from the process that starts the broker: signals, the file mode creation mask, the
//! limit of open files, /proc.

use std::net::TcpStream;
use std::path::Path;
use std::process::Command;

use portreeve_tests::kernel::landlock_abi;
use portreeve_tests::scripted_worker::WorkerSetup;
use portreeve_tests::startup_failure::exit;
use portreeve_tests::{
    Broker, Host, StartupFailure, binaries, broker, eventually, isolated, process, sample,
};

/// A command that runs a broker after these words, for example of env(1).
fn started_by(host: &Host, words: &[&str], config: &Path) -> Command {
    let mut command = Command::new(words[0]);
    command.args(&words[1..]).arg(host.binary(binaries::BROKER)).arg("--config").arg(config);
    command.stdin(std::process::Stdio::null());
    command
}

#[test]
fn signals_that_the_starter_blocks_or_ignores_end_the_broker_and_are_as_usual_in_the_worker() {
    isolated(|host| {
        // Not a Rust program, which would ignore SIGPIPE.
        let text = r#"security { user = nobody group = nogroup } worker { command = ( /bin/sleep 1000 ) }"#;
        let config = broker::config(host, text);
        let words = [
            "env",
            "--block-signal=TERM,HUP,INT,CHLD,USR1,RTMIN+1",
            "--ignore-signal=TERM,HUP,INT,CHLD,USR2,RTMIN+2",
        ];
        let mut broker = Broker::start_command(host, started_by(host, &words, &config));
        let sigpipe = format!("{:016x}", 1_u64 << (libc::SIGPIPE - 1));
        for (pid, ignored) in [
            (broker.pid(), sigpipe.as_str()),
            (broker.launcher(), &sigpipe),
            (broker.worker(), "0000000000000000"),
        ] {
            // The launcher blocks SIGCHLD, which it reads from a descriptor.
            let blocked = process::status_field(pid, "SigBlk");
            assert!(pid == broker.launcher() || blocked == "0000000000000000", "{pid}: {blocked}");
            assert_eq!(process::status_field(pid, "SigIgn"), ignored, "{pid}");
        }
        assert!(broker.terminate().success());
    });
}

#[test]
fn the_worker_has_the_configured_umask() {
    isolated(|host| {
        for (option, expected) in [("", "0022"), ("umask = 007", "0007"), ("umask = 0", "0000")] {
            let setup = WorkerSetup::new(host, &format!("chroot{expected}"));
            let program = format!(r#"( "{}/scripted_worker" ) {option}"#, setup.chroot.path.display());
            let broker = Broker::start(host, &sample::worker(&setup.chroot, &program, ""));
            let (_worker, _peer) = setup.accept();
            assert_eq!(process::status_field(broker.worker(), "Umask"), expected);
            assert_eq!(process::status_field(broker.pid(), "Umask"), "0077");
        }
    });
}

#[test]
fn a_static_listener_can_be_the_standard_input_of_the_worker() {
    isolated(|host| {
        let server = r#"
import os, socket
listener = socket.socket(fileno=0)
while True:
    client, _ = listener.accept()
    client.sendall(b"fds " + os.environ["LISTEN_FDNAMES"].encode())
    client.close()
"#;
        let script = host.file("server.py", server);
        let listeners = r#"ESMTP_Listener { Listen "127.0.0.1:24" { } Listen "127.0.0.1:25" { } }"#;
        let text = |stdin: &str| {
            format!(
                r#"security {{ user = nobody group = nogroup capabilities = "cap_net_bind_service+ep" }}
                worker {{ command = ( /usr/bin/python3 {} ) stdin = "{stdin}" }} {listeners}"#,
                script.display()
            )
        };
        let _broker = Broker::start(host, &text("127.0.0.1:25"));
        let mut client = TcpStream::connect("127.0.0.1:25").unwrap();
        client.set_read_timeout(Some(portreeve_tests::wait::TIMEOUT)).unwrap();
        let mut reply = String::new();
        std::io::Read::read_to_string(&mut client, &mut reply).unwrap();
        assert_eq!(reply, "fds ESMTP_Listener:ESMTP_Listener");
        let check = broker::config(host, &text("127.0.0.1:26"));
        let output = Command::new(host.binary(binaries::BROKER)).arg("check").arg(&check).output().unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(78), "{errors}");
        assert!(errors.contains("127.0.0.1:26 is not a static listener"), "{errors}");
    });
}

#[test]
fn with_1024_open_files_peers_still_get_listeners_and_the_start_warns() {
    isolated(|host| {
        let config = broker::config(host, &sample::control(r#"( "127.0.0.1:2000-3999" )"#));
        let words = ["bash", "-c", "ulimit -n 1024; exec \"$@\"", "bash"];
        let broker = Broker::start_command(host, started_by(host, &words, &config));
        broker.log.wait_for(&[
            "WARN",
            "limit of open files is 1024",
            "512 listeners",
            "128 sessions",
            "LimitNOFILE=",
        ]);
        let mut peer = broker.peer();
        let warnings = peer.status().warnings;
        assert!(warnings.iter().any(|line| line.contains("1024")), "{warnings:?}");
        let fault =
            (2000..4000).find_map(|port| peer.listen(&format!("127.0.0.1:{port}")).map(drop).err()).unwrap();
        assert!(fault.remedy.contains("LimitNOFILE"), "{fault}");
        let held = peer.status().listeners_held;
        assert!((400..512).contains(&held), "{held}");
        // With every listener open, sessions still find descriptors.
        let sessions: Vec<_> = (0..20).map(|_| broker.peer()).collect();
        drop(sessions);
    });
}

#[test]
fn a_landlock_domain_of_the_starter_is_not_mistaken_for_a_missing_capability() {
    isolated(|host| {
        // A domain that denies every bind of TCP: struct landlock_ruleset_attr with LANDLOCK_ACCESS_NET_BIND_TCP.
        let script = r#"
import ctypes, os, struct, sys
libc = ctypes.CDLL(None, use_errno=True)
attributes = struct.pack("QQ", 0, 1)
ruleset = libc.syscall(444, attributes, len(attributes), 0)
assert ruleset >= 0, os.strerror(ctypes.get_errno())
libc.prctl(38, 1, 0, 0, 0)
assert libc.syscall(446, ruleset, 0) == 0, os.strerror(ctypes.get_errno())
os.execv(sys.argv[1], sys.argv[1:])
"#;
        if landlock_abi() < 4 {
            return;
        }
        let start = |text: &str| {
            let config = broker::config(host, text);
            started_by(host, &["/usr/bin/python3", "-c", script], &config)
        };
        let control = sample::control(r#"( "*:25" )"#);
        let text = format!(r#"{control} ESMTP_Listener {{ Listen "*:25" {{ }} }}"#);
        let failure = StartupFailure::of_command(start(&text));
        failure.assert_reports(
            69,
            &["*:25", "Permission denied", "every capability", "Landlock", "SocketBindDeny="],
        );
        let broker = Broker::start_command(host, start(&control));
        let fault = broker.peer().listen("*:25").unwrap_err();
        assert!(!fault.message.contains("cap_net") && fault.remedy.contains("Landlock"), "{fault}");
    });
}

#[test]
fn without_proc_the_start_names_it() {
    isolated(|host| {
        let config = broker::config(host, &sample::control(r#"( "127.0.0.1:25" )"#));
        let hidden = "mount -t tmpfs none /proc && exec \"$@\"";
        let start = started_by(host, &["unshare", "-m", "bash", "-c", hidden, "bash"], &config);
        StartupFailure::of_command(start)
            .assert_reports(exit::OS_ERROR, &["/proc is not mounted", "mount -t proc"]);
        let foreign = started_by(host, &["unshare", "--pid", "--fork"], &config);
        let words = ["another namespace of process ids", "mount -t proc"];
        StartupFailure::of_command(foreign).assert_reports(exit::OS_ERROR, &words);
    });
}

#[test]
fn the_processes_have_names_of_their_own_and_end_with_the_broker() {
    isolated(|host| {
        let setup = WorkerSetup::new(host, "chroot");
        let text = sample::worker(&setup.chroot, r#"( "/run/host/chroot/scripted_worker" )"#, "");
        let mut broker = Broker::start(host, &text);
        let (_worker, _peer) = setup.accept();
        let pids = [broker.pid(), broker.launcher(), broker.reader(), broker.worker()];
        let names = pids.map(|pid| process::status_field(pid, "Name"));
        assert_eq!(names, ["portreeved", "(pr-launcher)", "(pr-reader)", "scripted_worker"]);
        assert!(broker.terminate().success());
        // They have ended before the broker, so no service manager kills them.
        assert_eq!(pids.map(process::is_running), [false; 4]);
    });
}

#[test]
fn a_descriptor_gets_a_newline_when_the_broker_serves() {
    isolated(|host| {
        let config = broker::config(host, &sample::control(r#"( "127.0.0.1:25" )"#));
        let ready = host.path("ready");
        let words = ["bash", "-c", "exec 5>/run/host/ready; exec \"$@\" --notify-fd 5", "bash"];
        let mut broker = Broker::start_command(host, started_by(host, &words, &config));
        eventually("a newline", || (std::fs::read(&ready).unwrap() == b"\n").then_some(()));
        eventually("its end", || {
            (!format!("{:?}", broker.descriptors()).contains("/run/host/ready")).then_some(())
        });
        assert!(broker.terminate().success());
        let words = ["bash", "-c", "exec \"$@\" --notify-fd 77", "bash"];
        StartupFailure::of_command(started_by(host, &words, &config)).assert_reports(64, &["--notify-fd 77"]);
    });
}
