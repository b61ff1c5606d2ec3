//! Workers with `bind = brokered`: programs as they are, which know nothing of the broker. Their supervisor is between launcher and
//! worker.

use std::process::Command;

use portreeve_tests::chroot::Chroot;
use portreeve_tests::namespaces::run;
use portreeve_tests::smtp_load::ALWAYS_STABLE;
use portreeve_tests::startup_failure::{StartupFailure, exit};
use portreeve_tests::{Broker, Host, binaries, broker, debian, eventually, isolated, process, resources};
use rustix::process::{Signal, kill_process};

use crate::clients::{http, kill_under_steady_connections};
use crate::packages::{await_page, directory, nginx};
use crate::privileges::assert_unprivileged;
use crate::programs::{self, NOBODY, await_new_children, get, pid, server};
use crate::supervisor::{BIND_BY_LINE, reload};

/// A configuration whose worker runs this command.
fn config(command: &str, worker: &str, listen: &str, security: &str) -> String {
    format!(
        r#"
        security {{ user = nobody group = nogroup capabilities = "cap_net_bind_service+ep" {security} }}
        worker {{ command = ( {command} ) bind = brokered {worker} }}
        broker {{
            socket = "{}"
            permit "servers" {{ listen = {listen} }}
            peer root {{ allow = ( reload status ) }}
        }}
        {ALWAYS_STABLE}"#,
        broker::SOCKET
    )
}

/// The command of a Python program that binds the next port after this one for each SIGUSR1.
fn binds_by_signal(host: &Host, first: u16, prepare: &str) -> String {
    let script = format!(
        "{BIND_BY_LINE}
import itertools, os
{prepare}
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
print('waiting', os.environ.get('PORTREEVE_CHANNEL'), os.environ.get('LISTEN_FDS'), len(os.listdir('/proc/self/fd')), flush=True)
for port in itertools.count({first}):
    signal.sigwait([signal.SIGUSR1])
    print(port, bind(port), flush=True)
"
    );
    format!("/usr/bin/python3 {:?}", host.file("worker.py", &script).to_str().unwrap())
}

fn next_bind(broker: &Broker) {
    kill_process(pid(server(broker)), Signal::USR1).unwrap();
}

