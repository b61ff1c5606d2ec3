//! Options of a configured socket that the worker and the kernel must see as they are written.

use std::fs;
use std::process::Command;

use portreeve_protocol::message::{Listen, ListenOptions};
use portreeve_tests::{Broker, isolated, sample};

/// The backlog that the kernel has for the listener at a port of IPv4.
fn backlog(port: u16) -> u32 {
    let output = Command::new("ss").args(["-4ltnH"]).output().unwrap();
    let table = String::from_utf8(output.stdout).unwrap();
    let mut rows = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let row =
        rows.find(|row| row[3].ends_with(&format!(":{port}"))).unwrap_or_else(|| panic!("{port}: {table}"));
    row[2].parse().unwrap()
}

#[test]
fn the_backlog_is_limited_by_the_kernel_alone() {
    isolated(|host| {
        fs::write("/proc/sys/net/core/somaxconn", "60000").unwrap();
        let listener = |backlog: u32| {
            format!(r#"A_Listener {{ Listen "127.0.0.1:2525" {{ listen_backlog = {backlog} }} }}"#)
        };
        let text = |backlog| sample::control(r#"( "127.0.0.1:2526-2527" )"#) + &listener(backlog);
        let broker = Broker::start(host, &text(50_000));
        assert_eq!(backlog(2525), 50_000);
        portreeve_tests::reload::reload(host, &broker, &text(65_535));
        assert_eq!(backlog(2525), 60_000);
        let mut peer = broker.peer();
        for (port, requested, granted) in [(2526, 40_000, 40_000), (2527, u32::MAX, 60_000)] {
            let options = ListenOptions { backlog: Some(requested), ..ListenOptions::default() };
            let endpoint = format!("127.0.0.1:{port}").parse().unwrap();
            let _ = peer.request(&Listen::new(endpoint, options)).unwrap(); // its session keeps it open
            assert_eq!(backlog(port), granted);
        }
    });
}

#[test]
fn each_static_listener_reaches_the_worker_under_its_own_name() {
    isolated(|host| {
        let text = r#"
            security { user = nobody group = nogroup }
            broker { socket = "/run/host/broker.sock" peer root { allow = status } }
            worker { command = ( /bin/sleep 1000 ) }
            ESMTP_Listener "mx one" {
                name = ignored
                Listen "127.0.0.1:2525" { name = "smtp in" }
                Listen "127.0.0.1:2526" { name = submission }
                Listen "127.0.0.1:2527" { }
            }"#;
        let broker = Broker::start(host, text);
        let environment = fs::read(format!("/proc/{}/environ", broker.worker())).unwrap();
        let environment = String::from_utf8(environment).unwrap();
        let names = environment.split('\0').find_map(|variable| variable.strip_prefix("LISTEN_FDNAMES="));
        assert_eq!(names, Some("smtp in:submission:ESMTP_Listener_\"mx_one\""), "{environment:?}");
        let status = broker.peer().status();
        let owners: Vec<&str> = status.listeners.iter().map(|listener| listener.owner.as_str()).collect();
        assert!(owners.contains(&"static smtp in") && owners.contains(&"static submission"), "{owners:?}");
    });
}
