//! A test's own network: this host and other hosts, each in a network namespace, connected to one bridge.
//!
//! Each host's interface is `eth1`. [`in_host`] runs code of the test in another host.

use std::os::fd::AsFd as _;
use std::process::Command;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::namespaces::run;
use crate::wait::eventually;

/// The interface of this host and of every other.
pub const INTERFACE: &str = "eth1";

/// This host's second interface, if it has one.
pub const SECOND_INTERFACE: &str = "eth2";

/// The MAC address of this host's [`INTERFACE`].
pub const MAC_ADDRESS: [u8; 6] = [2, 0, 0, 0, 0, 1];

/// Runs ip(8) with these arguments and returns its output.
#[track_caller]
pub fn ip(words: &str) -> String {
    run(Command::new("ip").args(words.split_whitespace()), "iproute2")
}

/// Creates the network. This host is 10.1.1.1/24 and 2001:db8::1/64; the hosts named `hosts` are 10.1.1.201 and
/// 2001:db8::201, and so on.
pub fn create(hosts: &[&str]) {
    ip("netns add switch");
    ip("-n switch link add br0 type bridge forward_delay 0 mcast_snooping 0");
    ip("-n switch link set br0 up");
    attach("", 1, "1");
    for (number, host) in hosts.iter().enumerate() {
        ip(&format!("netns add {host}"));
        ip(&format!("-n {host} link set lo up"));
        attach(host, number + 2, &(201 + number).to_string());
    }
}

fn attach(host: &str, port: usize, last: &str) {
    let (at, of) = if host.is_empty() {
        (String::new(), "1".to_owned())
    } else {
        (format!("-n {host} "), host.to_owned())
    };
    // Created in the switch's namespace, so that its name there cannot collide with one here.
    ip(&format!("-n switch link add port{port} type veth peer name far{port}"));
    ip(&format!("-n switch link set far{port} netns {of}"));
    ip(&format!("{at}link set far{port} name {INTERFACE} address 02:00:00:00:00:{port:02x}"));
    ip(&format!("-n switch link set port{port} master br0 up"));
    ip(&format!("{at}link set {INTERFACE} up"));
    ip(&format!("{at}addr add 10.1.1.{last}/24 dev {INTERFACE}"));
    ip(&format!("{at}addr add 2001:db8::{last}/64 dev {INTERFACE} nodad"));
}

/// Connects this host to the network a second time, by `eth2` without an address.
pub fn add_second_interface() {
    ip("-n switch link add port9 type veth peer name far9");
    ip("-n switch link set far9 netns 1");
    ip(&format!("link set far9 name {SECOND_INTERFACE} address 02:00:00:00:00:09"));
    ip("-n switch link set port9 master br0 up");
    ip(&format!("link set {SECOND_INTERFACE} up"));
}

/// Creates this host's interface again after its deletion, with its IPv4 address, and waits for its carrier.
pub fn create_interface_again() {
    ip("-n switch link add port1 type veth peer name far1");
    ip("-n switch link set far1 netns 1");
    ip(&format!("link set far1 name {INTERFACE} address 02:00:00:00:00:01"));
    ip("-n switch link set port1 master br0 up");
    ip(&format!("link set {INTERFACE} up"));
    ip(&format!("addr add 10.1.1.1/24 dev {INTERFACE}"));
    eventually("a carrier", || ip(&format!("link show {INTERFACE}")).contains("LOWER_UP").then_some(()));
}

/// Runs code in another host and returns its result. Sockets that it opens stay in that host.
pub fn in_host<T: Send>(host: &str, act: impl FnOnce() -> T + Send) -> T {
    let namespace = std::fs::File::open(format!("/run/netns/{host}")).unwrap();
    let enter = || {
        move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
        act()
    };
    // This changes the namespace of the new thread only, which ends here.
    std::thread::scope(|scope| scope.spawn(enter).join().unwrap())
}

/// Also adds an address to the loopback interface, and returns when it is effective: the kernel adds the route of an IPv6
/// address with a delay.
#[track_caller]
pub fn add_to_loopback(copy: &str) {
    ip(&format!("addr add {copy} dev lo"));
    let (address, _) = copy.split_once('/').unwrap();
    let family = if address.contains(':') { "-6" } else { "-4" };
    let route = format!("local {address} dev lo ");
    eventually("its route", || {
        ip(&format!("{family} route show table local")).contains(&route).then_some(())
    });
}

/// The line of `ip addr show` about an address, if this host has it.
pub fn show_address(address: &str) -> Option<String> {
    let text = ip("-o -d addr show");
    let found = text
        .lines()
        .find(|line| line.contains(&format!(" {address}/")) || line.contains(&format!(" {address} ")));
    found.map(str::to_owned)
}

/// Every address of this host, as ip(8) shows it, without the fields that change by themselves.
pub fn addresses() -> Vec<String> {
    let text = ip("-o addr show");
    let mut lines: Vec<String> = text
        .lines()
        .map(|line| {
            line.split(" valid_lft")
                .next()
                .unwrap_or_default()
                .split_whitespace()
                .filter(|word| *word != "tentative")
                .collect::<Vec<_>>()
                .join(" ")
        })
        .collect();
    lines.sort();
    lines
}
