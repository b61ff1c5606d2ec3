//! Every mistake is told with its place and its remedy: the wording, for review.
//!
//! Each case is a whole configuration. What stands in the snapshots is what an operator reads.
#![forbid(unsafe_code)]

use portreeve_broker::config::parse_text;

/// What an operator reads of each configuration, mistakes and warnings.
fn told(cases: &[(&str, &str)]) -> String {
    let mut out = String::new();
    for (name, text) in cases {
        let said = match parse_text("main.conf", text) {
            Err(report) => report.to_string(),
            Ok((_, warnings)) => {
                assert!(!warnings.is_empty(), "{name} is no mistake");
                let shown = |found: &portreeve_broker::config::Diagnostic| found.to_string();
                warnings.iter().map(shown).collect::<Vec<_>>().join("\n")
            }
        };
        out += &format!("# {name}\n\n{said}\n\n");
    }
    out
}

/// A snapshot without the source that the cases already are.
macro_rules! assert_told {
    ($cases:expr) => {
        insta::with_settings!({omit_expression => true}, {
            insta::assert_snapshot!(told($cases));
        });
    };
}

#[test]
fn mistakes_in_the_grammar() {
    assert_told!(&[
        ("a value is missing", "security {\n  user =\n  group = mail\n}\n"),
        ("a name alone", "security {\n  user\n}\n"),
        (
            "a name alone before an option",
            "security {\n  user\n  group = mail\n}\n"
        ),
        ("no = before a value", "security {\n  user mail\n}\n"),
        ("a scope is not closed", "security {\n  user = mail\n"),
        ("a scope is closed twice", "security {\n  user = mail\n}\n}\n"),
        ("a quote is not closed", "security {\n  user = \"mail\n}\n"),
        (
            "a forgotten quote swallows the next line",
            "security {\n  user = \"mail\n  group = \"mail\"\n}\n"
        ),
        ("a comment is not closed", "/* the worker\nsecurity {}\n"),
        (
            "a list is not closed",
            "security {\n  supplemental_groups = ( mail adm\n  user = mail\n}\n"
        ),
        (
            "a list is not closed before the scope ends",
            "security {\n  supplemental_groups = ( mail\n}\n"
        ),
        (
            "a dictionary is not closed",
            "worker {\n  environment = [ TZ = UTC\n}\n"
        ),
        (
            "a dictionary key without a value",
            "worker { environment = [ TZ ] }"
        ),
        (
            "a list in a dictionary",
            "worker { environment = [ TZ = ( a b ) ] }"
        ),
        (
            "a list in a list",
            "security { supplemental_groups = ( a ( b ) ) }"
        ),
        (
            "two commas in a list",
            "security { supplemental_groups = ( a,, b ) }"
        ),
        (
            "commas without a list",
            "security {\n  supplemental_groups = mail, adm\n}\n"
        ),
        (
            "a comma in a dictionary",
            "worker { environment = [ A = 1, B = 2 ] }"
        ),
        ("a semicolon", "security { user = mail; }"),
        ("single quotes", "security { user = 'mail' }"),
        ("a C++ comment", "// the worker\nsecurity { user = mail }\n"),
        ("a name with a hyphen", "security { user-name = mail }"),
        ("a quoted name", "\"security\" { user = mail }"),
        ("a scope without a name", "{ user = mail }"),
        ("a scope's value", "worker = \"x\" { }"),
        ("brackets alone", "( a b )"),
        ("= alone", "= mail"),
        ("include without a file", "include\n"),
        ("include with =", "include = \"parts.conf\"\n"),
        ("a control character", "security { user = \u{1b}[31m }"),
        ("everything at once", "a = b = c\n} ; ' \n security { user }\n"),
    ]);
}

