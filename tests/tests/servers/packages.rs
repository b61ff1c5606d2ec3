//! Servers of Debian as they are, under `portreeve run` as an ordinary user: they serve, reload by their own signal, and are replaced
//! while clients connect.

use std::net::TcpStream;
use std::path::PathBuf;

use portreeve_tests::smtp_load::ALWAYS_STABLE;
use portreeve_tests::{Broker, Host, binaries, debian, eventually, isolated, process};
use rustix::process::Signal;

use crate::clients::{deliver, http, kill_under_steady_connections};
use crate::privileges::assert_unprivileged;
use crate::programs::{NOBODY, Running, await_new_children, command, config, get, server};

/// A directory that user nobody can write to.
pub fn directory(host: &Host) -> String {
    let directory = host.path("server");
    std::fs::create_dir(&directory).unwrap();
    std::os::unix::fs::chown(&directory, Some(NOBODY), Some(NOBODY)).unwrap();
    directory.to_str().unwrap().to_owned()
}

/// Runs a server with these arguments.
fn run(host: &Host, server: &str, arguments: &[&str]) -> Running {
    let mut command = command(host, &["--", server]);
    command.args(arguments);
    Running::start(command)
}

/// Waits until a master of HAProxy handles SIGUSR2. It loses the signal until it has executed itself to wait for its workers.
pub fn await_haproxy(master: u32) {
    eventually("the master to handle signals", || {
        let waits = std::fs::read(format!("/proc/{master}/environ")).ok()?;
        let waits = waits.split(|byte| *byte == 0).any(|one| one == b"HAPROXY_MWORKER_WAIT_ONLY=1");
        let set = |name| u64::from_str_radix(&process::status_field(master, name), 16).unwrap();
        let bit = 1 << (Signal::USR2.as_raw() - 1);
        (waits && set("SigCgt") & bit != 0 && set("SigBlk") & bit == 0).then_some(())
    });
}

#[track_caller]
pub fn await_page(address: &str, text: &str) {
    eventually("the page", || get(address).filter(|page| page.contains(text)));
}

pub fn nginx(host: &Host, directory: &str) -> PathBuf {
    let text = format!(
        r#"
        daemon off;
        pid {directory}/pid;
        error_log stderr notice;
        worker_processes 2;
        events {{}}
        http {{
            access_log off;
            client_body_temp_path {directory}/body; proxy_temp_path {directory}/proxy; fastcgi_temp_path {directory}/fastcgi;
            uwsgi_temp_path {directory}/uwsgi; scgi_temp_path {directory}/scgi;
            server {{ listen 80; listen [::]:80; location / {{ return 200 "nginx $pid\n"; }} }}
        }}"#
    );
    host.file("nginx.conf", &text)
}

