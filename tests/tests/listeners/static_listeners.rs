//! Static listeners whose socket cannot be opened when the broker starts: an address that is not there yet, an IPv6 address
//! that is still checked for duplicates, no IPv6, an endpoint in use.

use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use portreeve_protocol::metrics::MetricsRequest;
use portreeve_tests::kernel::command_denying;
use portreeve_tests::reload::{reload, rows};
use portreeve_tests::startup_failure::exit;
use portreeve_tests::{Broker, Host, StartupFailure, binaries, broker, eventually, isolated, lan, sample};

/// A configuration with this listener scope.
fn config(listeners: &str) -> String {
    format!("{}\nESMTP_Listener {{ {listeners} }}", sample::control(r#"( "*:1-65535" "[::]:1-65535" )"#))
}

fn not_open(broker: &Broker) -> Vec<String> {
    let warnings = broker.peer().status().warnings;
    warnings.iter().filter(|line| line.contains("not open")).map(ToString::to_string).collect()
}

#[test]
fn with_free_bind_a_listener_is_open_before_its_address_and_serves_it_afterwards() {
    isolated(|host| {
        let four = r#"Listen "10.9.9.9:25" { free_bind = true }"#;
        let six = r#"Listen "[2001:db8:9::9]:25" { }"#;
        let broker = Broker::start(host, &config(four));
        let reloaded = reload(host, &broker, &config(&format!("free_bind = true {four} {six}")));
        assert_eq!(rows(&reloaded, "opened"), ["listener [2001:db8:9::9]:25"]);
        for address in ["10.9.9.9/32", "2001:db8:9::9/128"] {
            lan::add_to_loopback(address);
        }
        TcpStream::connect("10.9.9.9:25").unwrap();
        TcpStream::connect("[2001:db8:9::9]:25").unwrap();
    });
}

#[test]
fn without_free_bind_a_missing_address_ends_the_start_and_the_remedy_names_what_exists() {
    isolated(|host| {
        let failure = StartupFailure::of(host, &config(r#"Listen "10.9.9.9:25" { }"#));
        let words =
            ["portreeve.conf:", "10.9.9.9:25", "free_bind = true", "network-online.target", "enable_duravip"];
        failure.assert_reports(exit::UNAVAILABLE, &words);
        let listen = r#"Listen "10.9.9.9:25" { free_bind = true }"#;
        let broker = Broker::start(host, &config(listen));
        let other = config(&format!("{listen} Listen \"10.9.9.8:25\" {{ }}"));
        broker::config(host, &other);
        let reload =
            portreeve_protocol::reload::Reload { last: false, force: portreeve_protocol::Trailing(None) };
        let fault = broker.peer().request(&reload).unwrap_err();
        assert!(fault.message.contains("10.9.9.8:25") && fault.remedy.contains("free_bind"), "{fault}");
    });
}

#[test]
fn the_start_waits_for_duplicate_address_detection() {
    isolated(|host| {
        lan::create(&["b"]);
        let text = config(r#"Listen "[2001:db8::25]:25" { }"#);
        lan::ip("addr add 2001:db8::25/64 dev eth1");
        let line = lan::show_address("2001:db8::25").unwrap();
        let _broker = Broker::start(host, &text);
        assert!(line.contains("tentative"), "{line}");
        lan::in_host("b", || {
            let at = "[2001:db8::25]:25".parse().unwrap();
            TcpStream::connect_timeout(&at, Duration::from_secs(5)).unwrap();
        });
    });
}

#[test]
fn a_duplicate_address_or_one_without_a_carrier_is_named_and_the_wait_is_bounded() {
    isolated(|host| {
        lan::create(&["b"]);
        lan::ip("-n b addr add 2001:db8::25/64 dev eth1 nodad");
        lan::ip("addr add 2001:db8::25/64 dev eth1");
        let failure = StartupFailure::of(host, &config(r#"Listen "[2001:db8::25]:25" { }"#));
        assert_eq!(failure.code, Some(exit::UNAVAILABLE), "{}", failure.message);
        assert!(failure.message.contains("another host"), "{}", failure.message);

        // Without a carrier since it is up, the interface is not ready for the detection.
        lan::ip("link set eth1 down");
        lan::ip("-n switch link set port1 down");
        lan::ip("link set eth1 up");
        lan::ip("addr add 2001:db8::26/64 dev eth1");
        let started = Instant::now();
        let failure = StartupFailure::of(host, &config(r#"Listen "[2001:db8::26]:25" { }"#));
        assert!(failure.message.contains("still tentative"), "{}", failure.message);
        assert!(failure.message.contains("no carrier"), "{}", failure.message);
        assert!(started.elapsed() >= Duration::from_secs(5), "{:?}", started.elapsed());
    });
}

#[test]
fn without_ipv6_the_cause_is_named_and_an_optional_listener_does_not_prevent_the_start() {
    isolated(|host| {
        lan::create(&[]);
        let disable = |value| std::fs::write("/proc/sys/net/ipv6/conf/all/disable_ipv6", value).unwrap();
        disable("1");
        let required = config(r#"Listen "*:25" { } Listen "[2001:db8::1]:25" { }"#);
        let failure = StartupFailure::of(host, &required);
        failure.assert_reports(exit::UNAVAILABLE, &["net.ipv6.conf.all.disable_ipv6", "optional = true"]);

        let optional = config(r#"Listen "*:25" { } Listen "[2001:db8::1]:25" { optional = true }"#);
        let broker = Broker::start(host, &optional);
        TcpStream::connect("127.0.0.1:25").unwrap();
        broker.log.wait_for(&["WARN", "2001:db8::1", "optional listener"]);
        let warnings = not_open(&broker);
        assert!(warnings.len() == 1 && warnings[0].contains("disable_ipv6"), "{warnings:?}");

        // A reload tries again.
        let reloaded = reload(host, &broker, &optional);
        assert_eq!(rows(&reloaded, "failed"), ["listener [2001:db8::1]:25"]);
        assert_eq!(not_open(&broker).len(), 1);
        disable("0");
        lan::ip("addr add 2001:db8::1/64 dev eth1 nodad");
        let reloaded = reload(host, &broker, &optional);
        assert_eq!(rows(&reloaded, "opened"), ["listener [2001:db8::1]:25"]);
        assert_eq!(not_open(&broker), Vec::<String>::new());
        TcpStream::connect("[2001:db8::1]:25").unwrap();
    });
}

#[test]
fn a_kernel_without_ipv6_is_named_and_an_optional_listener_does_not_prevent_the_start() {
    const NO_IPV6: &[&str] = &["socket:10=EAFNOSUPPORT"];
    isolated(|host| {
        let command =
            |text: &str| command_denying(host, NO_IPV6, binaries::BROKER, &broker::config(host, text));
        let failure = StartupFailure::of_command(command(&config(r#"Listen "[::]:25" { }"#)));
        failure.assert_reports(exit::UNAVAILABLE, &["[::]:25", "ipv6.disable=1", "RestrictAddressFamilies="]);
        let text = config(r#"optional = true Listen "*:25" { } Listen "[::]:25" { }"#);
        let broker = Broker::start_command(host, command(&text));
        TcpStream::connect("127.0.0.1:25").unwrap();
        assert!(not_open(&broker)[0].contains("no IPv6"));
    });
}

#[test]
fn an_optional_listener_whose_endpoint_is_in_use_does_not_prevent_start_reload_or_takeover() {
    isolated(|host| {
        let other = TcpListener::bind("127.0.0.1:2000").unwrap();
        let optional =
            |more: &str| config(&format!(r#"Listen "127.0.0.1:2000" {{ optional = true }} {more}"#));
        let mut broker = Broker::start(host, &optional(""));
        assert!(not_open(&broker)[0].contains("another program"));
        let reloaded = reload(host, &broker, &optional(r#"Listen "127.0.0.1:2001" { }"#));
        assert_eq!(rows(&reloaded, "opened"), ["listener 127.0.0.1:2001"]);
        broker.replace(host, &optional(r#"Listen "127.0.0.1:2001" { }"#));
        assert_eq!(not_open(&broker).len(), 1);
        assert_eq!(missing(&broker), 1);
        TcpStream::connect("127.0.0.1:2001").unwrap();
        drop(other);
        let reloaded = reload(host, &broker, &optional(r#"Listen "127.0.0.1:2001" { }"#));
        assert_eq!(rows(&reloaded, "opened"), ["listener 127.0.0.1:2000"]);
        assert!(not_open(&broker).is_empty());
        assert_eq!(missing(&broker), 0);
        // A listener that is not optional still ends the start.
        drop(broker);
        let _other = eventually("the port", || TcpListener::bind("127.0.0.1:2000").ok());
        let failure = failing(host, r#"Listen "127.0.0.1:2000" { }"#);
        assert!(failure.message.contains("another program"), "{}", failure.message);
    });
}

/// How many listeners are missing according to the metrics.
fn missing(broker: &Broker) -> u64 {
    broker.peer().request(&MetricsRequest {}).unwrap().0.listeners.missing
}

fn failing(host: &Host, listener: &str) -> StartupFailure {
    StartupFailure::of(host, &config(listener))
}
