//! Mistakes in the settings of the coordinator.

use super::{assert_report, report_of};

/// A cluster scope with these options and scopes, and with the names that an engine needs.
fn named(text: &str) -> String {
    format!("cluster {{ cluster_group = mail nodename = mx1 {text} }}")
}

/// The cases as [`report_of`] takes them.
fn borrowed<'c>(cases: &'c [(&'c str, String)]) -> Vec<(&'c str, &'c str)> {
    cases.iter().map(|(name, text)| (*name, text.as_str())).collect()
}

#[test]
fn mistakes_in_the_options_of_a_cluster() {
    let with_engine = |text: &str| named(&format!("{text} engine {{ endpoints = \"http://127.0.0.1\" }}"));
    let cases = [
        ("a nodename with a slash", "cluster { nodename = \"mail/mx1\" }".to_owned()),
        ("a cluster_group with a space", "cluster { cluster_group = \"my mail\" }".to_owned()),
        ("a long cluster_group", format!("cluster {{ cluster_group = {} }}", "x".repeat(65))),
        ("a lease too short", with_engine("lease = 2")),
        ("a lease too long", with_engine("lease = 3601")),
        ("a lease with a unit", with_engine("lease = 6s")),
        ("no heartbeats", with_engine("heartbeats_per_sec = 0")),
        ("too many heartbeats", with_engine("heartbeats_per_sec = 11")),
        ("not a number of heartbeats", with_engine("heartbeats_per_sec = often")),
        ("a number of heartbeats with too many decimals", with_engine("heartbeats_per_sec = 0.3333")),
        ("too few heartbeats for the lease", with_engine("heartbeats_per_sec = 0.3")),
        ("too few heartbeats for a lease that is set", with_engine("lease = 3\n heartbeats_per_sec = 0.9")),
        ("too few heartbeats for a lease that is wrong", with_engine("lease = 1\n heartbeats_per_sec = 0.1")),
        ("a set of no address", with_engine("duravip_balance_set_size = 0")),
        ("no balance interval", with_engine("view_balance_interval = 0")),
        ("half a second", with_engine("view_mature_time = 0.5")),
        ("not a value of failback", with_engine("failback = yes")),
        ("not a value of on_engine_loss", with_engine("on_engine_loss = keep")),
        ("hold without peers", with_engine("on_engine_loss = hold")),
        ("peers without certificates", with_engine("peer_listen = \"192.0.2.1:7400\"")),
        ("a port without an address", with_engine("peer_listen = 7400")),
        ("any address", with_engine("peer_listen = \"0.0.0.0:7400\"")),
        (
            "options without an engine",
            "cluster {\n  lease = 9\n  failback = manual\n  on_engine_loss = hold\n  peer_listen = \"127.0.0.1:7400\"\n}".to_owned(),
        ),
        ("a check without an engine", "cluster { check smtp { command = /bin/true } }".to_owned()),
        ("misspelt options", with_engine("leese = 9\n failbak = manual\n on_engine_los = hold")),
        ("misspelt scopes", "cluster { engin { } chek smtp { } topolgy \"10.0.0.0/8\" { } }".to_owned()),
        (
            "scopes as options",
            "cluster { engine = \"https://a\" check = smtp topology = \"10.0.0.0/8\" }".to_owned(),
        ),
        ("an engine at top level", "engine { endpoints = \"https://a\" }".to_owned()),
    ];
    assert_report!(&borrowed(&cases));
}

#[test]
fn mistakes_in_an_engine() {
    let engine = |text: &str| named(&format!("engine {{ {text} }}"));
    let secure = |text: &str| engine(&format!("ca = /ca.pem endpoints = ( {text} )"));
    let urls: Vec<String> = (1..=9).map(|number| format!("https://m{number}")).collect();
    let cases = [
        ("no group and no nodename", "cluster { engine { endpoints = \"http://127.0.0.1\" } }".to_owned()),
        ("an engine with a name", named("engine etcd { endpoints = \"http://127.0.0.1\" }")),
        ("no endpoints", engine("ca = /ca.pem")),
        ("an empty list of endpoints", engine("endpoints = ( )")),
        ("too many endpoints", secure(&urls.join(" "))),
        ("one endpoint twice", secure("\"https://m1\"\n \"https://M1:2379\"")),
        ("an endpoint without a scheme", secure("\"m1:2379\"")),
        ("an endpoint with another scheme", secure("\"ftp://m1\"")),
        ("an endpoint with a user", secure("\"https://me:secret@m1\"")),
        ("an endpoint with a path", secure("\"https://m1/v3\"")),
        ("an endpoint without a host", secure("\"https://:2379\"")),
        ("an endpoint with the port 0", secure("\"https://m1:0\"")),
        ("an endpoint that is no host name", secure("\"https://192.0.2\"")),
        ("an endpoint without brackets", secure("\"https://2001:db8::1\"")),
        ("an endpoint with a scope", secure("\"https://[fe80::1%eth0]\"")),
        ("a wildcard address as endpoint", secure("\"https://0.0.0.0\"")),
        ("http to another host", engine("endpoints = \"http://192.0.2.1:2379\"")),
        ("http to localhost", engine("endpoints = \"http://localhost:2380\"")),
        ("https without ca", engine("endpoints = \"https://m1\"")),
        (
            "certificates without https",
            engine("endpoints = \"http://127.0.0.1\"\n ca = /ca.pem certificate = /c.pem key = /k.pem"),
        ),
        (
            "a certificate without a key",
            engine("endpoints = \"https://m1\" ca = /ca.pem certificate = /c.pem"),
        ),
        ("a key without a certificate", engine("endpoints = \"https://m1\" ca = /ca.pem key = /k.pem")),
        ("a user without a password", engine("endpoints = \"http://127.0.0.1\" user = me")),
        ("a password without a user", engine("endpoints = \"http://127.0.0.1\" password_file = /p")),
        ("a user with a space", engine("endpoints = \"http://127.0.0.1\" user = \"a b\" password_file = /p")),
        ("a relative file", engine("endpoints = \"https://m1\" ca = ca.pem")),
        ("a long file", engine(&format!("endpoints = \"https://m1\"\n ca = /{}", "x".repeat(255)))),
        ("not a value of compaction", engine("endpoints = \"http://127.0.0.1\" compaction = 5")),
        ("an unknown option of an engine", engine("endpoints = \"http://127.0.0.1\" password = secret")),
        ("a scope in an engine", engine("endpoints = \"http://127.0.0.1\" member x { }")),
    ];
    assert_report!(&borrowed(&cases));
}

#[test]
fn mistakes_in_checks() {
    let check = |text: &str| named(&format!("engine {{ endpoints = \"http://127.0.0.1\" }}\n{text}"));
    let many: String =
        (1..=17).map(|number| format!("check c{number} {{ command = /bin/true }}\n")).collect();
    let cases = [
        ("a check without a name", check("check { command = /bin/true }")),
        ("a check with a space in its name", check("check \"a b\" { command = /bin/true }")),
        ("one check twice", check("check smtp { command = /bin/a }\ncheck smtp { command = /bin/b }")),
        ("too many checks", check(&many)),
        ("a check without a command", check("check smtp { interval = 5 }")),
        ("a check with an empty command", check("check smtp { command = ( ) }")),
        ("a check with a relative program", check("check smtp { command = ( true ) }")),
        (
            "a command of too many words",
            check(&format!("check smtp {{\n command = ( /bin/x {}\nlast ) }}", "a ".repeat(15))),
        ),
        ("a word too long", check(&format!("check smtp {{ command = ( /bin/x\n{} ) }}", "x".repeat(193)))),
        ("an interval of 0", check("check smtp { command = /bin/true interval = 0 }")),
        ("a fall of 0", check("check smtp { command = /bin/true fall = 0 }")),
        ("a rise beyond its range", check("check smtp { command = /bin/true rise = 101 }")),
        ("an unknown option of a check", check("check smtp { command = /bin/true timeout = 5 }")),
    ];
    assert_report!(&borrowed(&cases));
}
