//! The configuration language: every form in every place, and how scopes of the same name merge.
#![forbid(unsafe_code)]
#![allow(clippy::panic)] // test helpers may panic

use portreeve_broker::config::{Config, check_syntax_text, parse_text};

fn load(text: &str) -> Config {
    match parse_text("main.conf", text) {
        Ok((config, _)) => config,
        Err(report) => panic!("{report}"),
    }
}

#[test]
fn every_form_is_accepted_in_every_place() {
    let forms = [
        "Max_Connections = 100",
        "Spool = /var/spool/mail",
        "Ratio = 0.75 Backlog = 0x1F4 Mode = 0660 Negative = -1",
        "Banner = \"hello # not a comment /* nor this */ { [ (\"",
        "Pattern = \"^\\d+\\.example\\.com$\"",
        "Quote = \"a \\\"quoted\\\" word\"",
        "Lines = \"one\ntwo\"",
        "Empty = \"\"",
        "Domain = example.com Address = 10.0.0.0/8 Range = 10.0.0.1-10.0.0.9 Star = *:25",
        "Url = http://www.example.com:80/path?query&more Mail = postmaster@example.com",
        "Log = cluster:///var/log/mainlog Percent = 50% Tilde = ~/x Dollar = $x Bang = !x Pipe = a|b Angle = <a>",
        "Hosts = ( 127.0.0.0/8 \"10.0.0.0/8\", 192.168.0.0/16, )",
        "Hosts = ()",
        "Hosts = (10 20)",
        "Hosts (\n  a # first\n  b, /* second */\n  \"c d\"\n)",
        "Values [ 127.0.0.2 = \"hits\" uri = \"digest:///etc/passwd\" a.b.c = d ]",
        "Values = [ ]",
        "hook:connect [ script = \"/path\" async = \"false\" ]",
        "Scope { }",
        "Scope = { Option = 1 }",
        "Scope name { Option = 1 }",
        "Scope \"a name\"{Option=1}",
        "Scope \"a name\" = { Option = 1 }",
        "Scope name\n{\n  Option = 1\n}",
        "Listen /tmp/2025 {}",
        "Module kind/name name { register:scheme [ query = \"SELECT 1\n  AS x\" ] }",
        "Module \"kind/name\" {}",
        "Logger logging/name name { log_errors = on }",
        "Validate \"kind/name\" name {}",
        "IO_System kind/name name = {}",
        "NAS-IP-Address = 10.0.0.1 map [ user-name = \"%{a||b}\" ]",
        "Binding example <duravip=\"enabled\"> { Bind_Address = 10.0.0.1 }",
        "Binding \"example\" <a=b c=\"d\" >\n{ }",
        "Esmtp_Listener = ( )",
        "Esmtp_Listener = (\n  *:25\n  [::1]:25 127.0.0.1:25,200 *:587,200~20 # backlog~concurrency\n)",
        "Control_Listener ( /tmp/2025 *:2025 <proto=ipv4> [ 0.0.0.0/0 = ( DIGEST-MD5 [ uri = digest:///f ] continue ) ] )",
        "Esmtp_Listener = ( *:25 [ 10.0.0.0/8 = ( a [ b = \"c\" d = true ] relay_hosts ( 1.2.3.4, 10.0.0.0/24 ) ) ::1/0 = ( ) ] )",
        "X_Listener = ( *:25 <status=\"disabled\" name=\"a b\"> [::2]:25 <proto=ipv6> [ ] \\pipe~5 [ DENY = ( D\\U ) ] )",
        "include \"other.conf\"",
        "include other.conf",
        "readonly_include \"/etc/conf.d\"",
        "INCLUDE other.conf",
        "# a comment",
        "/* a comment * over ** lines\n **/",
        "a=b c=d e={}f=(g)h=[i=j]k=\"l\"m=n",
    ];
    for form in forms {
        for text in [
            form.to_owned(),
            format!("{form}\n"),
            format!("{form}\r\n{form}"),
            format!("x {{ {form}\n }}"),
            format!("x{{y \"z\" {{\n{form}\n}} {form}\n}}"),
        ] {
            assert_eq!(check_syntax_text("form", &text), Ok(()), "{text}");
        }
    }
    assert_eq!(check_syntax_text("all", &forms.join("\n")), Ok(()));
}

#[test]
fn rules_of_a_momentum_2_listener_nest_to_a_limited_depth() {
    let rules =
        |depth: usize| format!("X_Listener = ( :25 {}{} )", "[ a = ( b ".repeat(depth), ") ]".repeat(depth));
    assert_eq!(check_syntax_text("form", &rules(100)), Ok(()));
    let report = check_syntax_text("form", &rules(100_000)).unwrap_err();
    assert_eq!(report.diagnostics().len(), 1, "{report}");
    assert!(report.to_string().contains("nested too deep"), "{report}");
}

#[test]
fn names_ignore_case_and_values_keep_it() {
    let config = load(
        "SECURITY { User = Mail }\nEsmtp_LISTENER { LISTEN \":25\" { LISTEN_backlog = 7 } }\nbinding B { }",
    );
    assert_eq!(config.security.user_name(), "Mail");
    assert_eq!(config.listeners[0].socket.backlog, 7);
    assert_eq!(config.bindings[0].name.value, "B");
}

