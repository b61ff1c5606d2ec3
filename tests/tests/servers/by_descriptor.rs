//! Servers of Debian as workers that take their listeners by descriptor: as an ordinary user, without a capability.

use std::fs;
use std::os::unix::fs::chown;

use portreeve_tests::chroot::WORKER;
use portreeve_tests::smtp_load::ALWAYS_STABLE;
use portreeve_tests::{Broker, Host, binaries, debian, eventually, isolated, resources};
use rustix::process::{Signal, kill_process};

use super::clients::{deliver, greeting, http, kill_under_steady_connections, smtp};
use super::packages::await_haproxy;
use super::privileges::assert_unprivileged;
use super::programs::{NOBODY, get, pid};

/// The user and group of Exim.
pub const EXIM: u32 = 1077;

pub const PAGE: &str = include_str!("../../../deploy/docs/servers.md");

/// A file that the page on servers shows, by the path that it has there.
pub fn shown(path: &str) -> &'static str {
    let title = format!("`{path}`:\n\n```");
    let block = PAGE.split_once(&title).and_then(|(_, block)| block.split_once("```\n"));
    let text = block.and_then(|(block, _)| block.split_once('\n'));
    text.unwrap_or_else(|| panic!("the page has no {path}")).1
}

/// Writes a file of the page, changed, where the page says; here that is the test's own directory.
pub fn write(host: &Host, name: &str, change: (&str, &str)) {
    let text = shown(&format!("/etc/portreeve/{name}"));
    assert!(text.contains(change.0), "{name} does not contain {:?}", change.0);
    let client = host.binary(binaries::CLIENT);
    let text = text.replace(change.0, change.1).replace("/usr/bin/portreeve", client.to_str().unwrap());
    host.file(name, &text.replace("/etc/portreeve/", "/run/host/"));
}

/// Starts the broker with the server of the page as its worker.
pub fn start(host: &Host, server: &str) -> Broker {
    let name = format!("{server}-portreeve.conf");
    write(host, &name, ("", ""));
    start_by(host, &fs::read_to_string(host.path(name)).unwrap())
}

/// The same with this configuration of the broker.
pub fn start_by(host: &Host, text: &str) -> Broker {
    Broker::start(host, &(text.to_owned() + ALWAYS_STABLE))
}

/// Creates a directory that the worker owns.
pub fn directory(path: &str, owner: u32) {
    fs::create_dir_all(path).unwrap();
    chown(path, Some(owner), Some(owner)).unwrap();
}

#[test]
fn haproxy_serves_reloads_by_sigusr2_and_is_killed_without_a_refused_client() {
    isolated(|host| {
        debian::install(host, "haproxy");
        write(host, "haproxy.cfg", ("string hello", "string first"));
        let broker = start(host, "haproxy");
        for endpoint in ["127.0.0.1:80", "[::1]:80"] {
            assert!(eventually("a reply", || get(endpoint)).ends_with("first"));
        }
        assert_unprivileged(broker.worker(), NOBODY, 0);
        await_haproxy(broker.worker());
        write(host, "haproxy.cfg", ("string hello", "string second"));
        kill_process(pid(broker.worker()), Signal::USR2).unwrap();
        eventually("the new configuration", || get("127.0.0.1:80").filter(|reply| reply.ends_with("second")));
        assert_unprivileged(broker.worker(), NOBODY, 0);
        kill_under_steady_connections(&broker, Broker::worker, &["127.0.0.1:80", "[::1]:80"], http);
        assert_eq!(resources::tcp_listeners().len(), 2);
    });
}