#[test]
fn nginx_serves_and_reloads_by_its_signal() {
    isolated(|host| {
        debian::install(host, "nginx-light");
        let broker = Broker::start(host, &config(r#"( "*:80" "[::]:80" )"#));
        let before = broker.descriptors();
        let directory = directory(host);
        let file = nginx(host, &directory);
        let mut running = run(host, "/usr/sbin/nginx", &["-c", file.to_str().unwrap(), "-p", &directory]);
        await_page("127.0.0.1:80", "nginx");
        await_page("[::1]:80", "nginx");
        assert_unprivileged(running.program(), NOBODY, u64::MAX);
        let former = process::children(running.program());
        running.signal(Signal::HUP);
        await_new_children(running.program(), &former);
        await_page("127.0.0.1:80", "nginx");
        running.signal(Signal::QUIT);
        assert_eq!(running.wait().code(), Some(0));
        broker.await_no_leak(&before);
    });
}

#[test]
fn haproxy_serves_and_reloads_by_its_signal() {
    isolated(|host| {
        debian::install(host, "haproxy");
        let _broker = Broker::start(host, &config(r#"( "*:80" )"#));
        let text = "
            defaults
              mode http
              timeout client 5s
              timeout connect 5s
              timeout server 5s
            frontend web
              bind *:80
              http-request return status 200 content-type text/plain string haproxy
";
        let file = host.file("haproxy.cfg", text);
        let mut running = run(host, "/usr/sbin/haproxy", &["-W", "-db", "-f", file.to_str().unwrap()]);
        await_page("127.0.0.1:80", "haproxy");
        assert_unprivileged(running.program(), NOBODY, u64::MAX);
        await_haproxy(running.program());
        running.signal(Signal::USR2);
        running.log.wait_for(&["Former worker", "exited with code 0"]);
        await_page("127.0.0.1:80", "haproxy");
        running.signal(Signal::TERM);
        assert_eq!(running.wait().code(), Some(0));
    });
}

#[test]
fn lighttpd_serves() {
    isolated(|host| {
        let _broker = Broker::start(host, &config(r#"( "*:80" )"#));
        let directory = directory(host);
        std::fs::write(format!("{directory}/index.html"), "lighttpd").unwrap();
        let text = format!(
            "server.document-root = \"{directory}\"\nserver.port = 80\nindex-file.names = ( \"index.html\" )\n"
        );
        let file = host.file("lighttpd.conf", &text);
        let arguments = ["-D", "-f", file.to_str().unwrap()];
        let mut running = run(host, "/usr/sbin/lighttpd", &arguments);
        await_page("127.0.0.1:80", "lighttpd");
        assert_unprivileged(running.program(), NOBODY, u64::MAX);
        running.signal(Signal::INT);
        assert_eq!(running.wait().code(), Some(0));
    });
}

#[test]
fn exim_receives_and_delivers_on_two_ports_and_reloads_by_its_signal() {
    isolated(|host| {
        debian::install(host, "exim4-daemon-light");
        // The name of the user for which Debian has compiled it.
        host.add_user("Debian-exim", 20_131);
        let broker = Broker::start(host, &config(r#"( "*:25" "*:587" )"#));
        let directory = directory(host);
        let text = format!(
            "primary_hostname = mx.test
keep_environment =
spool_directory = {directory}/spool
log_file_path = {directory}/%slog
pid_file_path = {directory}/pid
exim_user = nobody
exim_group = nogroup
never_users =
deliver_drop_privilege
daemon_smtp_ports = 25 : 587
local_interfaces = 0.0.0.0
acl_smtp_rcpt = accept_all
begin acl
accept_all:
  accept
begin routers
all:
  driver = accept
  transport = file
begin transports
file:
  driver = appendfile
  file = {directory}/mbox
"
        );
        let file = host.file("exim.conf", &text);
        let mut running = run(host, "/usr/sbin/exim4", &["-C", file.to_str().unwrap(), "-bdf"]);
        let deliver = |port: u16, subject: &str| {
            eventually("a listener", || TcpStream::connect(("127.0.0.1", port)).ok());
            deliver(port, "b@mx.test", subject);
            eventually("the delivery", || {
                let mailbox = std::fs::read_to_string(format!("{directory}/mbox")).ok()?;
                mailbox.contains(&format!("Subject: {subject}\n")).then_some(())
            });
        };
        deliver(25, "first");
        deliver(587, "second");
        assert_unprivileged(running.program(), NOBODY, u64::MAX);
        // It executes itself, and binds again.
        let count =
            || broker.log.lines().iter().filter(|line| line.contains("via=\"bind\" arguments=*:587")).count();
        assert_eq!(count(), 1);
        running.signal(Signal::HUP);
        eventually("the second bind", || (count() == 2).then_some(()));
        deliver(25, "third");
        deliver(587, "fourth");
        running.signal(Signal::TERM);
        assert_eq!(running.wait().code(), Some(0));
    });
}

#[test]
fn nginx_as_a_supervised_worker_is_killed_under_steady_connections_and_no_client_is_refused() {
    isolated(|host| {
        debian::install(host, "nginx-light");
        let directory = directory(host);
        let file = nginx(host, &directory);
        let client = host.binary(binaries::CLIENT);
        let config = format!(
            r#"
            security {{ user = nobody group = nogroup capabilities = "cap_net_bind_service+ep" }}
            worker {{
                command = ( {client:?} run "--" /usr/sbin/nginx "-c" {file:?} "-p" {directory:?} )
                end_descendants = true
            }}
            broker {{ permit "web" {{ listen = ( "*:80" "[::]:80" ) }} }}
            {ALWAYS_STABLE}"#
        );
        let broker = Broker::start(host, &config);
        await_page("127.0.0.1:80", "nginx");
        let endpoints = ["127.0.0.1:80", "[::1]:80"];
        // The supervisor, and then nginx's master.
        kill_under_steady_connections(&broker, Broker::worker, &endpoints, http);
        kill_under_steady_connections(&broker, server, &endpoints, http);
        assert_unprivileged(server(&broker), NOBODY, u64::MAX);
    });
}