#[test]
fn nginx_serves_reloads_and_is_killed_under_steady_connections_and_no_client_is_refused() {
    isolated(|host| {
        debian::install(host, "nginx-light");
        let directory = directory(host);
        let file = nginx(host, &directory);
        let command = format!("/usr/sbin/nginx \"-c\" {file:?} \"-p\" {directory:?}");
        let text = config(&command, "end_descendants = true", r#"( "*:80" "[::]:80" )"#, "");
        let broker = Broker::start(host, &text);
        for endpoint in ["127.0.0.1:80", "[::1]:80"] {
            await_page(endpoint, "nginx");
        }
        broker.log.wait_for(&["audit: done", "peer=\"the worker\"", "via=\"bind\"", "arguments=*:80"]);
        let name = std::fs::read_to_string(format!("/proc/{}/comm", server(&broker))).unwrap();
        assert_eq!(name.trim(), "nginx");
        assert_unprivileged(broker.worker(), NOBODY, 0);
        let former = process::children(server(&broker));
        kill_process(pid(server(&broker)), Signal::HUP).unwrap();
        await_new_children(server(&broker), &former);
        kill_under_steady_connections(&broker, server, &["127.0.0.1:80", "[::1]:80"], http);
        assert_eq!(resources::tcp_listeners().len(), 2);
    });
}

/// Binds a port that policy permits and one that it does not, from a thread and in a process of its own, and serves HTTP.
const STATIC_SERVER: &str = r#"
#include <errno.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

static int bound(int port) {
    int one = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    struct sockaddr_in address = { .sin_family = AF_INET, .sin_port = htons((uint16_t)port) };
    if (bind(one, (struct sockaddr *)&address, sizeof address) != 0) {
        printf("%d: %s\n", port, strerror(errno));
        return -1;
    }
    return one;
}

int main(void) {
    setvbuf(stdout, NULL, _IONBF, 0);
    bound(81);
    if (fork() == 0) {
        bound(81);
        exit(bound(80) < 0);
    }
    int status;
    wait(&status);
    printf("the child ended with %d\n", status);
    int one = bound(80);
    if (one < 0 || listen(one, 16) != 0)
        return 1;
    for (;;) {
        int connection = accept(one, NULL, NULL);
        char request[512];
        if (read(connection, request, sizeof request) > 0)
            dprintf(connection, "HTTP/1.0 200 OK\r\n\r\nfrom the chroot");
        close(connection);
    }
}
"#;

#[test]
fn a_program_alone_in_its_chroot_serves_a_privileged_port() {
    isolated(|host| {
        let source = host.file("server.c", STATIC_SERVER);
        let program = host.path("server");
        run(Command::new("cc").args(["-static", "-o"]).arg(&program).arg(source), "gcc");
        let chroot = Chroot::new(host, "empty");
        let security = format!("chroot = {:?}", chroot.path.to_str().unwrap());
        let command = format!("{:?}", program.to_str().unwrap());
        let broker = Broker::start(host, &config(&command, "", r#"( "*:80" )"#, &security));
        broker.log.wait_for(&["81: Permission denied"]);
        broker.log.wait_for(&["the child ended with 0"]);
        broker.log.wait_for(&["audit: refused", "peer=\"the worker\"", "via=\"bind\"", "arguments=*:81"]);
        assert!(eventually("a reply", || get("127.0.0.1:80")).ends_with("from the chroot"));
        let status = broker.peer().status();
        let of_role = |role| status.processes.iter().find(|process| process.role.as_str() == role).unwrap();
        for (role, pid, locks) in [("launcher", broker.launcher(), 0), ("worker", server(&broker), 1)] {
            let process = of_role(role);
            let seccomp = process::status_field(pid, "Seccomp").parse().unwrap();
            let shown = (process.pid, process.credentials.seccomp, process.locks.len());
            assert_eq!(shown, (pid, seccomp, locks), "{role}");
        }
        assert_unprivileged(broker.worker(), NOBODY, 0);
        kill_under_steady_connections(&broker, server, &["127.0.0.1:80"], http);
    });
}

#[test]
fn the_worker_has_nothing_of_the_broker_and_its_binds_follow_a_reload() {
    isolated(|host| {
        let command = binds_by_signal(host, 2525, "");
        // Landlock fixes the TCP ports when the broker starts: those that any permit names.
        let text = |listen: &str| {
            config(&command, "", listen, "")
                .replace("peer root {", "permit \"other\" { listen = \"127.0.0.9:2525-2530\" } peer root {")
        };
        let broker = Broker::start(host, &text(r#"( "127.0.0.1:2526" )"#));
        // Standard input, output and error, and the list itself.
        broker.log.wait_for(&["waiting None None 4"]);
        let next_port = |port: u16| {
            next_bind(&broker);
            broker.log.wait_for(&[&format!("{port} bound")]);
        };
        let brokered = || broker.log.lines().iter().filter(|line| line.contains("via=\"bind\"")).count();
        next_port(2525);
        next_port(2526);
        broker.log.wait_for(&["audit: done", "via=\"bind\" arguments=127.0.0.1:2526"]);
        assert_eq!(brokered(), 1);
        // The launcher gets the event of the reload at about the time at which the peer gets the reply.
        reload(host, &broker, &text(r#"( "127.0.0.1:2527-2999" )"#));
        let mut port = 2526;
        eventually("a bind by the new policy", || {
            port += 1;
            next_port(port);
            (brokered() > 1).then_some(())
        });
    });
}

#[test]
fn without_its_broker_the_worker_binds_nothing_that_is_the_brokers() {
    isolated(|host| {
        let command = binds_by_signal(host, 80, "");
        let text = config(&command, "orphan_timeout = 60", r#"( "*:80" "*:82" )"#, "");
        let mut broker = Broker::start(host, &text);
        broker.log.wait_for(&["waiting"]);
        next_bind(&broker);
        broker.log.wait_for(&["80 bound"]);
        let worker = server(&broker);
        broker.signal(Signal::KILL);
        broker.wait_for_exit();
        for result in ["81 EAGAIN", "82 EAGAIN"] {
            kill_process(pid(worker), Signal::USR1).unwrap();
            broker.log.wait_for(&[result]);
        }
        kill_process(pid(worker), Signal::KILL).unwrap();
        eventually("the end of the worker", || (!process::is_running(worker)).then_some(()));
    });
}

#[test]
fn a_broker_that_does_not_reply_makes_a_bind_fail_after_some_time_and_a_late_reply_changes_nothing() {
    isolated(|host| {
        let command = binds_by_signal(host, 80, "");
        let broker = Broker::start(host, &config(&command, "", r#"( "*:80-82" )"#, ""));
        broker.log.wait_for(&["waiting"]);
        next_bind(&broker);
        broker.log.wait_for(&["80 bound"]);
        let worker = server(&broker);
        broker.suspend();
        kill_process(pid(worker), Signal::USR1).unwrap();
        broker.log.wait_for(&["81 EAGAIN"]);
        broker.signal(Signal::CONT);
        kill_process(pid(worker), Signal::USR1).unwrap();
        broker.log.wait_for(&["82 bound"]);
    });
}

#[test]
fn a_worker_that_cannot_be_looked_into_is_named_once_and_its_binds_are_the_kernels() {
    isolated(|host| {
        let hide = "import ctypes\nctypes.CDLL(None).prctl(4, 0, 0, 0, 0) # PR_SET_DUMPABLE";
        let command = binds_by_signal(host, 80, hide).replace("/proc/self/fd", "/");
        let broker = Broker::start(host, &config(&command, "", r#"( "*:80-82" )"#, ""));
        broker.log.wait_for(&["waiting"]);
        for result in ["80 EACCES", "81 EACCES"] {
            next_bind(&broker);
            broker.log.wait_for(&[result]);
        }
        broker.log.wait_for(&["worker.bind: cannot read", "The kernel judges this bind", "PR_SET_DUMPABLE"]);
        let named = broker.log.lines().iter().filter(|line| line.contains("worker.bind: ")).count();
        assert_eq!(named, 1);
    });
}

#[test]
fn a_second_filter_with_a_listener_is_named_and_no_worker_starts() {
    isolated(|host| {
        // A broker as the program of `portreeve run`, which has such a filter.
        let _outer = Broker::start(host, &programs::config(r#"( "*:80" )"#).replace("nobody {", "root {"));
        let text = config("/bin/sleep 60", "", r#"( "*:81" )"#, "");
        let inner = text.replace(broker::SOCKET, "/run/host/inner.sock");
        let mut command = Command::new(host.binary(binaries::CLIENT));
        command.args(["--socket", broker::SOCKET, "run"]).arg(host.binary(binaries::BROKER));
        command.arg("--config").arg(host.file("inner.conf", &inner));
        let failure = StartupFailure::of_command(command);
        assert_eq!(failure.code, Some(exit::UNAVAILABLE), "{failure:?}");
        for part in ["worker.bind: bind(2) is already intercepted here", "(EBUSY)", "or write bind = direct"]
        {
            assert!(failure.message.contains(part), "{failure:?}");
        }
    });
}

#[test]
fn processes_that_a_worker_leaves_bind_until_the_next_one_starts() {
    isolated(|host| {
        // Its child lives on in a session of its own.
        let prepare = "
if os.fork() == 0:
    os.setsid()
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR2])
    print('left', os.getpid(), flush=True)
    signal.sigwait([signal.SIGUSR2])
    print('then', bind(85), flush=True)
    os._exit(0)
";
        let command = binds_by_signal(host, 80, prepare);
        let broker = Broker::start(host, &config(&command, "", r#"( "*:80-90" )"#, ""));
        let line = broker.log.wait_for(&["left "]);
        let left: u32 = line.split_whitespace().last().unwrap().parse().unwrap();
        broker.log.wait_for(&["waiting"]);
        next_bind(&broker);
        broker.log.wait_for(&["80 bound"]);
        let first = broker.worker();
        kill_process(pid(server(&broker)), Signal::KILL).unwrap();
        eventually("the next worker", || {
            process::children(broker.launcher()).into_iter().find(|child| ![first, left].contains(child))
        });
        kill_process(pid(left), Signal::USR2).unwrap();
        // Its notifications are nobody's any more.
        broker.log.wait_for(&["then ENOSYS"]);
    });
}

#[test]
fn a_supervisor_that_does_not_run_keeps_neither_a_worker_from_its_end_nor_the_broker() {
    isolated(|host| {
        let command = binds_by_signal(host, 80, "");
        let mut broker = Broker::start(host, &config(&command, "stop_timeout = 1", r#"( "*:80" )"#, ""));
        broker.log.wait_for(&["waiting"]);
        let (supervisor, worker) = (broker.worker(), server(&broker));
        kill_process(pid(supervisor), Signal::STOP).unwrap();
        assert!(broker.terminate().success());
        assert!(!process::is_running(supervisor) && !process::is_running(worker));
    });
}

#[test]
fn the_worker_ends_with_its_supervisor_and_the_next_one_has_its_listener() {
    isolated(|host| {
        let program = "
import os, sys
one = socket.socket()
one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
one.bind(('127.0.0.1', 80))
one.listen(64)
try: os.listdir(f'/proc/{os.getppid()}/fd')
except PermissionError: print('the supervisor cannot be looked into', flush=True)
while True:
    connection, _ = one.accept()
    connection.recv(512)
    connection.sendall(b'HTTP/1.0 200 OK\\r\\n\\r\\nserved')
    connection.close()
";
        let command = binds_by_signal(host, 80, program);
        let broker = Broker::start(host, &config(&command, "", r#"( "*:80" )"#, ""));
        broker.log.wait_for(&["the supervisor cannot be looked into"]);
        kill_under_steady_connections(&broker, Broker::worker, &["127.0.0.1:80"], http);
    });
}
