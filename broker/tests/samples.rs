//! Typical configurations of users are accepted.
#![forbid(unsafe_code)]
#![allow(clippy::panic)] // test helpers may panic

use std::path::Path;
use std::time::Duration;

use portreeve_broker::capability::CapabilitySet;
use portreeve_broker::config::{self, Trust};
use portreeve_broker::policy::{Policy, Requester, capability_check};

const BIND_ONLY: &str = r#"security {
  user = ecuser
  group = ecuser
  capabilities = "cap_net_bind_service+ep"
  privileges = "basic net_privaddr"
}
"#;

const FOUR: &str = r#"security {
  user = ecuser
  group = ecuser
  capabilities = "cap_net_admin+ep cap_net_bind_service+ep cap_net_raw+ep cap_sys_resource+ep"
  privileges = "basic net_privaddr net_bindmlp sys_resource sys_net_config net_rawaccess"
}
"#;

const BROKER: &str = r#"
broker {
  socket = "/run/portreeve/broker.sock"     # control socket; absent: none
  socket_mode = 0660
  retain = 30                               # seconds that listeners outlive their worker
  lease = 10
  require_landlock = false
  permit "mail" {
    listen    = ( "*:25" "[::]:1-1023" "10.1.1.0/24:587/tcp" "*:53/udp" )
    address   = ( "10.1.1.0/24" )
    interface = ( eth1 )
    limit     = ( "nofile=3000000" )
  }
  peer "@portreeve" {
    allow = ( status listen address )
    permit = ( mail )
  }
}
worker {
  command = ( /usr/lib/portreeve/smtp-worker "--greeting" "mx1" )
  environment = [ TZ = "UTC" ]
  limit = [ nofile = 80000 ]
  restart = true
}
ESMTP_Listener {
  Listen_Backlog = 128
  Listen ":25" { Listen_Backlog = 0x200 Disable_Nagle_Algorithm = "on" }
  Listen /tmp/2025 {}
  Relay_Hosts = ( "127.0.0.0/8", 10.0.0.0/8, )
  AuthParameters [ uri = "digest:///etc/passwd" sasl.mech = plain ]
}
Control_Listener { Listen "/tmp/2026"{ File_Mode = 0600 } }
Domain "example.com" { deep { er { x = "}" } } }
"#;

fn load(text: &str) -> config::Config {
    match config::parse_text("sample.conf", text) {
        Ok((config, _)) => config,
        Err(report) => panic!("{report}"),
    }
}

#[test]
fn both_samples_of_the_security_scope_are_read() {
    for text in [BIND_ONLY, FOUR] {
        let security = load(text).security;
        assert_eq!((security.user_name(), security.group_name()), ("ecuser", "ecuser"));
        assert!(security.capabilities.unwrap().value.contains("cap_net_bind_service+ep"));
        assert!(security.privileges.unwrap().value.starts_with("basic net_privaddr"));
    }
}

#[test]
fn every_sample_is_well_formed() {
    for text in [BIND_ONLY, FOUR, BROKER] {
        assert_eq!(config::check_syntax_text("sample.conf", text), Ok(()));
    }
}

#[test]
fn every_scope_of_a_whole_configuration_is_read() {
    let config = load(BROKER);
    assert_eq!(config.broker.socket.as_ref().unwrap().value, Path::new("/run/portreeve/broker.sock"));
    assert_eq!(config.broker.socket_mode, 0o660);
    assert_eq!(config.broker.retain, Duration::from_secs(30));
    let worker = config.worker.as_ref().unwrap();
    assert_eq!(worker.command.len(), 3);
    assert!(worker.restart);
    let listeners: Vec<(String, String, u32, bool, u32)> = config
        .listeners
        .iter()
        .map(|l| {
            let socket = &l.socket;
            (l.scope.clone(), l.endpoint.value.to_string(), socket.backlog, socket.no_delay, socket.mode)
        })
        .collect();
    assert_eq!(
        listeners,
        [
            ("ESMTP_Listener".into(), "*:25".into(), 512, true, 0o660),
            ("ESMTP_Listener".into(), "/tmp/2025".into(), 128, false, 0o660),
            ("Control_Listener".into(), "/tmp/2026".into(), 500, false, 0o600),
        ]
    );
    assert_eq!(config.skipped.len(), 1);
    assert_eq!(config.skipped[0].value, "Domain");
}

