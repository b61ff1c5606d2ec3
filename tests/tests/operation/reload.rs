//! Reloading the configuration while the broker serves: it applies as a whole or not at all, and the broker reports the
//! result.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use portreeve_protocol::FaultCode;
use portreeve_protocol::reload::{Reload, Reloaded};
use portreeve_tests::reload::rows;
use portreeve_tests::{Broker, Peer, broker, eventually, isolated, sample};
use rustix::process::{Pid, Signal, kill_process};

fn reload(peer: &mut Peer) -> Result<Reloaded, portreeve_protocol::Fault> {
    peer.request(&Reload::default()).map(|(reloaded, _)| reloaded)
}

fn last(peer: &mut Peer) -> Reloaded {
    peer.request(&Reload { last: true, ..Reload::default() }).unwrap().0
}

#[test]
fn a_changed_policy_takes_effect_after_a_reload() {
    isolated(|host| {
        let broker = Broker::start(host, &sample::control(r#"( "127.0.0.1:2525" )"#));
        let mut peer = broker.peer();
        assert_eq!(peer.listen("127.0.0.2:2525").unwrap_err().code, FaultCode::Denied);
        broker::config(host, &sample::control(r#"( "127.0.0.1:2525" "127.0.0.2:2525" )"#));
        let reloaded = reload(&mut peer).unwrap();
        assert!(reloaded.accepted);
        assert_eq!(rows(&reloaded, "applied"), [r#"permit "any" listen"#], "{reloaded:?}");
        peer.listen("127.0.0.2:2525").unwrap();
        assert_eq!(last(&mut peer).number, 1);
    });
}

#[test]
fn a_configuration_named_by_a_relative_path_is_reloaded() {
    isolated(|host| {
        let path = broker::config(host, &sample::control(r#"( "127.0.0.1:2525" )"#));
        let mut command = broker::command(host, Path::new(path.file_name().unwrap()));
        command.current_dir(path.parent().unwrap());
        let broker = Broker::start_command(host, command);
        broker::config(host, &sample::control(r#"( "127.0.0.2:2525" )"#));
        let mut peer = broker.peer();
        assert_eq!(rows(&reload(&mut peer).unwrap(), "applied"), [r#"permit "any" listen"#]);
    });
}

#[test]
fn a_reload_reports_a_change_of_permanent_alone() {
    isolated(|host| {
        let text = |more: &str| {
            let text = sample::control(r#"( "127.0.0.1:2525" )"#);
            text.replace("service+ep", "service,cap_net_admin,cap_net_raw+ep")
                + &format!("broker {{ permit vip {{ address = ( 10.1.1.0/24 ) {more} }} }}")
        };
        let broker = Broker::start(host, &text(""));
        let mut peer = broker.peer();
        broker::config(host, &text("permanent = true"));
        let reloaded = reload(&mut peer).unwrap();
        assert_eq!(rows(&reloaded, "applied"), [r#"permit "vip" permanent"#], "{reloaded:?}");
    });
}

#[test]
fn sighup_reloads_and_the_log_names_the_changes() {
    isolated(|host| {
        let broker = Broker::start(host, &sample::control(r#"( "127.0.0.1:2525" )"#));
        let mut peer = broker.peer();
        broker::config(host, &sample::control(r#"( "127.0.0.1:2525" "127.0.0.2:2525" )"#));
        broker.signal(Signal::HUP);
        broker.log.wait_for(&["reloaded", "SIGHUP"]);
        broker.log.wait_for(&["applied", "permit", "listen"]);
        peer.listen("127.0.0.2:2525").unwrap();
        assert_eq!(last(&mut peer).requester.as_str(), "SIGHUP");
    });
}

#[test]
fn a_failed_reload_keeps_the_old_policy() {
    isolated(|host| {
        let good = sample::control(r#"( "127.0.0.1:2525" )"#);
        let broker = Broker::start(host, &good);
        let mut peer = broker.peer();
        let path = broker::config(host, &format!("{good}\nbroker {{\n  retian = 5\n  lease = never\n}}\n"));
        let fault = reload(&mut peer).unwrap_err();
        assert_eq!(fault.code, FaultCode::Invalid);
        let place = format!("{}:", path.display());
        assert!(fault.message.starts_with(&place), "{fault}");
        assert!(fault.message.contains("retian") && fault.message.contains("1 more"), "{fault}");
        assert!(fault.remedy.contains("retain"), "{fault}");
        let result = last(&mut peer);
        assert!(!result.accepted && result.findings.len() == 2, "{result:?}");
        assert!(result.findings[1].rendered.contains("lease = never"), "{result:?}");
        assert!(result.findings.iter().all(|finding| finding.line > 0 && finding.column > 0), "{result:?}");
        peer.listen("127.0.0.1:2525").unwrap();

        broker.signal(Signal::HUP);
        broker.log.wait_for(&["retian", "retain"]);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o666)).unwrap();
        let fault = reload(&mut peer).unwrap_err();
        assert!(fault.message.contains("0666") && fault.remedy.contains("chmod"), "{fault}");
        fs::remove_file(&path).unwrap();
        let fault = reload(&mut peer).unwrap_err();
        assert!(fault.message.contains("No such file"), "{fault}");

        broker::config(host, &good);
        assert!(reload(&mut peer).unwrap().accepted);
        assert_eq!(eventually("the log", || Some(last(&mut peer).number)), 5);
    });
}

#[test]
fn a_reload_reports_the_changes_that_need_a_restart() {
    isolated(|host| {
        let text = sample::control(r#"( "127.0.0.1:2525" )"#);
        let broker = Broker::start(host, &text);
        let mut peer = broker.peer();
        let held = peer.status().processes[0].credentials.clone();
        let changed = text.replace("cap_net_bind_service+ep", "cap_net_bind_service,cap_net_admin+ep");
        broker::config(host, &format!("{changed}\nbroker {{ retain = 7 socket_mode = 0600 }}\n"));
        let reloaded = reload(&mut peer).unwrap();
        assert_eq!(
            rows(&reloaded, "needs-restart"),
            ["broker socket_mode", "security capabilities"],
            "{reloaded:?}"
        );
        assert_eq!(rows(&reloaded, "applied"), ["broker retain"], "{reloaded:?}");
        assert_eq!(peer.status().processes[0].credentials, held);
        // Each reload reports them, until the broker restarts or the change is reverted.
        let again = reload(&mut peer).unwrap();
        assert_eq!(again.changes.len(), 2, "{again:?}");
        broker::config(host, &text);
        assert_eq!(rows(&reload(&mut peer).unwrap(), "needs-restart"), [""; 0]);
        broker::config(host, &text.replace("cap_net_bind_service+ep", "cap_net_bind_servce+ep"));
        let fault = reload(&mut peer).unwrap_err();
        assert!(fault.message.contains("cap_net_bind_servce"), "{fault}");
    });
}

#[test]
fn only_an_allowed_peer_can_reload() {
    isolated(|host| {
        let text = sample::control(r#"( "127.0.0.1:2525" )"#);
        let broker = Broker::start(host, &text);
        let mut nobody = Peer::of_user(65534, 65534);
        assert_eq!(reload(&mut nobody).unwrap_err().code, FaultCode::Denied);
        broker::config(host, &text.replace("peer nobody { allow = (", "peer nobody { allow = ( reload"));
        reload(&mut broker.peer()).unwrap();
        assert_eq!(reload(&mut nobody).unwrap().requester.as_str(), "user 65534");
    });
}

#[test]
fn a_reload_resolves_peers_by_the_accounts_of_the_host() {
    isolated(|host| {
        let text = sample::control(r#"( "127.0.0.1:2525" )"#);
        let broker = Broker::start(host, &text);
        let mut peer = broker.peer();
        broker::config(
            host,
            &format!("{text} broker {{ peer daemon {{ allow = status }} peer \"@sys\" {{}} }}"),
        );
        reload(&mut peer).unwrap();
        broker::config(host, &format!("{text} broker {{ peer nobody-knows {{ allow = status }} }}"));
        let fault = reload(&mut peer).unwrap_err();
        assert!(fault.message.contains("nobody-knows"), "{fault}");
        assert!(fault.remedy.contains("/etc/passwd") && fault.remedy.contains("number"), "{fault}");
    });
}

#[test]
fn a_flood_of_signals_applies_the_last_configuration_and_blocks_no_peer() {
    isolated(|host| {
        let broker = Broker::start_with_log_file(host, &sample::control(r#"( "127.0.0.1:2525" )"#));
        let mut peer = broker.peer();
        reload(&mut peer).unwrap();
        let before = broker.descriptors();
        for number in 0..500 {
            if number % 100 == 0 {
                let listen = format!(r#"( "127.0.0.1:2525" "127.0.0.{}:2525" )"#, 2 + number / 100);
                broker::config(host, &sample::control(&listen));
            }
            broker.signal(Signal::HUP);
            peer.ping();
        }
        // A half-written file may have been refused; the final file is not.
        reload(&mut peer).unwrap();
        peer.listen("127.0.0.6:2525").unwrap();
        assert_eq!(peer.listen("127.0.0.2:2525").unwrap_err().code, FaultCode::Denied);
        drop(peer);
        broker.await_no_leak(&before);
    });
}

#[test]
fn a_killed_reader_is_reported_and_the_broker_keeps_serving() {
    isolated(|host| {
        let broker = Broker::start(host, &sample::control(r#"( "127.0.0.1:2525" )"#));
        let mut peer = broker.peer();
        let processes = |peer: &mut Peer| {
            let status = peer.status();
            let roles: Vec<String> =
                status.processes.iter().map(|process| process.role.to_string()).collect();
            (roles, status.warnings)
        };
        assert_eq!(processes(&mut peer).0, ["broker", "reader"]);
        let reader = broker.reader();
        kill_process(Pid::from_raw(reader.cast_signed()).unwrap(), Signal::KILL).unwrap();
        broker.log.wait_for(&["ERROR", "SIGKILL"]);
        let (roles, warnings) = processes(&mut peer);
        assert_eq!(roles, ["broker"]);
        assert!(warnings[0].contains("SIGKILL") && warnings[0].contains("restart"), "{warnings:?}");
        let fault = reload(&mut peer).unwrap_err();
        assert!(fault.message.contains("exited") && fault.remedy.contains("restart"), "{fault}");
        broker.signal(Signal::HUP);
        broker.log.wait_for(&["reload failed", "SIGHUP"]);
        peer.listen("127.0.0.1:2525").unwrap();
        assert_eq!(portreeve_tests::process::children(broker.pid()), [0; 0], "a zombie");
    });
}

#[test]
fn with_reload_disabled_there_is_no_reader_and_sighup_is_refused() {
    isolated(|host| {
        let text = sample::control(r#"( "127.0.0.1:2525" )"#);
        let broker = Broker::start(host, &format!("{text} broker {{ reload = false }}"));
        let mut peer = broker.peer();
        assert_eq!(portreeve_tests::process::children(broker.pid()), [0; 0]);
        broker.signal(Signal::HUP);
        broker.log.wait_for(&["reload failed", "reload = false"]);
        assert_eq!(reload(&mut peer).unwrap_err().code, FaultCode::Unsupported);
    });
}

#[test]
fn a_file_that_the_reader_cannot_reach_is_named_with_a_remedy() {
    isolated(|host| {
        fs::create_dir(host.path("conf")).unwrap();
        let text = sample::control(r#"( "127.0.0.1:2525" )"#);
        let path = host.file("conf/main.conf", &text);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        let broker = Broker::start_command(host, broker::command(host, &path));
        let mut peer = broker.peer();
        let beside = host.file("conf/beside.conf", "");
        let beyond = host.file("beyond.conf", "");
        for file in [&beside, &beyond] {
            fs::set_permissions(file, fs::Permissions::from_mode(0o600)).unwrap();
        }
        fs::write(&path, format!("{text}\ninclude beside.conf\n")).unwrap();
        assert_eq!(reload(&mut peer).unwrap().files, 2);
        fs::write(&path, format!("{text}\ninclude \"{}\"\n", beyond.display())).unwrap();
        let fault = reload(&mut peer).unwrap_err();
        assert!(fault.message.contains("beyond.conf") && fault.remedy.contains("restart"), "{fault}");
    });
}

#[test]
fn a_reload_accepts_bytes_that_are_not_utf_8_outside_the_values_that_are_read() {
    isolated(|host| {
        let text = sample::control(r#"( "127.0.0.1:2525" )"#);
        let broker = Broker::start(host, &text);
        let path = broker::config(host, &text);
        let write = |more: &[u8]| fs::write(&path, [text.as_bytes(), more].concat()).unwrap();
        write(b"# M\xfcller \x1b[31m\nAdaptive { note = \"caf\xe9\" }\n");
        assert!(reload(&mut broker.peer()).unwrap().accepted);
        write(b"security { user = m\xfcller }\n");
        let fault = reload(&mut broker.peer()).unwrap_err();
        assert!(fault.message.contains("the value of user has the byte 0xFC"), "{fault}");
        let shown = last(&mut broker.peer()).findings[0].rendered.to_string();
        assert!(shown.contains("user = m\\xFCller") && !shown.contains('\u{1b}'), "{shown}");
        broker.log.wait_for(&["the value of user has the byte 0xFC"]);
    });
}
