//! Which endpoints a rule permits.

use portreeve_broker::policy::Requester;
use portreeve_protocol::{Endpoint, Text};

use super::{allows, check, local, permit, policy, tcp};

#[test]
fn an_empty_configuration_permits_nothing() {
    let policy = policy("");
    for endpoint in ["*:25", "[::]:25", "127.0.0.1:1", "*:53/udp", "/run/a", "seqpacket:/run/a"] {
        assert!(!allows(&policy, endpoint), "{endpoint}");
    }
    assert!(policy.tcp_ports().is_empty());
}

#[test]
fn a_port_is_permitted_and_its_neighbours_are_not() {
    check("\"*:25\"", &["*:25"], &["*:24", "*:26", "*:2525"]);
    check("\"*:1-1023\"", &["*:1", "*:1023"], &["*:1024", "*:65535"]);
    check("\"*:65535\"", &["*:65535"], &["*:1"]);
}

#[test]
fn ipv4_rules_do_not_permit_ipv6_and_vice_versa() {
    check("\"*:25\"", &["192.0.2.1:25"], &["[::]:25", "[2001:db8::1]:25"]);
    check("\"[::]:25\"", &["[::]:25", "[2001:db8::1]:25"], &["*:25", "192.0.2.1:25"]);
    check("\"0.0.0.0/0:25\"", &["192.0.2.1:25"], &["[2001:db8::1]:25"]);
}