#[test]
fn mistakes_in_values() {
    assert_told!(&[
        ("no boolean", "worker { command = /bin/x restart = perhaps }"),
        ("no number", "ESMTP_Listener { listen_backlog = many }"),
        ("a negative number", "ESMTP_Listener { listen_backlog = -1 }"),
        (
            "a number of another base",
            "ESMTP_Listener { listen_backlog = 09 }"
        ),
        ("a backlog of none", "ESMTP_Listener { listen_backlog = 0 }"),
        (
            "a buffer beyond an int",
            "ESMTP_Listener { tcp_recv_buffer_size = 2147483648 }"
        ),
        ("a mode with another base", "broker { socket_mode = 0x1b0 }"),
        ("a mode of a decimal", "broker { socket_mode = 0698 }"),
        (
            "a mode with special bits",
            "ESMTP_Listener { Listen \"/run/a\" { file_mode = 04770 } }"
        ),
        ("seconds with a unit", "broker { retain = 30s }"),
        ("half a second", "broker { retain = 0.5 }"),
        ("a lease too short", "broker { lease = 2 }"),
        ("no choice of on_narrow", "broker { on_narrow = drop }"),
        ("a list for one value", "security { user = ( mail ) }"),
        (
            "a dictionary for a list",
            "security { supplemental_groups = [ a = b ] }"
        ),
        (
            "a word for a dictionary",
            "worker { command = /bin/x environment = TZ }"
        ),
        ("an empty value", "security { user = \"\" }"),
        (
            "an empty word",
            "security { supplemental_groups = ( \"\" mail ) }"
        ),
        ("an id too high", "security { user = 4294967295 }"),
        ("a relative chroot", "security { chroot = var/empty }"),
        ("a relative control socket", "broker { socket = broker.sock }"),
        (
            "a long path",
            &format!("broker {{\n  socket = /{}\n}}", "x".repeat(107))
        ),
        ("a relative program", "worker { command = ( smtp-worker ) }"),
        ("an empty command", "worker { command = ( ) }"),
        ("no command", "worker { restart = no }"),
        (
            "an environment name",
            "worker { command = /bin/x environment = [ \"A=B\" = 1 ] }"
        ),
        (
            "an unknown limit",
            "worker { command = /bin/x limit = [ nofiles = 80000 ] }"
        ),
        (
            "no limit's value",
            "worker { command = /bin/x limit = [ nofile = 80k ] }"
        ),
    ]);
}

#[test]
fn mistakes_in_names() {
    assert_told!(&[
        ("a misspelt option", "security { capabilites = \"\" }"),
        ("an unknown option", "security { banner = \"\" }"),
        ("an option of another scope", "broker { user = mail }"),
        ("a misspelt option of worker", "worker { comand = ( /bin/x ) }"),
        (
            "a misspelt option of a permit",
            "broker { permit \"mail\" { listens = ( :25 ) } }"
        ),
        (
            "a misspelt option of a peer",
            "broker { socket = /run/b peer root { allowed = ( ping ) } }"
        ),
        ("a misspelt scope", "secuirty { user = mail }"),
        ("a misspelt scope in broker", "broker { permitt \"mail\" { } }"),
        ("a scope in security", "security { permit \"mail\" { } }"),
        ("an option as a scope", "broker { socket { } }"),
        ("a permit as an option", "broker { permit = mail }"),
        ("a misspelt listen", "ESMTP_Listener { Lisen \":25\" { } }"),
        (
            "a permit without a name",
            "broker { permit { listen = ( :25 ) } }"
        ),
        (
            "a peer without a name",
            "broker { socket = /run/b peer { allow = ( ping ) } }"
        ),
        (
            "a group without a name",
            "broker { socket = /run/b peer \"@\" { allow = ( ping ) } }"
        ),
        ("a listen without an endpoint", "ESMTP_Listener { Listen { } }"),
        ("a binding without a name", "Binding { }"),
        ("security with a name", "security \"x\" { user = mail }"),
        (
            "an unknown operation",
            "broker { socket = /run/b peer root { allow = ( listn ) } }"
        ),
        (
            "an operation of nobody",
            "broker { socket = /run/b peer root { allow = ( everything ) } }"
        ),
        (
            "an unknown permit",
            "broker { socket = /run/b permit \"mail\" {} peer www { allow = listen permit = ( mial ) } }"
        ),
        (
            "a permit of nobody",
            "broker { socket = /run/b peer www { allow = listen permit = ( mail ) } }"
        ),
    ]);
}

