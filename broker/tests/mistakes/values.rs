//! Invalid values.

use super::{assert_report, report_of};

#[test]
fn mistakes_in_values() {
    assert_report!(&[
        ("not a boolean", "worker { command = /bin/x restart = perhaps }"),
        ("not a number", "ESMTP_Listener { listen_backlog = many }"),
        ("a negative number", "ESMTP_Listener { listen_backlog = -1 }"),
        ("a number of another base", "ESMTP_Listener { listen_backlog = 09 }"),
        ("a backlog of 0", "ESMTP_Listener { listen_backlog = 0 }"),
        ("a buffer beyond an int", "ESMTP_Listener { tcp_recv_buffer_size = 2147483648 }"),
        ("a mode with another base", "broker { socket_mode = 0x1b0 }"),
        ("a mode of a decimal", "broker { socket_mode = 0698 }"),
        ("a name with a colon", "ESMTP_Listener { Listen \":25\" { name = \"a:b\" } }"),
        ("a name that is not ASCII", "ESMTP_Listener { Listen \":25\" { name = \"büro\" } }"),
        ("typographic quotes", "security { user = \u{201e}mail\u{201c} }"),
        (
            "typographic single quotes in a list",
            "security { supplemental_groups = ( \u{2018}mail\u{2019} adm ) }"
        ),
        ("typographic quotes of a name", "ESMTP_Listener { Listen \u{201c}*:25\u{201d} { } }"),
        ("a space that does not break", "security { user = mail\u{202f} }"),
        (
            "a space that does not break in quotes",
            "security { capabilities = \"cap_net_admin+ep\u{a0}cap_net_raw+ep\" }"
        ),
        ("a typographic dash in a value", "broker { permit p { listen = ( *:25\u{2013}30 ) } }"),
        ("NUL in a value", "security { chroot = \"/srv\0\" }"),
        ("a mode with special bits", "ESMTP_Listener { Listen \"/run/a\" { file_mode = 04770 } }"),
        ("seconds with a unit", "broker { retain = 30s }"),
        ("half a second", "broker { retain = 0.5 }"),
        ("a lease too short", "broker { lease = 2 }"),
        ("a quota of 0", "broker { max_sessions = 0 }"),
        ("a quota beyond its range", "broker { max_refusals = 1000000 }"),
        ("a timeout of 0", "broker { unread_timeout = 0 }"),
        ("not a value of on_narrow", "broker { on_narrow = drop }"),
        ("a list for one value", "security { user = ( mail ) }"),
        ("a dictionary for a list", "security { supplemental_groups = [ a = b ] }"),
        ("a word for a dictionary", "worker { command = /bin/x environment = TZ }"),
        ("an empty value", "security { user = \"\" }"),
        ("an empty word", "security { supplemental_groups = ( \"\" mail ) }"),
        ("an id that is too high", "security { user = 4294967295 }"),
        ("ids without a count", "security { user_namespace = 200000 }"),
        ("ids with a sign", "security { user_namespace = \"+200000:65536\" }"),
        ("ids with root of the host", "security { user_namespace = \"0:65536\" }"),
        ("no ids", "security { user_namespace = \"200000:0\" }"),
        ("ids that are too high", "security { user_namespace = \"4294967295:1\" }"),
        (
            "another user than root of the namespace",
            "security { user_namespace = \"200000:65536\" user = mail group = 0 supplemental_groups = ( 8 ) }"
        ),
        ("a relative chroot", "security { chroot = var/empty }"),
        ("a relative control socket", "broker { socket = broker.sock }"),
        ("a long path", &format!("broker {{\n  socket = /{}\n}}", "x".repeat(107))),
        ("a relative program", "worker { command = ( smtp-worker ) }"),
        ("an empty command", "worker { command = ( ) }"),
        ("no command", "worker { restart = no }"),
        ("an environment name", "worker { command = /bin/x environment = [ \"A=B\" = 1 ] }"),
        ("not a umask", "worker { command = /bin/x umask = 0o22 }"),
        ("not an endpoint", "worker { command = /bin/x stdin = 25 }"),
        ("nothing that may be bound", "worker { command = /bin/x bind = brokered }"),
        ("no way to bind", "worker { command = /bin/x bind = broker }"),
        (
            "a listener as standard input of a worker that gets none",
            "worker { command = /bin/x bind = brokered stdin = \"*:25\" }\nESMTP_Listener { Listen \"*:25\" {} }"
        ),
        (
            "a Unix socket of a worker that gets no descriptors",
            "worker { command = /bin/x bind = brokered }\nESMTP_Listener { Listen \"/run/a\" {} }"
        ),
        ("an unknown limit", "worker { command = /bin/x limit = [ nofiles = 80000 ] }"),
        ("not the value of a limit", "worker { command = /bin/x limit = [ nofile = 80k ] }"),
    ]);
}
