//! Invalid endpoints, patterns, addresses and interfaces.

use super::{assert_report, report_of};

#[test]
fn mistakes_in_endpoints_and_addresses() {
    let listen = |endpoint: &str| format!("ESMTP_Listener {{ Listen \"{endpoint}\" {{ }} }}");
    let permit = |pattern: &str| format!("broker {{ permit \"p\" {{ listen = ( \"{pattern}\" ) }} }}");
    let address = |block: &str| format!("broker {{ permit \"p\" {{ address = ( {block} ) }} }}");
    let topology = |text: &str| format!("cluster {{ topology {text} }}");
    let cases = [
        ("no port", listen("25")),
        ("a URL", listen("tcp://0.0.0.0:25")),
        ("a service's name", listen("*:smtp")),
        ("port 0", listen(":0")),
        ("a port too high", listen(":65536")),
        ("a port range in a listen scope", listen(":1-1023")),
        ("a host name", listen("mail.example.com:25")),
        ("an IPv6 address without brackets", listen("::1:25")),
        ("an IPv4 address in brackets", listen("[192.0.2.1]:25")),
        ("an IPv4-mapped address", listen("[::ffff:192.0.2.1]:25")),
        ("a link-local address without its interface", listen("[fe80::1]:25")),
        ("an interface where none can be", listen("[2001:db8::1%eth0]:25")),
        ("a path with ..", listen("/run/../etc/socket")),
        ("a path with //", listen("/run//socket")),
        ("a transport", permit("*:25/sctp")),
        ("a range backwards", permit("*:1023-1")),
        ("a range from 0", permit("*:0-1023")),
        ("a block with host bits", permit("10.1.1.7/24:25")),
        ("a prefix too long", permit("10.1.1.0/33:25")),
        ("a mapped block", permit("[::ffff:10.0.0.0/104]:25")),
        ("an IPv6 block without brackets", permit("2001:db8::/32:25")),
        ("no port in a permit", permit("10.1.1.0/24")),
        ("a star inside a path", permit("/run/*/socket")),
        ("a relative path", permit("run/socket")),
        ("a path with .", permit("/run/./socket")),
        ("a pattern's link-local address", permit("[fe80::1]:25")),
        ("no address", address("eth0")),
        ("an address's host bits", address("10.1.1.1/24")),
        ("an interface's name", "broker { permit p { interface = ( \"averyverylongname\" ) } }".to_owned()),
        ("a limit without a value", "broker { permit p { limit = ( nofile ) } }".to_owned()),
        ("a limit's name", "broker { permit p { limit = ( \"nofyle=1\" ) } }".to_owned()),
        ("a topology without a block", topology("{ interface = eth1 }")),
        ("a topology that is no block", topology("\"10.1.1\" { interface = eth1 }")),
        ("a topology without an interface", topology("\"10.1.1.0/24\" { }")),
        ("a mask too long", topology("\"10.1.1.0/24\" { interface = eth1 cidrmask = 64 }")),
        ("a binding's address", "Binding b { bind_address = \"10.1.1.1:25\" }".to_owned()),
    ];
    let cases: Vec<(&str, &str)> = cases.iter().map(|(name, text)| (*name, text.as_str())).collect();
    assert_report!(&cases);
}
