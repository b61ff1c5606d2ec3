//! The sample owner of an address in C: its lease is renewed, and ends when the program ends.

use std::process::Command;
use std::time::{Duration, Instant};

use portreeve_tests::broker::SOCKET;
use portreeve_tests::{Broker, eventually, isolated, lan, sample};
use rustix::process::Signal;

use crate::compiler::{ADDRESS_HOLDER, compile_example};
use crate::greeter::Example;

const ADDRESS: &str = "10.1.1.7";
const RENEWED: &str = "renewed 10.1.1.7\n";

#[test]
fn an_owner_in_c_renews_its_lease_adds_the_address_again_and_removes_it() {
    isolated(|host| {
        lan::create(&["far"]);
        let text = sample::addresses("");
        let mut broker = Broker::start(host, &text);
        let program = compile_example(host, "address_holder", ADDRESS_HOLDER);
        // The control socket allows nobody addresses, and the program needs no privilege.
        let mut holder = Example::start(Command::new(&program).args([ADDRESS, "6", SOCKET]), 65_534);
        assert_eq!(holder.line(), "added 10.1.1.7 to eth1\n");
        let begin = Instant::now();
        while begin.elapsed() < Duration::from_millis(7_500) {
            assert_eq!(holder.line(), RENEWED);
            assert!(lan::show_address(ADDRESS).is_some(), "removed after {:?}", begin.elapsed());
        }
        // The next broker has no lease, and the program adds the address again.
        broker.signal(Signal::KILL);
        broker.wait_for_exit();
        let broker = Broker::start(host, &text);
        let again = eventually("the address at the next broker", || {
            Some(holder.line()).filter(|line| line != RENEWED)
        });
        assert_eq!(again, "added 10.1.1.7 to eth1\n");
        assert!(lan::show_address(ADDRESS).is_some());
        let (lines, status) = holder.terminate();
        assert_eq!(lines.last().map(String::as_str), Some("removed 10.1.1.7"), "{lines:?}");
        assert!(status.success() && lan::show_address(ADDRESS).is_none());
        drop(broker);
    });
}

#[test]
fn the_address_of_a_killed_owner_in_c_goes_with_its_lease() {
    isolated(|host| {
        lan::create(&["far"]);
        let _broker = Broker::start(host, &sample::addresses(""));
        let program = compile_example(host, "address_holder", ADDRESS_HOLDER);
        let mut holder = Example::start(Command::new(&program).args([ADDRESS, "6", SOCKET]), 65_534);
        assert_eq!(holder.line(), "added 10.1.1.7 to eth1\n");
        assert_eq!(holder.line(), RENEWED);
        drop(holder);
        let begin = Instant::now();
        eventually("the end of the lease", || lan::show_address(ADDRESS).is_none().then_some(()));
        assert!(begin.elapsed() < Duration::from_secs(12), "{:?}", begin.elapsed());
    });
}
