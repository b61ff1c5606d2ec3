//! Servers of Debian as workers that open their own listeners, under `portreeve run`: as ordinary users, without a capability.

use std::fs;
use std::net::TcpStream;
use std::os::unix::process::CommandExt as _;
use std::process::Command;

use portreeve_tests::chroot::WORKER;
use portreeve_tests::namespaces::run;
use portreeve_tests::wait::TIMEOUT;
use portreeve_tests::{Broker, Host, debian, eventually, isolated, process, resources};

use crate::by_descriptor::{EXIM, PAGE, directory, start, start_by, write};
use crate::clients::{Talk, deliver, http, kill_under_steady_connections, smtp};
use crate::privileges::assert_unprivileged;
use crate::programs::{NOBODY, get, server};

/// Kills the supervisor, and then the server, three times each while clients connect.
fn kill_both(broker: &Broker, endpoints: &[&str], talk: Talk) {
    kill_under_steady_connections(broker, Broker::worker, endpoints, talk);
    kill_under_steady_connections(broker, server, endpoints, talk);
}

/// The worker serves its page at these endpoints as an ordinary user, and goes on to do so when it is killed.
fn serves_and_is_replaced(broker: &Broker, endpoints: &[&str]) {
    for endpoint in endpoints {
        eventually("a reply", || get(endpoint).filter(|reply| reply.ends_with("hello")));
    }
    assert_unprivileged(broker.worker(), NOBODY, 0);
    kill_both(broker, endpoints, http);
    assert_unprivileged(broker.worker(), NOBODY, 0);
    assert_eq!(resources::tcp_listeners().len(), endpoints.len());
}

/// Starts a server of the page's table, with the command that the table has, and the page's configuration of the broker changed.
fn start_of_table(host: &Host, name: &str, change: (&str, &str)) -> Broker {
    let is_row = |line: &&str| line.starts_with(&format!("| {name} |")) && line.contains("portreeve run");
    let command = PAGE.lines().find(is_row).and_then(|row| row.rsplit('`').nth(1)).unwrap();
    let (_, config) = PAGE.split_once("`/etc/portreeve/run-portreeve.conf`").unwrap();
    let (_, shown) = config.split_once("command = ( ").unwrap();
    let (shown, _) = shown.split_once(" )").unwrap();
    write(host, "run-portreeve.conf", (shown, command));
    let text = fs::read_to_string(host.path("run-portreeve.conf")).unwrap();
    start_by(host, &text.replace(change.0, change.1))
}

/// The row of a server says this about its configuration.
fn row_says(name: &str, words: &[&str]) {
    let says =
        |line: &str| line.starts_with(&format!("| {name} |")) && words.iter().all(|word| line.contains(word));
    assert!(PAGE.lines().any(says), "no row of {name} contains {words:?}");
}

#[test]
fn nginx_binds_under_run_and_is_killed_without_a_refused_client() {
    isolated(|host| {
        debian::install(host, "nginx-light");
        directory("/run/nginx", WORKER);
        write(host, "nginx.conf", ("", ""));
        let broker = start_of_table(host, "nginx", ("", ""));
        serves_and_is_replaced(&broker, &["127.0.0.1:80", "[::1]:80"]);
    });
}

#[test]
fn haproxy_binds_under_run_and_is_killed_without_a_refused_client() {
    isolated(|host| {
        debian::install(host, "haproxy");
        row_says("HAProxy", &["`bind 127.0.0.1:80` and `bind [::1]:80`"]);
        write(host, "haproxy.cfg", ("bind fd@3\n  bind fd@4", "bind 127.0.0.1:80\n  bind [::1]:80"));
        let broker = start_of_table(host, "HAProxy", ("", ""));
        serves_and_is_replaced(&broker, &["127.0.0.1:80", "[::1]:80"]);
    });
}

#[test]
fn lighttpd_binds_under_run_and_is_killed_without_a_refused_client() {
    isolated(|host| {
        directory("/run/www", WORKER);
        fs::write("/run/www/index.txt", "hello").unwrap();
        row_says("lighttpd", &["without `server.systemd-socket-activation`"]);
        write(host, "lighttpd.conf", ("server.systemd-socket-activation = \"enable\"\n", ""));
        let text = fs::read_to_string(host.path("lighttpd.conf")).unwrap();
        host.file("lighttpd.conf", &text.replace("/srv/www", "/run/www"));
        let broker = start_of_table(host, "lighttpd", ("", ""));
        serves_and_is_replaced(&broker, &["127.0.0.1:80"]);
    });
}

#[test]
fn exim_binds_two_ports_under_run_delivers_and_is_killed_without_a_refused_client() {
    isolated(|host| {
        debian::install(host, "exim4-daemon-light");
        host.add_user("Debian-exim", EXIM);
        directory("/var/spool/exim4", EXIM);
        directory("/var/mail", EXIM);
        let more = "daemon_smtp_ports = 25 : 587\nlocal_interfaces = 127.0.0.1\n";
        let words: Vec<String> = more.lines().map(|line| format!("`{line}`")).collect();
        row_says("Exim", &words.iter().map(String::as_str).collect::<Vec<_>>());
        write(host, "exim.conf", ("primary_hostname", &format!("{more}primary_hostname")));
        let broker =
            start_of_table(host, "Exim", ("nobody\n  group = nogroup", "Debian-exim\n  group = Debian-exim"));
        eventually("the listeners", || (resources::tcp_listeners().len() == 2).then_some(()));
        deliver(25, "to@example", "before");
        assert_unprivileged(broker.worker(), EXIM, 0);
        kill_both(&broker, &["127.0.0.1:25", "127.0.0.1:587"], smtp);
        deliver(587, "to@example", "after");
        assert_unprivileged(broker.worker(), EXIM, 0);
        await_messages("/var/mail/inbox/new", &["before", "after"]);
    });
}

