//! A second broker in the same network namespace: it would remove the addresses and the fence of the first.

use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::process::Command;

use portreeve_protocol::address::ListAddresses;
use portreeve_tests::adversary::attacker::as_user;
use portreeve_tests::namespaces::run;
use portreeve_tests::{Broker, Host, StartupFailure, binaries, broker, isolated, lan, sample};
use rustix::process::Signal;

const OTHER_SOCKET: &str = "/run/host/other.sock";

/// As [`sample::addresses`], with another control socket.
fn other() -> String {
    sample::addresses("").replace(broker::SOCKET, OTHER_SOCKET)
}

/// Starts the second broker by a prepared command.
fn refusal(host: &Host, before: &[&str]) -> StartupFailure {
    let config = host.file("other.conf", &other());
    let mut words = before.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
    words.push(host.binary(binaries::BROKER).display().to_string());
    words.extend(["--config".to_owned(), config.display().to_string()]);
    let mut command = Command::new(&words[0]);
    command.args(&words[1..]);
    StartupFailure::of_command(command)
}

#[test]
fn a_second_broker_is_refused_and_the_first_one_is_named_and_unharmed() {
    isolated(|host| {
        lan::create(&["far"]);
        let first = Broker::start(host, &sample::addresses(""));
        let mut peer = first.peer();
        peer.add_address("10.1.1.7", |add| add.lease = Some(600)).unwrap();
        let rules = || run(Command::new("nft").args(["list", "table", "inet", "portreeve"]), "nftables");
        let state = || (lan::addresses(), rules().matches("10.1.1.7").count());
        let before = state();
        for namespaces in [
            &[][..],
            &["unshare", "--mount"],
            &["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"],
        ] {
            let refused = refusal(host, namespaces);
            assert_eq!(refused.code, Some(69), "{}", refused.message);
            for words in ["another broker manages the addresses", "--takeover"] {
                assert!(refused.message.contains(words), "{words}: {}", refused.message);
            }
            let process = match namespaces.contains(&"--pid") {
                true => "another PID namespace".to_owned(),
                false => format!("process {}:", first.pid()),
            };
            assert!(refused.message.contains(&process), "{process}: {}", refused.message);
            assert_eq!(state(), before);
        }
        // By hard links to a program and a configuration.
        let copy = host.file("copied-portreeved", "");
        let [program, config] = ["linked-portreeved", "linked.conf"].map(|name| copy.with_file_name(name));
        std::fs::copy(host.binary(binaries::BROKER), &copy).unwrap();
        std::fs::hard_link(copy, &program).unwrap();
        std::fs::hard_link(host.file("other.conf", &other()), &config).unwrap();
        let mut command = Command::new(program);
        command.arg("--config").arg(&config);
        let refused = StartupFailure::of_command(command);
        assert_eq!(refused.code, Some(69), "{}", refused.message);
        assert_eq!(state(), before);
        peer.renew_address("10.1.1.7").unwrap();
        assert!(peer.request(&ListAddresses { after: None }).unwrap().0.fenced);
        // A flush leaves the reservation.
        run(Command::new("nft").args(["flush", "ruleset"]), "nftables");
        assert_eq!(refusal(host, &[]).code, Some(69));
        // However the first one ends, the next one can start.
        first.signal(Signal::KILL);
        drop(first);
        let mut next = Broker::start(host, &sample::addresses(""));
        assert!(next.terminate().success());
        drop(Broker::start(host, &sample::addresses("")));
    });
}

#[test]
fn a_successor_continues_the_reservation() {
    isolated(|host| {
        lan::create(&["far"]);
        let text = sample::addresses("");
        let mut broker = Broker::start(host, &text);
        for _ in 0..2 {
            broker.replace(host, &text);
            let refused = refusal(host, &[]);
            assert_eq!(refused.code, Some(69), "{}", refused.message);
            assert!(refused.message.contains(&format!("process {}:", broker.pid())), "{}", refused.message);
        }
        broker.peer().add_address("10.1.1.7", |_| {}).unwrap();
    });
}

#[test]
fn brokers_that_manage_no_addresses_share_a_network_namespace() {
    isolated(|host| {
        lan::create(&["far"]);
        let _first = Broker::start(host, &sample::addresses(""));
        let text = "security { user = nobody group = nogroup }".to_owned()
            + &sample::socket(r#"( "127.0.0.1:2626" )"#).replace(broker::SOCKET, OTHER_SOCKET);
        let config = host.file("other.conf", &text);
        let _second = Broker::start_command(host, broker::command(host, &config));
    });
}

#[test]
fn a_user_who_has_the_name_of_the_reservation_keeps_no_broker_from_starting() {
    isolated(|host| {
        lan::create(&["far"]);
        let bind = || {
            let name = SocketAddr::from_abstract_name("portreeve/addresses").unwrap();
            UnixListener::bind_addr(&name).unwrap()
        };
        let taken = as_user(65_534, &[], bind);
        let broker = Broker::start(host, &sample::addresses(""));
        broker.log.wait_for(&["WARN", "another user has bound the abstract Unix socket"]);
        let mut peer = broker.peer();
        let warnings = peer.status().warnings;
        assert!(warnings.iter().any(|warning| warning.contains("only one broker manages the addresses")));
        peer.add_address("10.1.1.7", |_| {}).unwrap();
        drop(taken);
    });
}