#[test]
fn the_sample_yields_the_expected_policy() {
    let config = load(BROKER);
    let policy = Policy::new(&config, &mut |_| Some(7)).unwrap();
    let worker = Requester::Worker;
    let permit = policy.listen(&worker, &"*:25".parse().unwrap()).unwrap();
    assert_eq!(permit.rule.to_string(), r#"sample.conf:27: ESMTP_Listener: Listen "*:25""#);
    assert_eq!(permit.socket().unwrap().backlog, 512);
    let permit = policy.listen(&worker, &"10.1.1.7:587".parse().unwrap()).unwrap();
    assert_eq!(permit.rule.to_string(), r#"sample.conf:9: permit "mail": listen 10.1.1.0/24:587"#);
    assert_eq!(permit.socket(), None);

    let member = Requester::Local { uid: 1000, gids: vec![1000, 7] };
    assert!(policy.operation(&member, "listen-many").is_ok());
    assert!(policy.listen(&member, &"*:25".parse().unwrap()).is_ok());
    let denied = policy.listen(&member, &"*:26".parse().unwrap()).unwrap_err();
    assert_eq!(denied.nearest.as_deref(), Some(r#"sample.conf:9: permit "mail": listen *:25"#));
    assert!(policy.operation(&member, "reload").is_err());
    let stranger = Requester::Local { uid: 1000, gids: vec![1000] };
    assert!(policy.operation(&stranger, "ping").is_err());
    assert_eq!(policy.tcp_ports(), [1..=1023]);
}

#[test]
fn permits_that_lack_a_capability_are_reported_at_start() {
    let config = load(BROKER);
    let lines = |effective| -> Vec<String> {
        capability_check(&config, CapabilitySet::from_bits(effective), 1024)
            .iter()
            .map(|diagnostic| diagnostic.one_line())
            .collect()
    };
    assert_eq!(lines(1 << 10 | 1 << 12 | 1 << 13 | 1 << 24), [""; 0]);
    let none = lines(0);
    assert!(
        none.iter().any(|line| line.starts_with("sample.conf:9:19: error: port 25 cannot be bound")),
        "{none:?}"
    );
    assert!(
        none.iter().any(|line| line.starts_with("sample.conf:27:10: warning: port 25 is bound at start")),
        "{none:?}"
    );
    assert!(none.iter().any(|line| line.contains("cap_net_admin")));
    assert!(none.iter().any(|line| line.contains("cap_sys_resource")));
}

#[test]
fn a_file_and_its_includes_are_rejected_if_others_can_write_them() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let (main, part) = (dir.path().join("main.conf"), dir.path().join("part.conf"));
    std::fs::write(&main, "include \"part.conf\"\n").unwrap();
    std::fs::write(&part, BIND_ONLY).unwrap();
    let mode = |path, mode| std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
    mode(&main, 0o644);
    mode(&part, 0o640);
    let trust = Trust::RootOr(rustix::process::getuid().as_raw());
    let (config, _) = config::load(&main, trust).unwrap();
    assert_eq!(config.security.user_name(), "ecuser");
    mode(&part, 0o666);
    let report = config::load(&main, trust).unwrap_err();
    let lines: Vec<String> = report.one_lines().collect();
    assert_eq!(lines.len(), 1);
    assert!(lines[0].contains("main.conf:1:9: error: "), "{lines:?}");
    assert!(lines[0].contains("mode 0666") && lines[0].contains("chmod go-w"), "{lines:?}");
}