/// Waits until there is a message with each of these subjects.
#[track_caller]
fn await_messages(maildir: &str, subjects: &[&str]) {
    eventually("the messages", || {
        let texts: Vec<String> = fs::read_dir(maildir)
            .ok()?
            .filter_map(|entry| fs::read_to_string(entry.ok()?.path()).ok())
            .collect();
        let has = |subject: &&str| texts.iter().any(|text| text.contains(&format!("Subject: {subject}\n")));
        subjects.iter().all(has).then_some(())
    });
}

#[test]
fn aiosmtpd_as_it_is_receives_mail_on_port_25_and_is_killed_without_a_refused_client() {
    isolated(|host| {
        debian::mount_var();
        directory("/var/mail", WORKER);
        let broker = start(host, "aiosmtpd");
        eventually("the listener", || TcpStream::connect("127.0.0.1:25").ok());
        deliver(25, "to@example", "before");
        assert_unprivileged(broker.worker(), NOBODY, 0);
        kill_both(&broker, &["127.0.0.1:25"], smtp);
        deliver(25, "to@example", "after");
        assert_unprivileged(broker.worker(), NOBODY, 0);
        await_messages("/var/mail/inbox/new", &["before", "after"]);
        assert_eq!(resources::tcp_listeners().len(), 1);
    });
}

/// What Caddy replies by HTTPS; it has a certificate of its own.
const HTTPS: &str = "
import ssl, urllib.request
print(urllib.request.urlopen('https://localhost', timeout=20, context=ssl._create_unverified_context()).read().decode())";

#[test]
fn caddy_serves_http_https_and_udp_reloads_and_is_killed_without_a_refused_client() {
    isolated(|host| {
        debian::install(host, "caddy");
        directory("/run/caddy", WORKER);
        write(host, "Caddyfile", ("\"hello\"", "\"first\""));
        let broker = start(host, "caddy");
        for endpoint in ["127.0.0.1:80", "[::1]:80"] {
            eventually("a reply", || get(endpoint).filter(|reply| reply.ends_with("first")));
        }
        let secure = || {
            let output = Command::new("/usr/bin/python3").args(["-c", HTTPS]).output().unwrap();
            String::from_utf8_lossy(&output.stdout).trim().to_owned()
        };
        eventually("a reply by HTTPS", || (secure() == "first").then_some(()));
        assert_unprivileged(broker.worker(), NOBODY, 0);
        for endpoint in ["[::]:80 ", "[::]:443 ", "[::]:443/udp "] {
            broker.log.wait_for(&["audit: done", "operation=\"listen\"", "via=\"bind\"", endpoint]);
        }
        write(host, "Caddyfile", ("\"hello\"", "\"second\""));
        let mut reload = Command::new("/usr/bin/caddy");
        reload.args(["reload", "--config", "/run/host/Caddyfile", "--address", "unix//run/caddy/admin.sock"]);
        assert!(
            PAGE.contains(
                "caddy reload --config /etc/portreeve/Caddyfile --address unix//run/caddy/admin.sock"
            )
        );
        run(reload.uid(NOBODY).gid(NOBODY).env("HOME", "/run/caddy"), "caddy");
        eventually("the new configuration", || get("127.0.0.1:80").filter(|reply| reply.ends_with("second")));
        eventually("it by HTTPS", || (secure() == "second").then_some(()));
        kill_both(&broker, &["127.0.0.1:80", "[::1]:80"], http);
        assert_unprivileged(broker.worker(), NOBODY, 0);
        eventually("a reply by HTTPS", || (secure() == "second").then_some(()));
        assert_eq!(resources::tcp_listeners().len(), 2);
    });
}

#[test]
fn node_js_binds_for_its_cluster_and_is_killed_without_a_refused_client() {
    isolated(|host| {
        debian::install(host, "nodejs");
        write(host, "server.js", ("", ""));
        let broker = start(host, "node");
        let greeting = |endpoint| {
            let mut text = String::new();
            let mut connection = TcpStream::connect(endpoint).ok()?;
            connection.set_read_timeout(Some(TIMEOUT)).unwrap();
            std::io::Read::read_to_string(&mut connection, &mut text).ok()?;
            text.strip_prefix("220 ")?.trim().parse::<u32>().ok()
        };
        // Its first process accepts, and passes connections to the others in turn.
        let cluster = || {
            eventually("two processes", || {
                Some(process::children(server(&broker))).filter(|two| two.len() == 2)
            })
        };
        let mut served: Vec<u32> =
            ["127.0.0.1:25", "[::1]:25"].map(|one| eventually("a greeting", || greeting(one))).into();
        eventually("a greeting of each process", || {
            served.extend(greeting("127.0.0.1:25"));
            cluster().iter().all(|process| served.contains(process)).then_some(())
        });
        assert_unprivileged(broker.worker(), NOBODY, 0);
        kill_both(&broker, &["127.0.0.1:25", "[::1]:25"], smtp);
        assert_unprivileged(broker.worker(), NOBODY, 0);
        assert_eq!(resources::tcp_listeners().len(), 1);
    });
}