#[test]
fn nginx_serves_reloads_by_sighup_and_is_killed_without_a_refused_client() {
    isolated(|host| {
        debian::install(host, "nginx-light");
        directory("/run/nginx", WORKER);
        write(host, "nginx.conf", ("return 200 hello", "return 200 first"));
        let broker = start(host, "nginx");
        for endpoint in ["127.0.0.1:80", "[::1]:80"] {
            assert!(eventually("a reply", || get(endpoint)).ends_with("first"));
        }
        assert_unprivileged(broker.worker(), NOBODY, 0);
        write(host, "nginx.conf", ("return 200 hello", "return 200 second"));
        kill_process(pid(broker.worker()), Signal::HUP).unwrap();
        eventually("the new configuration", || get("127.0.0.1:80").filter(|reply| reply.ends_with("second")));
        assert_unprivileged(broker.worker(), NOBODY, 0);
        kill_under_steady_connections(&broker, Broker::worker, &["127.0.0.1:80", "[::1]:80"], http);
        assert_eq!(resources::tcp_listeners().len(), 2);
    });
}

#[test]
fn lighttpd_serves_reloads_by_sigusr1_and_is_killed_without_a_refused_client() {
    isolated(|host| {
        directory("/run/www", WORKER);
        fs::write("/run/www/first", "first").unwrap();
        fs::write("/run/www/second", "second").unwrap();
        let configure = |index| {
            write(host, "lighttpd.conf", ("\"/srv/www\"", "\"/run/www\""));
            let text = fs::read_to_string(host.path("lighttpd.conf")).unwrap();
            host.file("lighttpd.conf", &text.replace("index.txt", index));
        };
        configure("first");
        let broker = start(host, "lighttpd");
        assert!(eventually("a reply", || get("127.0.0.1:80")).ends_with("first"));
        assert_unprivileged(broker.worker(), NOBODY, 0);
        configure("second");
        kill_process(pid(broker.worker()), Signal::USR1).unwrap();
        eventually("the new configuration", || get("127.0.0.1:80").filter(|reply| reply.ends_with("second")));
        assert_unprivileged(broker.worker(), NOBODY, 0);
        kill_under_steady_connections(&broker, Broker::worker, &["127.0.0.1:80"], http);
        assert_eq!(resources::tcp_listeners().len(), 1);
    });
}

#[test]
fn exim_delivers_mail_from_a_listener_as_its_standard_input_and_is_killed_without_a_refused_client() {
    isolated(|host| {
        debian::install(host, "exim4-daemon-light");
        host.add_user("Debian-exim", EXIM);
        directory("/var/spool/exim4", EXIM);
        directory("/var/mail", EXIM);
        write(host, "exim.conf", ("", ""));
        let broker = start(host, "exim");
        deliver(25, "to@example", "before");
        assert_unprivileged(broker.worker(), EXIM, 0);
        kill_under_steady_connections(&broker, Broker::worker, &["127.0.0.1:25"], smtp);
        deliver(25, "to@example", "after");
        eventually("both messages", || {
            let files = fs::read_dir("/var/mail/inbox/new").ok()?;
            let messages: Vec<String> =
                files.filter_map(|entry| fs::read_to_string(entry.ok()?.path()).ok()).collect();
            let has =
                |subject: &str| messages.iter().any(|text| text.contains(&format!("Subject: {subject}\n")));
            (messages.len() == 2 && has("before") && has("after")).then_some(())
        });
    });
}

#[test]
fn dovecot_accepts_submissions_reloads_by_sighup_and_is_killed_without_a_refused_client() {
    isolated(|host| {
        debian::install(host, "dovecot-submissiond");
        directory("/run/dovecot", WORKER);
        write(host, "dovecot.conf", ("hostname = mx.example", "hostname = first.example"));
        let broker = start(host, "dovecot");
        eventually("a greeting", || greeting(587).filter(|line| line.starts_with("220 first.example ")));
        assert_unprivileged(broker.worker(), NOBODY, 0);
        write(host, "dovecot.conf", ("hostname = mx.example", "hostname = second.example"));
        kill_process(pid(broker.worker()), Signal::HUP).unwrap();
        eventually("the new name", || greeting(587).filter(|line| line.starts_with("220 second.example ")));
        assert_unprivileged(broker.worker(), NOBODY, 0);
        kill_under_steady_connections(&broker, Broker::worker, &["127.0.0.1:587"], smtp);
        assert_eq!(resources::tcp_listeners().len(), 1);
    });
}