#[test]
fn repeated_scopes_merge_and_the_later_value_wins() {
    let config = load(
        "security { user = first group = first }
         broker { permit mail { listen = ( :25 ) } retain = 1 }
         security { user = second }
         Broker { Permit mail { address = ( 10.0.0.1 ) } permit Mail { } retain = 2 }",
    );
    assert_eq!((config.security.user_name(), config.security.group_name()), ("second", "first"));
    assert_eq!(config.broker.retain.as_secs(), 2);
    let permits: Vec<_> = config
        .broker
        .permits
        .iter()
        .map(|p| (p.name.value.as_str(), p.listen.len(), p.address.len()))
        .collect();
    assert_eq!(permits, [("mail", 1, 1), ("Mail", 0, 0)]);
}

#[test]
fn the_order_of_scopes_does_not_matter() {
    let scopes = [
        "security { user = mail }",
        "broker { socket = /run/b permit p { listen = ( *:25 ) } peer www { allow = listen permit = p } }",
        "ESMTP_Listener { Listen \"10.1.1.1:25\" { duravip_follow = out } }",
        "Binding out { bind_address = 10.1.1.2 enable_duravip = on }",
        "cluster { topology 10.1.1.0/24 { interface = eth1 } }",
    ];
    let summary = |text: String| {
        let config = load(&text);
        let listener = config.listeners[0].endpoint.value.clone();
        (config.security.user_name().to_owned(), config.broker.peers.len(), listener, config.bindings.len())
    };
    let mut backwards = scopes;
    backwards.reverse();
    assert_eq!(summary(scopes.join("\n")), summary(backwards.join("\n")));
}

#[test]
fn a_listen_scope_inherits_from_its_listener() {
    let config = load(
        "X_Listener { Listen_Backlog = 1 Disable_Nagle_Algorithm = yes
           Listen \":1\" { } Listen \":2\" { Listen_Backlog = 2 Disable_Nagle_Algorithm = disabled Enable = OFF } }
         Y_Listener \"second\" { Listen \":3\" { } }",
    );
    let all: Vec<_> = config
        .listeners
        .iter()
        .map(|l| (l.scope.as_str(), l.socket.backlog, l.socket.no_delay, l.socket.enable))
        .collect();
    assert_eq!(
        all,
        [
            ("X_Listener", 1, true, true),
            ("X_Listener", 2, false, false),
            ("Y_Listener \"second\"", 500, false, true)
        ]
    );
}