#[test]
fn a_socket_without_a_copy_in_the_broker_needs_a_permit_that_says_so() {
    let policy = policy(
        "broker {
            permit kept { listen = ( \"*:25\" \"[::]:26\" ) }
            permit unkept { unkept = true listen = ( \"127.0.0.1:25\" \"*:26\" \"192.0.2.0/24:1-9\" ) }
            peer www { allow = ( listen ) permit = ( kept ) }
            peer mail { allow = ( listen ) permit = ( unkept ) }
            peer \"@ops\" { allow = ( status ) permit = ( unkept ) }
         }
         ESMTP_Listener { Listen \"*:587\" { } }",
    );
    let unkept = |requester: &Requester, endpoint: &str| {
        let endpoint = endpoint.parse::<Endpoint>().unwrap();
        policy.unkept(requester, &endpoint).map(|rule| rule.text.clone()).ok()
    };
    let single = Some("permit \"unkept\": listen unkept 127.0.0.1:25".to_owned());
    let block = Some("permit \"unkept\": listen unkept 192.0.2.0/24:1-9".to_owned());
    for requester in [Requester::Worker, local(0, &[]), local(8, &[])] {
        assert_eq!(unkept(&requester, "127.0.0.1:25"), single, "{requester}");
        assert_eq!(unkept(&requester, "192.0.2.7:9"), block, "{requester}");
        for endpoint in ["*:25", "127.0.0.2:25", "[::]:26", "192.0.2.7:10", "*:587", "127.0.0.1:25/udp"] {
            assert_eq!(unkept(&requester, endpoint), None, "{requester} {endpoint}");
        }
    }
    for requester in [local(33, &[]), local(1000, &[500])] {
        assert_eq!(unkept(&requester, "127.0.0.1:25"), None, "{requester}");
    }
}

#[test]
fn an_ipv4_mapped_address_is_always_denied() {
    let policy = permit("\"*:25\" \"[::]:25\" \"[::/0]:25\" \"10.0.0.0/8:25\"");
    for address in ["::ffff:10.1.1.1", "::ffff:0.0.0.0", "::ffff:127.0.0.1"] {
        let denied = policy.listen(&Requester::Worker, &tcp(address, 25)).unwrap_err();
        assert!(denied.remedy.contains("IPv4-mapped"), "{denied}");
    }
}

#[test]
fn the_wildcard_address_is_permitted_only_by_name() {
    check("\"10.0.0.0/8:25\"", &["10.255.0.1:25"], &["*:25"]);
    check("\"0.0.0.0/0:25\"", &["10.255.0.1:25"], &["*:25"]);
    check("\"0.0.0.0/8:25\" \"[::/0]:25\"", &["[2001:db8::1]:25"], &["*:25", "[::]:25"]);
    check("\"*:25\"", &["*:25", "10.255.0.1:25"], &[]);
}

#[test]
fn port_zero_is_always_denied() {
    let policy = permit("\"*:1-65535\" \"[::]:1-65535\"");
    let denied = policy.listen(&Requester::Worker, &tcp("0.0.0.0", 0)).unwrap_err();
    assert!(denied.remedy.contains("port 0"), "{denied}");
}

#[test]
fn udp_is_permitted_only_by_a_udp_pattern() {
    check("\"*:53\" \"192.0.2.1:53/tcp\"", &["*:53"], &["*:53/udp", "192.0.2.1:53/udp"]);
    check("\"*:53/udp\"", &["*:53/udp", "192.0.2.1:53/udp"], &["*:53"]);
}

#[test]
fn a_block_permits_its_addresses_and_no_other() {
    check("\"10.1.1.0/24:587/tcp\"", &["10.1.1.0:587", "10.1.1.255:587"], &["10.1.2.0:587", "10.1.1.1:25"]);
    check("\"[2001:db8::/32]:25\"", &["[2001:db8:ffff::1]:25"], &["[2001:db9::1]:25"]);
    check("\"192.0.2.7:25\"", &["192.0.2.7:25"], &["192.0.2.8:25", "*:25", "192.0.2.7:25/udp"]);
}

#[test]
fn an_interface_is_permitted_by_its_name_or_by_a_block() {
    check(
        "\"[fe80::1%eth0]:25\"",
        &["[fe80::1%eth0]:25"],
        &["[fe80::1%eth1]:25", "[fe80::1]:25", "[fe80::2%eth0]:25", "[2001:db8::1%eth0]:25"],
    );
    check("\"[fe80::/10]:25\"", &["[fe80::1%eth0]:25"], &["[fe80::1]:25", "[2001:db8::1%eth0]:25"]);
    check("\"[::]:25\"", &["[fe80::1%eth0]:25"], &["[fe80::1]:25", "[::1%lo]:25"]);
}

#[test]
fn a_path_is_permitted_only_as_written() {
    check(
        "\"/run/mail/a\"",
        &["/run/mail/a", "seqpacket:/run/mail/a"],
        &["/run/mail/b", "/run/mail", "/run/mail/a/b", "/run/mail/./a", "/run//mail/a", "/run/mail/x/../a"],
    );
    check(
        "\"/run/mail/*\"",
        &["/run/mail/a", "seqpacket:/run/mail/.a"],
        &["/run/mail/", "/run/mail/a/b", "/run/mail/..", "/run/mailbox", "/run/mail/../etc/a", "/run/a"],
    );
    check("\"/*\"", &["/a"], &["/a/b", "/..", "/"]);
}

#[test]
fn relative_paths_and_paths_with_nul_are_denied() {
    let policy = permit("\"/run/*\"");
    for path in ["run/a", "", "/run/a\0b", "@abstract", "\0abstract"] {
        let path = Text::new(path).unwrap();
        let denied = policy.listen(&Requester::Worker, &Endpoint::UnixStream(path)).unwrap_err();
        assert_eq!(denied.nearest, None);
    }
}

#[test]
fn a_listen_scope_permits_exactly_its_endpoint() {
    let policy =
        policy("ESMTP_Listener { Listen \"*:25\" { } Listen \"192.0.2.1:587\" { } Listen /run/a { } }");
    for endpoint in ["*:25", "192.0.2.1:587", "/run/a"] {
        assert!(allows(&policy, endpoint), "{endpoint}");
    }
    for endpoint in ["192.0.2.1:25", "*:587", "[::]:25", "*:25/udp", "seqpacket:/run/a"] {
        assert!(!allows(&policy, endpoint), "{endpoint}");
    }
}

#[test]
fn the_enabled_one_of_two_listen_scopes_sets_the_socket_options() {
    let policy = policy(
        "A_Listener { Listen \":25\" { Listen_Backlog = 1 } } B_Listener { Listen \":25\" { Enable = no Listen_Backlog = 2 } }",
    );
    let endpoint: Endpoint = "*:25".parse().unwrap();
    let permit = policy.listen(&Requester::Worker, &endpoint).unwrap();
    assert_eq!(permit.socket().unwrap().backlog, 1);
}