#[test]
fn mistakes_in_endpoints_and_addresses() {
    let listen = |endpoint: &str| format!("ESMTP_Listener {{ Listen \"{endpoint}\" {{ }} }}");
    let permit = |pattern: &str| format!("broker {{ permit \"p\" {{ listen = ( \"{pattern}\" ) }} }}");
    let address = |block: &str| format!("broker {{ permit \"p\" {{ address = ( {block} ) }} }}");
    let topology = |text: &str| format!("cluster {{ topology {text} }}");
    let cases = [
        ("no port", listen("25")),
        ("port 0", listen(":0")),
        ("a port too high", listen(":65536")),
        ("a port range in a listen scope", listen(":1-1023")),
        ("a host name", listen("mail.example.com:25")),
        ("an IPv6 address without brackets", listen("::1:25")),
        ("an IPv4 address in brackets", listen("[192.0.2.1]:25")),
        ("an IPv4-mapped address", listen("[::ffff:192.0.2.1]:25")),
        (
            "a link-local address without its interface",
            listen("[fe80::1]:25"),
        ),
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
        (
            "an interface's name",
            "broker { permit p { interface = ( \"averyverylongname\" ) } }".to_owned(),
        ),
        (
            "a limit without a value",
            "broker { permit p { limit = ( nofile ) } }".to_owned(),
        ),
        (
            "a limit's name",
            "broker { permit p { limit = ( \"nofyle=1\" ) } }".to_owned(),
        ),
        ("a topology without a block", topology("{ interface = eth1 }")),
        (
            "a topology that is no block",
            topology("\"10.1.1\" { interface = eth1 }"),
        ),
        ("a topology without an interface", topology("\"10.1.1.0/24\" { }")),
        (
            "a mask too long",
            topology("\"10.1.1.0/24\" { interface = eth1 cidrmask = 64 }"),
        ),
        (
            "a binding's address",
            "Binding b { bind_address = \"10.1.1.1:25\" }".to_owned(),
        ),
    ];
    let cases: Vec<(&str, &str)> = cases.iter().map(|(name, text)| (*name, text.as_str())).collect();
    assert_told!(&cases);
}

#[test]
fn mistakes_between_scopes() {
    let listen = |text: &str| format!("{TOPOLOGY}ESMTP_Listener {{ {text} }}\n{BINDING}");
    let cases = [
        (
            "one endpoint twice",
            listen("Listen \":25\" { } Listen \"*:25\" { }"),
        ),
        (
            "one endpoint in two listeners",
            "ESMTP_Listener { Listen \":25\" { } }\nHTTP_Listener { Listen \":25\" { } }\n".to_owned(),
        ),
        (
            "a wildcard and one of its addresses",
            listen("Listen \":25\" { } Listen \"10.2.1.1:25\" { }"),
        ),
        (
            "a wildcard that moves",
            listen("Listen \":25\" { enable_duravip = on }"),
        ),
        (
            "a path that moves",
            listen("Listen /run/a { enable_duravip = on }"),
        ),
        (
            "an address outside the topology",
            listen("Listen \"10.9.1.1:25\" { enable_duravip = on }"),
        ),
        (
            "a loopback address that moves",
            listen("Listen \"127.0.0.1:25\" { enable_duravip = on }"),
        ),
        (
            "a follower that moves by itself",
            listen("Listen \"10.1.1.1:25\" { enable_duravip = on duravip_follow = out }"),
        ),
        (
            "a follower with a preference",
            listen("Listen \"10.1.1.1:25\" { duravip_preference = mx1 duravip_follow = out }"),
        ),
        (
            "a follower of nobody",
            listen("Listen \"10.1.1.1:25\" { duravip_follow = Out }"),
        ),
        (
            "a follower of an address",
            listen("Listen \"10.1.1.1:25\" { duravip_follow = \"10.1.1.9\" }"),
        ),
        (
            "a follower of what stays",
            listen("Listen \"10.1.1.1:25\" { duravip_follow = fixed }"),
        ),
        (
            "a follower of its own address",
            listen("Listen \"10.1.1.2:25\" { duravip_follow = out }"),
        ),
        (
            "a preference of what stays",
            listen("Listen \"10.2.1.1:25\" { duravip_preference = mx1 }"),
        ),
        (
            "two preferences",
            listen("Listen \"10.1.1.2:25\" { enable_duravip = on duravip_preference = mx1 }"),
        ),
        (
            "a binding that follows",
            format!("{TOPOLOGY}{BINDING}Binding b {{ duravip_follow = out }}\n"),
        ),
        (
            "a binding without an address",
            format!("{TOPOLOGY}Binding b {{ enable_duravip = on }}\n"),
        ),
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
            "a permitted address outside the topology",
            format!("{TOPOLOGY}broker {{ permit p {{ address = ( 10.9.0.0/16 ) }} }}\n"),
        ),
        (
            "a peer without a socket",
            "broker { peer root { allow = status } }\n".to_owned(),
        ),
        (
            "a peer without a permit",
            "broker { socket = /run/b peer www { allow = ( status listen ) } }\n".to_owned(),
        ),
    ];
    let cases: Vec<(&str, &str)> = cases.iter().map(|(name, text)| (*name, text.as_str())).collect();
    assert_told!(&cases);
}

const TOPOLOGY: &str = "cluster { topology \"10.1.1.0/24\" { interface = eth1 } }\n";
const BINDING: &str =
    "Binding out { bind_address = \"10.1.1.2\" enable_duravip = on duravip_preference = mx2 }
Binding fixed { bind_address = \"10.2.1.2\" }\n";
