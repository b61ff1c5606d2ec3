//! The supervisor's life: with the program, its processes in the background, and the broker.

use std::time::Duration;

use portreeve_tests::{Broker, Host, eventually, isolated, process, resources};
use rustix::process::{Signal, kill_process};

use crate::programs::{Running, command, config, get, pid};

/// A program that binds a port for each line that it reads, and prints what came of it.
pub const BIND_BY_LINE: &str = "import errno, signal, socket, sys
kept = []
def bind(port):
    one = socket.socket()
    kept.append(one)
    try:
        one.bind(('127.0.0.1', port))
        one.listen()
        return 'bound'
    except OSError as error:
        return errno.errorcode[error.errno]
";

/// Binds the next port for each SIGUSR1.
pub fn by_signal(host: &Host, first: u16) -> Running {
    let script = format!(
        "{BIND_BY_LINE}
import itertools, os
ports = itertools.count({first})
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
print('ready', os.getpid())
while True:
    signal.sigwait([signal.SIGUSR1])
    port = next(ports)
    print(port, bind(port))
"
    );
    let running = Running::python(host, &script);
    running.log.wait_for(&["ready"]);
    running
}

/// Puts itself into the background as daemon(7) says, prints its process id, and serves HTTP on port 80.
const DAEMON: &str = "import errno, http.server, os, signal, socket, sys
if os.fork(): os._exit(0)
os.setsid()
if os.fork(): os._exit(0)
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
server = http.server.HTTPServer(('127.0.0.1', 80), http.server.SimpleHTTPRequestHandler)
";