#[test]
fn scopes_of_the_mta_are_skipped() {
    let config = load(
        "Domain x { security { user = wrong } deep { Listen \":1\" { } broker { nonsense = 1 } } }
         Max_Open = 5
         ESMTP_Listener { Peer a { Listen \":2\" { } } Unknown = ( a b ) Listen \":3\" { Peer b { } Other = [ a = b ] } }
         Binding_Group g { Domain y { } Binding b { bind_address = 10.0.0.1 Domain z { } } }",
    );
    assert_eq!(config.security.user_name(), "ecuser");
    assert_eq!(config.listeners.len(), 1);
    assert_eq!(config.bindings.len(), 1);
    let skipped: Vec<_> = config.skipped.iter().map(|name| name.value.as_str()).collect();
    assert_eq!(skipped, ["Domain", "Max_Open"]);
}

#[test]
fn an_address_that_is_duravip_on_one_listener_is_duravip_on_all() {
    let config = load(
        "cluster { topology 10.1.1.0/24 { interface = eth1 } }
         X_Listener { Listen \"10.1.1.1:25\" { } Listen \"10.1.1.1:587\" { enable_duravip = true } Listen \"10.1.1.2:25\" { } }
         Binding b { bind_address = 10.1.1.1 }",
    );
    let fixed: Vec<_> = config.listeners.iter().map(|listener| listener.is_static()).collect();
    assert_eq!(fixed, [false, false, true]);
    assert!(config.bindings[0].duravip.enable);
    let errors = config.host_owned_errors(&["10.1.1.1".parse().unwrap()]);
    assert_eq!(errors.len(), 3);
    assert!(errors[0].one_line().contains("the DuraVIP address 10.1.1.1 is already configured on this host"));
    assert_eq!(config.host_owned_errors(&["10.1.1.2".parse().unwrap()]), []);
}

#[test]
fn options_of_the_mta_in_its_listeners_are_skipped_silently() {
    let options = [
        "Accept_Queue_Backlog",
        "Allow_IP_Literal",
        "Allow_NULL_Envelope_Sender",
        "Always_Allow",
        "Always_Deny",
        "AuthLoginParameters",
        "AuthorizationParameters",
        "Banner_Hostname",
        "Click_Tracking_Enabled",
        "Concurrency",
        "Context",
        "Disable_Chunked",
        "Domain_For_Unqualified_Recipient_Addresses",
        "ECStream_Idle_Time",
        "Enable_Authentication",
        "Enable_Authorization",
        "Event_Loop",
        "Events_Per_Iter",
        "Idle_Time",
        "Listener_Sessions",
        "Log_Authentication",
        "Log_Requests_To_Paniclog",
        "Max_Message_Size",
        "Max_Receptions_Per_Connection",
        "Max_Recipients_Per_Message",
        "Max_Request_Size",
        "MCMT_Reception",
        "Open_Relay",
        "Pathway",
        "Peer",
        "Pool_Name",
        "Proxy_Protocol",
        "Proxy_Protocol_Timeout",
        "Realm",
        "Received_Hostname",
        "Reconfig_Message",
        "Relay_For_Sending_Domains",
        "Relay_Hosts",
        "Require_EHLO",
        "Service_Sessions",
        "SMTP_Extensions",
        "STARTTLS_Injection_Policy",
        "Static_Banner",
        "Timeout",
        "TLS_Allow_Renegotiation",
        "TLS_Certificate",
        "TLS_Ciphers",
        "TLS_Client_CA",
        "TLS_Key",
        "TLS_Protocols",
        "TLS_Verified_Peer_Can_Relay",
        "TLS_Verify_Mode",
        "Tracking_Domain",
        "Trusted_MX",
        "Uri",
        "Use_SSL",
    ];
    let set: String = options.iter().map(|option| format!("{option} = 1\n")).collect();
    let text = format!("ESMTP_Listener {{ {set} Listen \":25\" {{ {set} }} }}");
    let (_, warnings) = parse_text("main.conf", &text).unwrap_or_else(|report| panic!("{report}"));
    assert!(warnings.is_empty(), "{warnings:?}");
}

#[test]
fn scopes_of_the_mta_are_skipped_silently() {
    let scopes = [
        "adaptive",
        "adaptive_backstore_leveldb",
        "adaptive_backstore_riak",
        "adaptive_sweep_rule",
        "alerting",
        "alias",
        "antivirus",
        "apn",
        "auth_ds",
        "auth_radius",
        "Authorization",
        "beik",
        "bounce_behavior",
        "bounce_classifier",
        "bounce_logger",
        "brightmail",
        "cassandra_client",
        "chunk_logger",
        "clamav",
        "cloudmark",
        "compress_spool",
        "csapi",
        "curfew",
        "custom_logger",
        "dane",
        "Datasource",
        "delivery_pool",
        "dkim_validate",
        "dnsbuf",
        "Domain",
        "ds_core",
        "ec_logger",
        "engagement_tracker",
        "event_hydrant",
        "EventLoop",
        "fbl",
        "Gateway",
        "Host",
        "http_logger",
        "httpsrv",
        "imageanalyzer",
        "inbound_audit",
        "Logs",
        "maildir",
        "maintainer_pool",
        "mm7_serv",
        "mms_logger",
        "msg_gen",
        "msgc_server",
        "mstore",
        "openarc",
        "outbound_smtp_auth",
        "Pathway",
        "Pathway_Group",
        "Peer_Group",
        "persist_io",
        "pipe_io",
        "sched",
        "scriptlet",
        "securecreds",
        "sieve",
        "smpp",
        "smpp_logger",
        "SNMP",
        "spf_macros",
        "syslog_io",
        "ThreadPool",
        "url_ripper",
        "xmpp_logger",
    ];
    let text: String = scopes.iter().map(|scope| format!("{scope} {{ Enabled = true }}\n")).collect();
    let (config, warnings) = parse_text("main.conf", &text).unwrap_or_else(|report| panic!("{report}"));
    assert!(warnings.is_empty(), "{warnings:?}");
    assert_eq!(config.skipped.len(), scopes.len());
}

#[test]
fn scopes_of_the_mta_may_have_patterns_as_names_and_placeholders_in_them() {
    let (config, warnings) = parse_text(
        "main.conf",
        r#"
        Domain /yahoo\.co(m|\.uk)$/ { Max = 1 }
        Domain /(a|b){2}\s"$/{ }
        Domain /plain\.com$/ { }
        Binding_Group g {
            Domain /google\.(com|es|ru)$/ { ... }
            Binding b { bind_address = 10.1.1.1 Domain /(x|y)/ { } }
        }
        msg_gen {
            (...)
            <options>
            ... more of them ...
            peers = [ a = b
                ...
                c = d ]
        }
        ESMTP_Listener { Listen /tmp/2025 { } Pathway x { ... } }
        security { user = mail }
        "#,
    )
    .unwrap_or_else(|report| panic!("{report}"));
    assert!(warnings.is_empty(), "{warnings:?}");
    assert_eq!((config.security.user_name(), config.bindings.len(), config.listeners.len()), ("mail", 1, 1));
    assert!(parse_text("main.conf", "security { ... }").is_err());
    for text in ["ESMTP_Listener { Listen \":25\" { (...) } }", "...", "Binding_Group g { ... }"] {
        let (_, warnings) = parse_text("main.conf", text).unwrap_or_else(|report| panic!("{report}"));
        assert_eq!(warnings.len(), 1, "{text}");
    }
}
