//! Unknown names.

use super::{assert_report, report_of};

#[test]
fn mistakes_in_names() {
    assert_report!(&[
        ("a misspelt option", "security { capabilites = \"\" }"),
        ("an unknown option", "security { banner = \"\" }"),
        ("an option of another scope", "broker { user = mail }"),
        ("a misspelt option of worker", "worker { comand = ( /bin/x ) }"),
        ("a misspelt option of a permit", "broker { permit \"mail\" { listens = ( :25 ) } }"),
        ("a misspelt option of a peer", "broker { socket = /run/b peer root { allowed = ( ping ) } }"),
        ("a misspelt scope", "secuirty { user = mail }"),
        ("a misspelt worker", "wrker { command = ( /bin/x ) }"),
        ("a misspelt broker", "Borker { socket = /run/b }"),
        ("a misspelt cluster", "clustre { arp_all_hosts = true }"),
        ("a misspelt binding group", "Bindng_Group { Binding a { bind_address = 10.1.1.1 } }"),
        ("a misspelt listener", "ESMTP_Listner {\n  Listen \"*:25\" { }\n  Listen \"[::]:25\" { }\n}"),
        ("a listener without its underscore", "ESMTPListener { Listen \"*:25\" { } }"),
        ("a listener of Momentum 2 that is misspelt", "ESMTP_Listner = ( *:25 )"),
        ("a listener as an option", "ESMTP_Listener = \"*:25\""),
        ("a scope as an option", "worker = /bin/x"),
        ("a Listen in another scope", "Inbound { Listen \"*:25\" { } }"),
        ("a Listen as an option in another scope", "Inbound { Listen = \"*:25\" }"),
        ("a misspelt scope in broker", "broker { permitt \"mail\" { } }"),
        ("a scope in security", "security { permit \"mail\" { } }"),
        ("an option as a scope", "broker { socket { } }"),
        ("a permit as an option", "broker { permit = mail }"),
        ("a misspelt listen", "ESMTP_Listener { Lisen \":25\" { } }"),
        ("listen as an option", "ESMTP_Listener { Listen = \"*:25\" }"),
        ("a listen scope at top level", "Listen \"*:25\" { }"),
        ("a permit at top level", "permit \"mail\" { listen = ( :25 ) }"),
        (
            "a misspelt option of a listen",
            "ESMTP_Listener { Listen_Backlg = 5 Listen \":25\" { Enabled = false Idle_Time = 3 } }"
        ),
        (
            "parts of the names of options of a listen",
            "ESMTP_Listener { Listen \":25\" { Backlog = 5 mode = 0600 recv_buffer_size = 9 freebind = true } }"
        ),
        (
            "options of requests in a listen",
            "ESMTP_Listener { Reuse_Port = true Listen \":25\" { device = eth1 defer_accept = 3 } }"
        ),
        ("a permit without a name", "broker { permit { listen = ( :25 ) } }"),
        ("a peer without a name", "broker { socket = /run/b peer { allow = ( ping ) } }"),
        ("a group without a name", "broker { socket = /run/b peer \"@\" { allow = ( ping ) } }"),
        ("a listen without an endpoint", "ESMTP_Listener { Listen { } }"),
        ("a binding without a name", "Binding { }"),
        ("security with a name", "security \"x\" { user = mail }"),
        ("an unknown operation", "broker { socket = /run/b peer root { allow = ( listn ) } }"),
        (
            "an operation that does not exist",
            "broker { socket = /run/b peer root { allow = ( everything ) } }"
        ),
        (
            "an unknown permit",
            "broker { socket = /run/b permit \"mail\" {} peer www { allow = listen permit = ( mial ) } }"
        ),
        (
            "a permit that does not exist",
            "broker { socket = /run/b peer www { allow = listen permit = ( mail ) } }"
        ),
    ]);
}
