//! The start of a broker on a host where a program before it has left addresses that are declared to move.

use portreeve_tests::{Broker, Refusal, isolated, lan, sample};

/// Declares 10.1.1.7, 10.1.1.8, which follows it, and 2001:db8::7 to move.
const DECLARED: &str = "
    binding a { bind_address = 10.1.1.7 enable_duravip = true }
    binding b { bind_address = \"2001:db8::7\" enable_duravip = true }
    ESMTP_Listener { Listen \"10.1.1.8:25\" { duravip_follow = a } }";

#[test]
fn what_another_program_left_of_the_declared_addresses_goes_and_nothing_else() {
    isolated(|host| {
        lan::join(&["far"]);
        for foreign in ["10.1.1.20/32", "10.1.1.21/24", "2001:db8::20/128 nodad"] {
            lan::ip(&format!("addr add {foreign} dev eth1"));
        }
        let (before, links) = (lan::addresses(), lan::ip("-o link show"));
        for left in ["10.1.1.7/32", "10.1.1.8/32", "2001:db8::7/128 nodad"] {
            lan::ip(&format!("addr add {left} dev eth1"));
        }
        let broker = Broker::start(host, &sample::addresses(DECLARED));
        assert_eq!((lan::addresses(), lan::ip("-o link show")), (before, links));
        for address in ["10.1.1.7", "10.1.1.8", "2001:db8::7"] {
            broker.log.wait_for(&["removed a leftover address", address, "another program"]);
        }
    });
}

#[test]
fn a_declared_address_that_is_the_hosts_own_is_an_error_and_is_not_touched() {
    isolated(|host| {
        lan::join(&["far"]);
        let main = "binding a { bind_address = 10.1.1.1 enable_duravip = true }";
        let before = lan::addresses();
        Refusal::of(host, &sample::addresses(main))
            .says(78, &["addresses", "10.1.1.1 is already configured on this host"]);
        assert_eq!(lan::addresses(), before);
        // Elsewhere than the broker would put it, or with another prefix, it is somebody's with a purpose.
        for own in ["10.1.1.7/32 dev lo", "10.1.1.7/24 dev eth1", "2001:db8::7/64 dev eth1 nodad"] {
            lan::ip(&format!("addr add {own}"));
            let before = lan::addresses();
            let address = own.split('/').next().unwrap();
            Refusal::of(host, &sample::addresses(DECLARED))
                .says(78, &[address, "is already configured on this host"]);
            assert_eq!(lan::addresses(), before);
            lan::ip(&format!("addr del {}", own.trim_end_matches(" nodad")));
        }
        // The last one of an interface stays, however it is declared.
        lan::ip("addr del 10.1.1.1/24 dev eth1");
        lan::ip("addr add 10.1.1.7/32 dev eth1");
        let before = lan::addresses();
        Refusal::of(host, &sample::addresses(DECLARED))
            .says(78, &["10.1.1.7", "is already configured on this host"]);
        assert_eq!(lan::addresses(), before);
    });
}