#[test]
fn a_program_in_the_background_is_supervised_and_gets_signals_until_its_last_process_ends() {
    isolated(|host| {
        let broker = Broker::start(host, &config(r#"( "*:80" )"#));
        let before = broker.descriptors();
        let script = format!("{DAEMON}print('daemon', os.getpid())\nserver.serve_forever()");
        let mut running = Running::python(host, &script);
        let line = running.log.wait_for(&["daemon "]);
        let daemon: u32 = line.split_whitespace().last().unwrap().parse().unwrap();
        assert!(eventually("a reply", || get("127.0.0.1:80")).contains("200 OK"));
        assert_eq!(process::children(running.portreeve.id()), [daemon]);
        running.signal(Signal::TERM);
        assert_eq!(running.wait().code(), Some(0));
        assert!(!process::is_running(daemon));
        broker.await_no_leak(&before);
        assert!(resources::tcp_listeners().is_empty());
    });
}

#[test]
fn a_program_ends_with_its_supervisor_and_one_in_the_background_binds_no_more() {
    isolated(|host| {
        let broker = Broker::start(host, &config(r#"( "*:80" )"#));
        let before = broker.descriptors();
        let mut running = by_signal(host, 80);
        let program = running.program();
        running.portreeve.kill().unwrap();
        running.portreeve.wait().unwrap();
        eventually("the end of the program", || (!process::is_running(program)).then_some(()));
        let script = format!(
            "{DAEMON}print('daemon', os.getpid())
signal.sigwait([signal.SIGUSR1])
try: socket.socket().bind(('127.0.0.1', 0))
except OSError as error: print(errno.errorcode[error.errno])
"
        );
        let mut running = Running::python(host, &script);
        let line = running.log.wait_for(&["daemon "]);
        let daemon: u32 = line.split_whitespace().last().unwrap().parse().unwrap();
        running.portreeve.kill().unwrap();
        running.portreeve.wait().unwrap();
        kill_process(pid(daemon), Signal::USR1).unwrap();
        running.log.wait_for(&["ENOSYS"]);
        broker.await_no_leak(&before);
    });
}

#[test]
fn after_a_crash_of_the_broker_a_program_that_shares_its_port_gets_a_new_listener_and_every_client() {
    isolated(|host| {
        let config = config(r#"( "*:80" )"#);
        let broker = Broker::start(host, &config);
        let script = "import signal, socket
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
while True:
    one = socket.socket()
    one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    one.bind(('127.0.0.1', 80))
    one.listen()
    print('listens')
    for _ in range(16):
        connection, _ = one.accept()
        connection.sendall(b'served')
        connection.close()
    one.close()
    signal.sigwait([signal.SIGUSR1])";
        let running = Running::python(host, script);
        let serves = |times: usize| {
            eventually("the listener", || {
                let lines = running.log.lines();
                (lines.iter().filter(|line| *line == "listens").count() == times).then_some(())
            });
            for _ in 0..16 {
                let mut reply = String::new();
                let mut connection = std::net::TcpStream::connect("127.0.0.1:80").unwrap();
                connection.set_read_timeout(Some(portreeve_tests::wait::TIMEOUT)).unwrap();
                std::io::Read::read_to_string(&mut connection, &mut reply).unwrap();
                assert_eq!(reply, "served");
            }
        };
        serves(1);
        drop(broker); // killed
        let broker = Broker::start(host, &config);
        eventually("the next session", || (broker.peer().status().sessions.len() > 1).then_some(()));
        running.signal(Signal::USR1);
        serves(2);
        assert_eq!(broker.peer().status().listeners.len(), 1);
    });
}

#[test]
fn a_process_that_a_failed_program_leaves_behind_continues_and_binds_no_more() {
    isolated(|host| {
        let _broker = Broker::start(host, &config(r#"( "*:80" )"#));
        let script = "import errno, os, signal, socket
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
child = os.fork()
if child:
    print('child', child)
    os._exit(7)
signal.sigwait([signal.SIGUSR1])
try: socket.socket().bind(('127.0.0.1', 80))
except OSError as error: print(errno.errorcode[error.errno])";
        let mut running = Running::python(host, script);
        let line = running.log.wait_for(&["child "]);
        assert_eq!(running.wait().code(), Some(7));
        let child: u32 = line.split_whitespace().last().unwrap().parse().unwrap();
        kill_process(pid(child), Signal::USR1).unwrap();
        running.log.wait_for(&["ENOSYS"]);
    });
}

#[test]
fn a_program_serves_on_without_its_broker_and_binds_with_the_next_one() {
    isolated(|host| {
        let config = config(r#"( "*:80-90" )"#);
        let broker = Broker::start(host, &config);
        let running = by_signal(host, 80);
        running.signal(Signal::USR1);
        running.log.wait_for(&["80 bound"]);
        drop(broker); // killed
        assert!(std::net::TcpStream::connect("127.0.0.1:80").is_ok());
        running.signal(Signal::USR1);
        running.log.wait_for(&["81 EAGAIN"]);
        running.log.wait_for(&["portreeve: bind to 127.0.0.1:81 fails: no reply from the broker within 5 s"]);
        let mut broker = Broker::start(host, &config);
        running.signal(Signal::USR1);
        running.log.wait_for(&["82 bound"]);
        broker.replace(host, &config);
        running.signal(Signal::USR1);
        running.log.wait_for(&["83 bound"]);
        assert!(std::net::TcpStream::connect("127.0.0.1:80").is_ok());
    });
}

#[test]
fn a_policy_that_changes_while_the_program_runs_is_in_force_at_its_next_bind() {
    isolated(|host| {
        // Landlock fixes the TCP ports when the broker starts: those that any permit names.
        let ports = |listen| config(listen) + r#"broker { permit "other" { listen = "*:80-90" } }"#;
        let broker = Broker::start(host, &ports(r#"( "*:80" "*:82" )"#));
        let running = by_signal(host, 81);
        running.signal(Signal::USR1);
        running.log.wait_for(&["81 EACCES"]);
        reload(host, &broker, &ports(r#"( "*:80" "*:83-90" )"#));
        running.signal(Signal::USR1);
        running.log.wait_for(&["82 EACCES"]);
        running.log.wait_for(&[
            "portreeve: user 65534 is not allowed to listen on 127.0.0.1:82",
            "The kernel judges that bind",
        ]);
        running.signal(Signal::USR1);
        running.log.wait_for(&["83 bound"]);
    });
}

#[test]
fn a_listener_that_a_reload_no_longer_permits_is_revoked_and_the_next_bind_of_it_refused() {
    isolated(|host| {
        let broker = Broker::start(host, &config(r#"( "*:80" "*:81" )"#));
        let script = "import errno, signal, socket
def bind():
    one = socket.socket()
    one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    one.bind(('127.0.0.1', 80))
    return one
one = bind()
one.listen()
print('listens')
try: one.accept()
except OSError as error: print('accept', errno.errorcode[error.errno])
try: bind()
except OSError as error: print('bind', errno.errorcode[error.errno])
signal.pause()";
        let running = Running::python(host, script);
        running.log.wait_for(&["listens"]);
        reload(host, &broker, &config(r#"( "*:81" )"#));
        running.log.wait_for(&["accept EINVAL"]);
        running.log.wait_for(&["bind EACCES"]);
        assert!(resources::tcp_listeners().is_empty());
    });
}

#[test]
fn an_unprivileged_port_that_a_reload_permits_is_the_brokers_at_once_if_its_events_are_allowed() {
    isolated(|host| {
        let script = "import os, signal, socket
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
print('ready')
while True:
    signal.sigwait([signal.SIGUSR1])
    one = socket.socket()
    before = os.fstat(one.fileno()).st_ino
    one.bind(('127.0.0.1', 8000))
    print('kernel' if os.fstat(one.fileno()).st_ino == before else 'broker')
    one.close()";
        let with_events = |listen| config(listen).replace("allow = ( listen )", "allow = ( listen events )");
        let other = r#"broker { permit "other" { listen = "*:8000" } }"#;
        let broker = Broker::start(host, &(with_events(r#"( "*:80" )"#) + other));
        let running = Running::python(host, script);
        running.log.wait_for(&["ready"]);
        running.signal(Signal::USR1);
        running.log.wait_for(&["kernel"]);
        reload(host, &broker, &(with_events(r#"( "*:80" "*:8000" )"#) + other));
        // The supervisor reads the policy when the event has arrived.
        eventually("the broker's socket", || {
            let answers = || running.log.lines().len();
            let before = answers();
            running.signal(Signal::USR1);
            eventually("a bind", || (answers() > before).then_some(()));
            running.log.lines().iter().any(|line| line == "broker").then_some(())
        });
    });
}

#[test]
fn a_program_that_binds_its_endpoint_again_after_a_takeover_or_a_crash_of_the_broker_gets_the_same_listener()
{
    isolated(|host| {
        let config = config(r#"( "*:80" "*:53/udp" )"#);
        let mut broker = Broker::start(host, &config);
        let script = "import os, signal, socket
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
while True:
    tcp, udp = socket.socket(), socket.socket(type=socket.SOCK_DGRAM)
    for one, port in (tcp, 80), (udp, 53):
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        one.bind(('127.0.0.1', port))
    tcp.listen()
    print('bound', os.fstat(tcp.fileno()).st_ino, os.fstat(udp.fileno()).st_ino)
    connection, _ = tcp.accept()
    connection.sendall(b'served')
    connection.close()
    signal.sigwait([signal.SIGUSR1])
    tcp.close()
    udp.close()";
        let running = Running::python(host, script);
        let bound = |times: usize| {
            eventually("a bind", || {
                let lines: Vec<String> =
                    running.log.lines().into_iter().filter(|line| line.starts_with("bound")).collect();
                (lines.len() == times).then_some(lines)
            })
        };
        let serves = || {
            let mut reply = String::new();
            let mut connection = std::net::TcpStream::connect("127.0.0.1:80").unwrap();
            std::io::Read::read_to_string(&mut connection, &mut reply).unwrap();
            assert_eq!(reply, "served");
        };
        let listeners = |broker: &Broker| broker.peer().status().listeners.len();
        bound(1);
        serves();
        broker.replace(host, &config);
        eventually("the next session", || (broker.peer().status().sessions.len() > 1).then_some(()));
        running.signal(Signal::USR1);
        let lines = bound(2);
        assert_eq!(lines[0], lines[1], "the same sockets");
        serves();
        assert_eq!(listeners(&broker), 2);
        drop(broker); // killed
        let broker = Broker::start(host, &config);
        eventually("the next session", || (broker.peer().status().sessions.len() > 1).then_some(()));
        running.signal(Signal::USR1);
        let lines = bound(3);
        assert_eq!(lines[0], lines[2], "the same sockets");
        serves();
        assert_eq!(listeners(&broker), 0);
    });
}

#[test]
fn a_listener_that_the_broker_does_not_keep_ends_when_the_program_closes_it_and_another_one_when_the_program_ends()
 {
    isolated(|host| {
        let text = config(r#"( "*:80" )"#).replace("listen = (", "unkept = true listen = (");
        let broker = Broker::start(host, &text);
        let before = broker.descriptors();
        // Without one the broker cannot revoke such a listener.
        let has_allowlist = broker.has_allowlist();
        let script = "import signal, socket
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
for _ in range(2):
    one = socket.socket()
    one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    one.bind(('127.0.0.1', 80))
    one.listen()
    try: socket.socket().bind(('127.0.0.1', 80))
    except OSError as error: print(error.strerror)
    print('open')
    signal.sigwait([signal.SIGUSR1])
    one.close()
    print('closed')
    signal.sigwait([signal.SIGUSR1])";
        for (option, is_kept) in [("--unkept", false), ("--", true)] {
            let running = Running::start(command(host, &[option, "/usr/bin/python3", "-u", "-c", script]));
            if !is_kept && !has_allowlist {
                running
                    .log
                    .wait_for(&["bind to 127.0.0.1:80 fails", "the kernel refused the broker an allowlist"]);
                continue;
            }
            running.log.wait_for(&["open"]);
            assert_eq!(running.log.lines().iter().any(|line| line == "Address already in use"), !is_kept);
            assert_eq!(resources::tcp_listeners().len(), 1);
            running.signal(Signal::USR1);
            running.log.wait_for(&["closed"]);
            assert_eq!(resources::tcp_listeners().is_empty(), !is_kept, "{option}");
            running.signal(Signal::USR1);
            eventually("the second bind", || {
                let opened = running.log.lines().iter().filter(|line| *line == "open").count();
                (opened == 2).then_some(())
            });
            drop(running);
            broker.await_no_leak(&before);
        }
    });
}

pub fn reload(host: &Host, broker: &Broker, text: &str) {
    portreeve_tests::broker::config(host, text);
    let mut root = broker.peer();
    root.request(&portreeve_protocol::reload::Reload::default()).unwrap();
}

#[test]
fn a_worker_under_run_gets_no_channel_and_is_replaced_while_its_listener_stays_open() {
    isolated(|host| {
        let script = "import os, signal, socket
print('channel', os.environ.get('PORTREEVE_CHANNEL'), os.environ.get('LISTEN_FDS'), flush=True)
one = socket.socket()
one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
one.bind(('127.0.0.1', 80))
one.listen(64)
";
        let file = host.file("server.py", &format!("{script}print('serves', os.getpid(), flush=True)\nwhile True:\n    connection, _ = one.accept()\n    connection.sendall(b'served')\n    connection.close()\n"));
        let client = host.binary(portreeve_tests::binaries::CLIENT);
        let config = format!(
            r#"
            security {{ user = nobody group = nogroup capabilities = "cap_net_bind_service+ep" }}
            worker {{ command = ( {:?} run "--" /usr/bin/python3 {:?} ) }}
            broker {{ permit "servers" {{ listen = ( "*:80" ) }} }}
            "#,
            client.to_str().unwrap(),
            file.to_str().unwrap()
        );
        let broker = Broker::start(host, &config);
        broker.log.wait_for(&["channel None None"]);
        // It follows the policy.
        broker.log.wait_for(&["audit: done", "the worker", "operation=\"subscribe\""]);
        let pid_of = |line: String| -> u32 {
            let number = line.split("serves ").nth(1).unwrap();
            number.chars().take_while(char::is_ascii_digit).collect::<String>().parse().unwrap()
        };
        let first = pid_of(broker.log.wait_for(&["serves "]));
        let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
        let clients: Vec<_> = (0..4)
            .map(|_| {
                let stop = stop.clone();
                std::thread::spawn(move || {
                    let (mut served, mut refused) = (0, 0);
                    while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                        match std::net::TcpStream::connect("127.0.0.1:80") {
                            Ok(mut connection) => {
                                let mut reply = String::new();
                                let _ = std::io::Read::read_to_string(&mut connection, &mut reply);
                                served += u32::from(reply == "served");
                            }
                            Err(_) => refused += 1,
                        }
                    }
                    (served, refused)
                })
            })
            .collect();
        let mut last = first;
        for _ in 0..3 {
            std::thread::sleep(Duration::from_millis(50)); // clients connect meanwhile
            kill_process(pid(last), Signal::KILL).unwrap();
            last = eventually("the next program", || {
                let lines = broker.log.lines();
                let line = lines.iter().rfind(|line| line.contains("serves "))?.clone();
                Some(pid_of(line)).filter(|next| *next != last)
            });
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        for client in clients {
            let (served, refused) = client.join().unwrap();
            assert!(served > 0 && refused == 0, "{served} served, {refused} refused");
        }
    });
}
