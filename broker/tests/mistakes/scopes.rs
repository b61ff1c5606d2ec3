//! Scopes that contradict each other.

use super::{assert_report, report_of};

#[test]
fn mistakes_between_scopes() {
    let listen = |text: &str| format!("{TOPOLOGY}ESMTP_Listener {{ {text} }}\n{BINDING}");
    let cases = [
        ("one endpoint twice", listen("Listen \":25\" { } Listen \"*:25\" { }")),
        (
            "one endpoint in two listeners",
            "ESMTP_Listener { Listen \":25\" { } }\nHTTP_Listener { Listen \":25\" { } }\n".to_owned(),
        ),
        ("a wildcard and one of its addresses", listen("Listen \":25\" { } Listen \"10.2.1.1:25\" { }")),
        (
            "one of its addresses and a wildcard",
            listen("Listen \"[2001:db8::1]:25/udp\" { } Listen \"[::]:25/udp\" { }"),
        ),
        ("one path for two types of socket", listen("Listen /run/a { } Listen \"seqpacket:/run/a\" { }")),
        (
            "a listener at the path of the control socket",
            "broker { socket = /run/a }\nHTTP_Listener { Listen /run/a { } }\n".to_owned(),
        ),
        (
            "a wildcard and a floating address",
            listen("Listen \":25\" { } Listen \"10.1.1.1:25\" { enable_duravip = on }"),
        ),
        (
            "a wildcard and the address of a floating binding",
            listen("Listen \":25\" { } Listen \"10.1.1.2:25\" { }"),
        ),
        (
            "a standard input that is no listener",
            listen("Listen \"10.2.1.1:26\" { enable = off }")
                + "worker { command = /bin/x stdin = 10.2.1.1:26 }\n",
        ),
        (
            "unkept without listen",
            "broker { permit p { address = ( 10.1.1.0/24 ) unkept = on } }\n".to_owned(),
        ),
        ("a floating wildcard", listen("Listen \":25\" { enable_duravip = on }")),
        ("a floating path", listen("Listen /run/a { enable_duravip = on }")),
        ("an address outside the topology", listen("Listen \"10.9.1.1:25\" { enable_duravip = on }")),
        ("a floating loopback address", listen("Listen \"127.0.0.1:25\" { enable_duravip = on }")),
        (
            "a follower with enable_duravip",
            listen("Listen \"10.1.1.1:25\" { enable_duravip = on duravip_follow = out }"),
        ),
        (
            "a follower with a preference",
            listen("Listen \"10.1.1.1:25\" { duravip_preference = mx1 duravip_follow = out }"),
        ),
        ("a follower of an unknown binding", listen("Listen \"10.1.1.1:25\" { duravip_follow = Out }")),
        (
            "a follower of an unknown address",
            listen("Listen \"10.1.1.1:25\" { duravip_follow = \"10.1.1.9\" }"),
        ),
        (
            "a follower of a binding that does not float",
            listen("Listen \"10.1.1.1:25\" { duravip_follow = fixed }"),
        ),
        ("a follower of its own address", listen("Listen \"10.1.1.2:25\" { duravip_follow = out }")),
        (
            "a follower of two bindings",
            listen(
                "Listen \"10.1.1.1:25\" { duravip_follow = out } Listen \"10.1.1.1:26\" { duravip_follow = out2 }",
            ) + "Binding out2 { bind_address = \"10.1.1.3\" enable_duravip = on }\n",
        ),
        (
            "an address that follows and has enable_duravip",
            listen(
                "Listen \"10.1.1.1:25\" { duravip_follow = out } Listen \"10.1.1.1:26\" { enable_duravip = on }",
            ),
        ),
        (
            "a preference without enable_duravip",
            listen("Listen \"10.2.1.1:25\" { duravip_preference = mx1 }"),
        ),
        (
            "two preferences",
            listen("Listen \"10.1.1.2:25\" { enable_duravip = on duravip_preference = mx1 }"),
        ),
        ("a binding that follows", format!("{TOPOLOGY}{BINDING}Binding b {{ duravip_follow = out }}\n")),
        ("a binding without an address", format!("{TOPOLOGY}Binding b {{ enable_duravip = on }}\n")),
        (
            "one block twice",
            format!(
                "{TOPOLOGY}cluster {{ topology \"fd00::/64\" {{ interface = a }} topology \"fd00:0::/64\" {{ interface = b }} }}\n"
            ),
        ),
        (
            "a mask that brings a route",
            "cluster { topology \"10.1.1.0/24\" { interface = eth1 cidrmask = 24 } }\n".to_owned(),
        ),
        (
            "a mask wider than the block",
            "cluster { topology \"10.1.1.0/24\" { interface = eth1 cidrmask = 23 } }\n".to_owned(),
        ),
        (
            "a permitted address outside the topology",
            format!("{TOPOLOGY}broker {{ permit p {{ address = ( 10.9.0.0/16 ) }} }}\n"),
        ),
        ("a peer without a socket", "broker { peer root { allow = status } }\n".to_owned()),
        (
            "a peer without a permit",
            "broker { socket = /run/b peer www { allow = ( status listen ) } }\n".to_owned(),
        ),
    ];
    let cases: Vec<(&str, &str)> = cases.iter().map(|(name, text)| (*name, text.as_str())).collect();
    assert_report!(&cases);
}

const TOPOLOGY: &str = "cluster { topology \"10.1.1.0/24\" { interface = eth1 } }\n";
const BINDING: &str =
    "Binding out { bind_address = \"10.1.1.2\" enable_duravip = on duravip_preference = mx2 }
Binding fixed { bind_address = \"10.2.1.2\" }\n";
