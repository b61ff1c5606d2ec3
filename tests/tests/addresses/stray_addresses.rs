//! Start of a broker on a host that has stray floating addresses of an earlier program.

use portreeve_tests::{Broker, StartupFailure, isolated, lan, sample};

/// Declares 10.1.1.7, its follower 10.1.1.8, and 2001:db8::7 as floating addresses.
const DECLARED: &str = "
    binding a { bind_address = 10.1.1.7 enable_duravip = true }
    binding b { bind_address = \"2001:db8::7\" enable_duravip = true }
    ESMTP_Listener { Listen \"10.1.1.8:25\" { duravip_follow = a } }";

#[test]
fn only_stray_floating_addresses_are_removed_at_start() {
    isolated(|host| {
        lan::create(&["far"]);
        for foreign in ["10.1.1.20/32", "10.1.1.21/24", "2001:db8::20/128 nodad"] {
            lan::ip(&format!("addr add {foreign} dev eth1"));
        }
        let (before, links) = (lan::addresses(), lan::ip("-o link show"));
        for stray in ["10.1.1.7/32", "10.1.1.8/32", "2001:db8::7/128 nodad"] {
            lan::ip(&format!("addr add {stray} dev eth1"));
        }
        let broker = Broker::start(host, &sample::addresses(DECLARED));
        assert_eq!((lan::addresses(), lan::ip("-o link show")), (before, links));
        for address in ["10.1.1.7", "10.1.1.8", "2001:db8::7"] {
            broker.log.wait_for(&["removed a leftover address", address, "another program"]);
        }
    });
}

#[test]
fn a_floating_address_that_belongs_to_the_host_is_an_error_and_stays() {
    isolated(|host| {
        lan::create(&["far"]);
        let main = "binding a { bind_address = 10.1.1.1 enable_duravip = true }";
        let before = lan::addresses();
        StartupFailure::of(host, &sample::addresses(main))
            .assert_reports(78, &["addresses", "10.1.1.1 is already configured on this host"]);
        assert_eq!(lan::addresses(), before);
        // On another interface or with another prefix length, the address was configured on purpose.
        for own in ["10.1.1.7/32 dev lo", "10.1.1.7/24 dev eth1", "2001:db8::7/64 dev eth1 nodad"] {
            lan::ip(&format!("addr add {own}"));
            let before = lan::addresses();
            let address = own.split('/').next().unwrap();
            StartupFailure::of(host, &sample::addresses(DECLARED))
                .assert_reports(78, &[address, "is already configured on this host"]);
            assert_eq!(lan::addresses(), before);
            lan::ip(&format!("addr del {}", own.trim_end_matches(" nodad")));
        }
        // The last address of an interface is never removed.
        lan::ip("addr del 10.1.1.1/24 dev eth1");
        lan::ip("addr add 10.1.1.7/32 dev eth1");
        let before = lan::addresses();
        StartupFailure::of(host, &sample::addresses(DECLARED))
            .assert_reports(78, &["10.1.1.7", "is already configured on this host"]);
        assert_eq!(lan::addresses(), before);
    });
}
