//! Which bind(2) the broker answers, and what the program then has.

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::process::Command;

use portreeve_tests::broker::SOCKET;
use portreeve_tests::{Broker, Host, binaries, isolated};

use crate::programs::{Running, command, config, outcome};

/// Python that calls bind(2), and prints what came of it: `broker` if the socket is another one than before, `kernel` if it is
/// the same, or the name of the error.
pub const PRELUDE: &str = r#"
import ctypes, errno, os, socket, struct, threading
libc = ctypes.CDLL(None, use_errno=True)
INET, INET6, TCP, UDP = socket.AF_INET, socket.AF_INET6, socket.SOCK_STREAM, socket.SOCK_DGRAM
def attempt(one, address):
    before = os.fstat(one.fileno()).st_ino
    try:
        one.bind(address)
    except OSError as error:
        return errno.errorcode[error.errno]
    return 'kernel' if os.fstat(one.fileno()).st_ino == before else 'broker'
def only6(one):
    one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    return one
def show(name, result):
    os.write(1, f'{name} = {result}\n'.encode())
kept = []
def case(name, one, address):
    kept.append(one)
    show(name, attempt(one, address))
"#;

/// Runs a Python program after the prelude to its end. Returns what it printed by name, and its standard error.
#[track_caller]
pub fn results(host: &Host, script: &str) -> (BTreeMap<String, String>, String) {
    results_of(command(host, &["--", "/usr/bin/python3", "-c", &format!("{PRELUDE}{script}")]))
}

#[track_caller]
pub fn results_of(command: Command) -> (BTreeMap<String, String>, String) {
    let (code, out, error) = outcome(command);
    assert_eq!(code, Some(0), "{out}\n{error}");
    let row = |line: &str| line.split_once(" = ").map(|(name, result)| (name.to_owned(), result.to_owned()));
    (out.lines().filter_map(row).collect(), error)
}

#[track_caller]
pub fn expect(found: &BTreeMap<String, String>, expected: &[(&str, &str)]) {
    let expected: BTreeMap<_, _> = expected.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect();
    assert_eq!(*found, expected);
}

#[test]
fn what_policy_permits_is_the_brokers_and_every_other_bind_is_the_kernels() {
    isolated(|host| {
        let listen =
            r#"( "*:80" "[::]:80" "*:53/udp" "[::]:53/udp" "127.0.0.1:81" "[::1]:81" "*:8000" "[::]:82" )"#;
        let broker = Broker::start(host, &config(listen));
        let (found, error) = results(
            host,
            r"
case('tcp', socket.socket(INET, TCP), ('0.0.0.0', 80))
case('tcp6', only6(socket.socket(INET6, TCP)), ('::', 80))
case('udp', socket.socket(INET, UDP), ('0.0.0.0', 53))
case('udp6', only6(socket.socket(INET6, UDP)), ('::', 53))
case('address', socket.socket(INET, TCP), ('127.0.0.1', 81))
case('address6', socket.socket(INET6, TCP), ('::1', 81))
case('high', socket.socket(INET, TCP), ('0.0.0.0', 8000))
case('high, not permitted', socket.socket(INET, TCP), ('0.0.0.0', 8001))
case('multipath', socket.socket(INET, TCP, 262), ('127.0.0.2', 80))
case('port 0', socket.socket(INET, TCP), ('0.0.0.0', 0))
case('unix', socket.socket(socket.AF_UNIX, TCP), '\0portreeve-test')
case('not permitted', socket.socket(INET, TCP), ('0.0.0.0', 83))
case('dual-stack', socket.socket(INET6, TCP), ('::', 82))
case('mapped', socket.socket(INET6, TCP), ('::ffff:127.0.0.1', 80))
case('another transport', socket.socket(INET, UDP), ('0.0.0.0', 80))
case('bound already', kept[0], ('0.0.0.0', 80))
address = struct.pack('=H', INET) + struct.pack('!H4s8x', 80, bytes(4))
def raw(name, *arguments):
    libc.bind(*arguments)
    show(name, errno.errorcode[ctypes.get_errno()])
raw('no descriptor', 999, address, 16)
raw('no socket', os.open('/dev/null', os.O_RDONLY), address, 16)
new = socket.socket(INET, TCP)
raw('no memory', new.fileno(), ctypes.c_void_p(8), 16)
raw('too short', new.fileno(), address, 8)
raw('too long', new.fileno(), address, 4096)
raw('negative', new.fileno(), address, -1)
new6 = socket.socket(INET6, TCP)
raw('another family', new6.fileno(), address, 16)
",
        );
        expect(
            &found,
            &[
                ("tcp", "broker"),
                ("tcp6", "broker"),
                ("udp", "broker"),
                ("udp6", "broker"),
                ("address", "broker"),
                ("address6", "broker"),
                ("high", "broker"),
                ("multipath", "EADDRINUSE"),
                ("high, not permitted", "kernel"),
                ("port 0", "kernel"),
                ("unix", "kernel"),
                ("not permitted", "EACCES"),
                ("dual-stack", "EACCES"),
                ("mapped", "EACCES"),
                ("another transport", "EACCES"),
                ("bound already", "EACCES"),
                ("no descriptor", "EBADF"),
                ("no socket", "ENOTSOCK"),
                ("no memory", "EFAULT"),
                ("too short", "EINVAL"),
                ("too long", "EINVAL"),
                ("negative", "EINVAL"),
                ("another family", "EINVAL"),
            ],
        );
        let note = |what: &str| {
            format!(
                "portreeve: policy does not permit this user to listen on {what}: the kernel judges that bind"
            )
        };
        assert!(error.contains(&note("*:83")), "{error}");
        assert!(error.contains(&note("[::]:82 and for IPv4, because the socket is dual-stack")), "{error}");
        let listened = broker.log.lines().iter().filter(|line| line.contains("operation=\"listen\"")).count();
        assert_eq!(listened, 9, "the broker is asked about nothing else");
    });
}

#[test]
fn a_bind_that_the_broker_cannot_carry_out_fails_as_the_kernels_and_says_why() {
    isolated(|host| {
        let _broker = Broker::start(host, &config(r#"( "*:80" )"#));
        let _other = TcpListener::bind("127.0.0.1:80").unwrap();
        let (found, error) = results(
            host,
            "
case('in use', socket.socket(INET, TCP), ('127.0.0.1', 80))
case('not local', socket.socket(INET, TCP), ('192.0.2.9', 80))
case('another', socket.socket(INET, TCP), ('127.0.0.2', 80))
",
        );
        expect(&found, &[("in use", "EADDRINUSE"), ("not local", "EADDRNOTAVAIL"), ("another", "broker")]);
        assert!(
            error.contains("portreeve: bind to 127.0.0.1:80 fails: cannot listen on 127.0.0.1:80"),
            "{error}"
        );
        assert!(
            error.contains("portreeve: bind to 192.0.2.9:80 fails: cannot listen on 192.0.2.9:80"),
            "{error}"
        );
    });
}

#[test]
fn the_socket_has_every_option_that_the_program_has_set() {
    isolated(|host| {
        let _broker = Broker::start(host, &config(r#"( "*:80" "[::]:80" "*:53/udp" "*:81" )"#));
        let (found, _) = results(
            host,
            r"
import fcntl
from socket import *
common = [(SOL_SOCKET, SO_KEEPALIVE, 1), (SOL_SOCKET, SO_RCVBUF, 50000), (SOL_SOCKET, SO_SNDBUF, 60000), (SOL_SOCKET, SO_PRIORITY, 3),
    (IPPROTO_IP, IP_TOS, 16), (IPPROTO_IP, IP_TTL, 33)]
tcp = [(IPPROTO_TCP, TCP_NODELAY, 1), (IPPROTO_TCP, TCP_DEFER_ACCEPT, 3), (IPPROTO_TCP, TCP_KEEPIDLE, 77), (IPPROTO_TCP, TCP_FASTOPEN, 5),
    (IPPROTO_TCP, TCP_USER_TIMEOUT, 9000), (SOL_SOCKET, SO_REUSEADDR, 1)]
def read(one, options):
    values = [one.getsockopt(level, name) for level, name, _ in options]
    linger = one.getsockopt(SOL_SOCKET, SO_LINGER, 8)
    return values + [linger, fcntl.fcntl(one, fcntl.F_GETFL), fcntl.fcntl(one, fcntl.F_GETFD)]
def check(name, one, address, options, inheritable):
    for level, option, value in options:
        one.setsockopt(level, option, value)
    one.setsockopt(SOL_SOCKET, SO_LINGER, struct.pack('ii', 1, 4))
    one.setblocking(not inheritable)
    one.set_inheritable(inheritable)
    before = read(one, options)
    case(name, one, address)
    show(name + ' options', 'same' if read(one, options) == before else (before, read(one, options)))
check('tcp', socket(INET, TCP), ('0.0.0.0', 80), common + tcp, True)
check('tcp6', socket(INET6, TCP), ('::', 80), tcp + [(IPPROTO_IPV6, IPV6_V6ONLY, 1), (IPPROTO_IPV6, IPV6_RECVPKTINFO, 1)], False)
check('udp', socket(INET, UDP), ('0.0.0.0', 53), common + [(SOL_SOCKET, SO_BROADCAST, 1), (IPPROTO_IP, 8, 1)], False)
one, two = socket(INET, TCP), socket(INET, TCP)
for each in one, two:
    each.setsockopt(SOL_SOCKET, SO_REUSEPORT, 1)
case('shared', one, ('127.0.0.1', 81))
case('shared again', two, ('127.0.0.1', 81))
show('shared option', two.getsockopt(SOL_SOCKET, SO_REUSEPORT))
",
        );
        expect(
            &found,
            &[
                ("tcp", "broker"),
                ("tcp options", "same"),
                ("tcp6", "broker"),
                ("tcp6 options", "same"),
                ("udp", "broker"),
                ("udp options", "same"),
                ("shared", "broker"),
                ("shared again", "broker"),
                ("shared option", "1"),
            ],
        );
    });
}

#[test]
fn threads_forked_and_executed_children_bind_as_their_program_does() {
    isolated(|host| {
        let _broker = Broker::start(host, &config(r#"( "*:80-99" )"#));
        let (found, _) = results(
            host,
            r#"
import subprocess, sys
def thread(number):
    case(f'thread {number}', socket.socket(INET, TCP), ('127.0.0.1', 80 + number))
threads = [threading.Thread(target=thread, args=(number,)) for number in range(8)]
[one.start() for one in threads]
[one.join() for one in threads]
if os.fork() == 0:
    case('forked', socket.socket(INET, TCP), ('127.0.0.1', 90))
    os._exit(0)
os.wait()
executed = subprocess.run([sys.executable, '-c', 'import socket; socket.socket().bind(("127.0.0.1", 91))'])
show('executed', executed.returncode)
"#,
        );
        let mut expected: Vec<(String, &str)> =
            (0..8).map(|number| (format!("thread {number}"), "broker")).collect();
        expected.extend([("forked".to_owned(), "broker"), ("executed".to_owned(), "0")]);
        expect(&found, &expected.iter().map(|(name, result)| (name.as_str(), *result)).collect::<Vec<_>>());
    });
}

/// Binds 20,000 times while a thread changes the port between one that policy permits and one that it does not.
const FLIP: &str = r"
import sys
sys.setswitchinterval(1e-6)
buffer = ctypes.create_string_buffer(struct.pack('=H', INET) + struct.pack('!H4s8x', 80, bytes([127, 0, 0, 1])), 16)
ports = [struct.pack('!H', 80), struct.pack('!H', 81)]
running = True
def flip():
    while running:
        for port in ports:
            buffer[2:4] = port
thread = threading.Thread(target=flip)
thread.start()
bound, refused, forbidden, other = 0, 0, 0, set()
for _ in range(20000):
    one = socket.socket(INET, TCP)
    if libc.bind(one.fileno(), buffer, 16) == 0:
        bound += 1
        forbidden += one.getsockname()[1] != 80
    elif ctypes.get_errno() == errno.EACCES:
        refused += 1
    else:
        other.add(errno.errorcode[ctypes.get_errno()])
    one.close()
running = False
thread.join()
show('forbidden', forbidden)
show('other errors', sorted(other))
show('both happened', bound > 1000 and refused > 1000)
print('counts', bound, refused)
";

#[test]
fn of_20000_binds_whose_address_a_thread_changes_meanwhile_none_is_forbidden() {
    isolated(|host| {
        let _broker = Broker::start(host, &config(r#"( "*:80" )"#));
        let (found, _) = results(host, FLIP);
        expect(&found, &[("forbidden", "0"), ("other errors", "[]"), ("both happened", "True")]);
    });
}

/// Binds while a timer sends signals.
const SIGNALS: &str = r"
import signal, sys
signal.signal(signal.SIGALRM, lambda *_: None)
# As with SA_RESTART: the call is repeated.
signal.siginterrupt(signal.SIGALRM, False)
errors = set()
interval = float(sys.argv[1])
signal.setitimer(signal.ITIMER_REAL, interval, interval)
for _ in range(3000):
    one = socket.socket(INET, TCP)
    if libc.bind(one.fileno(), struct.pack('=H', INET) + struct.pack('!H4s8x', 80, bytes([127, 0, 0, 1])), 16) != 0:
        errors.add(errno.errorcode[ctypes.get_errno()])
    elif one.getsockname() != ('127.0.0.1', 80):
        errors.add(one.getsockname())
    one.close()
signal.setitimer(signal.ITIMER_REAL, 0)
show('errors', sorted(errors))
";

#[test]
fn signals_change_no_outcome_of_a_bind() {
    isolated(|host| {
        let _broker = Broker::start(host, &config(r#"( "*:80" )"#));
        let script = format!("{PRELUDE}{SIGNALS}");
        let found = results_of(command(host, &["--", "/usr/bin/python3", "-c", &script, "0.0001"]));
        expect(&found.0, &[("errors", "[]")]);
    });
}

#[test]
fn signals_change_no_outcome_of_a_bind_on_a_kernel_that_lets_them_interrupt_it() {
    isolated(|host| {
        let _broker = Broker::start(host, &config(r#"( "*:80" )"#));
        // The flags with SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV are refused, as before Linux 5.19.
        let mut old = Command::new(host.binary(binaries::DENY_SYSCALLS));
        old.args([
            "seccomp:40@1=EINVAL",
            "--",
            "setpriv",
            "--reuid",
            "nobody",
            "--regid",
            "nogroup",
            "--clear-groups",
        ]);
        old.arg(host.binary(binaries::CLIENT)).args([
            "--socket",
            SOCKET,
            "run",
            "--",
            "/usr/bin/python3",
            "-c",
        ]);
        // A bind that is always interrupted before it is answered would be repeated without end.
        old.arg(format!("{PRELUDE}{SIGNALS}")).arg("0.002");
        expect(&results_of(old).0, &[("errors", "[]")]);
    });
}

#[test]
fn a_program_that_cannot_be_looked_into_binds_by_itself_and_is_named() {
    isolated(|host| {
        let _broker = Broker::start(host, &config(r#"( "*:80" "*:8000" )"#));
        let (found, error) = results(
            host,
            "
PR_SET_DUMPABLE = 4
libc.prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)
case('privileged', socket.socket(INET, TCP), ('127.0.0.1', 80))
case('high', socket.socket(INET, TCP), ('127.0.0.1', 8000))
case('unix', socket.socket(socket.AF_UNIX, TCP), '\\0portreeve-test')
",
        );
        expect(&found, &[("privileged", "EACCES"), ("high", "kernel"), ("unix", "kernel")]);
        let why = "Operation not permitted (os error 1). The kernel judges this bind. The process may have made itself unreadable \
                   (PR_SET_DUMPABLE), or its program file may not be readable";
        assert!(
            error.contains("portreeve: cannot read the address of a bind by process ") && error.contains(why),
            "{error}"
        );
    });
}

#[test]
fn a_duplicate_and_an_epoll_instance_of_before_the_bind_have_the_old_socket() {
    isolated(|host| {
        let _broker = Broker::start(host, &config(r#"( "*:80-81" )"#));
        let (found, _) = results(
            host,
            r"
import select
one, copied = socket.socket(INET, TCP), socket.socket(INET, TCP)
early = select.epoll()
early.register(one, select.EPOLLIN)
case('bind', one, ('127.0.0.1', 80))
client = socket.create_connection(('127.0.0.1', 80))
select.select([one], [], [])
show('the client waits', True)
# The supervisor may still have its copy of the old socket.
while any(event & select.EPOLLHUP for _, event in early.poll(0)): os.sched_yield()
show('events', early.poll(0))
try: early.modify(one, select.EPOLLIN)
except OSError as error: show('change', errno.errorcode[error.errno])
early.register(one, select.EPOLLIN)
show('added again', early.poll(0) == [(one.fileno(), select.EPOLLIN)])
early.register(copied, select.EPOLLIN)
copy = socket.socket(fileno=os.dup(copied.fileno()))
case('bind of a duplicated one', copied, ('127.0.0.1', 81))
show('the duplicate', copy.getsockname())
show('events of the duplicate', (copied.fileno(), select.EPOLLHUP) in early.poll(0))
show('bind of the duplicate', attempt(copy, ('127.0.0.1', 81)))
show('the duplicate now', copy.getsockname())
",
        );
        expect(
            &found,
            &[
                ("bind", "broker"),
                ("the client waits", "True"),
                ("events", "[]"),
                ("change", "ENOENT"),
                ("added again", "True"),
                ("bind of a duplicated one", "broker"),
                ("the duplicate", "('0.0.0.0', 0)"),
                ("events of the duplicate", "True"),
                ("bind of the duplicate", "broker"),
                ("the duplicate now", "('127.0.0.1', 81)"),
            ],
        );
    });
}

#[test]
fn a_client_a_filter_and_multipath_tcp_get_what_the_page_says() {
    isolated(|host| {
        let broker = Broker::start(host, &config(r#"( "*:80-82" "*:53/udp" "*:54/udp" )"#));
        let server = TcpListener::bind("127.0.0.1:8025").unwrap();
        let (found, _) = results(
            host,
            r"
client = socket.socket(INET, TCP)
case('client', client, ('127.0.0.1', 80))
try: client.connect(('127.0.0.1', 8025))
except OSError as error: show('connect', errno.errorcode[error.errno])
resolver, server = socket.socket(INET, UDP), socket.socket(INET, UDP)
case('UDP client', resolver, ('127.0.0.1', 54))
drop_all = ctypes.create_string_buffer(struct.pack('=HBBI', 6, 0, 0, 0), 8) # BPF_RET with length 0
SO_ATTACH_FILTER = 26
program = struct.pack('HL', 1, ctypes.addressof(drop_all))
server.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, program)
case('UDP server', server, ('127.0.0.1', 53))
resolver.connect(('127.0.0.1', 53))
resolver.send(b'query')
server.settimeout(20)
show('received', server.recv(9).decode())
try: show('filter', server.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, program))
except OSError as error: show('filter', errno.errorcode[error.errno])
multipath = socket.socket(INET, TCP, 262)
case('multipath', multipath, ('127.0.0.1', 81))
show('protocol', multipath.getsockopt(socket.SOL_SOCKET, socket.SO_PROTOCOL))
",
        );
        drop(server);
        expect(
            &found,
            &[
                ("client", "broker"),
                ("connect", "EISCONN"),
                ("UDP client", "broker"),
                ("UDP server", "broker"),
                ("received", "query"),
                ("filter", if broker.has_allowlist() { "EPERM" } else { "None" }),
                ("multipath", "broker"),
                ("protocol", "6"),
            ],
        );
    });
}

#[test]
fn a_socket_of_another_network_namespace_is_bound_there() {
    isolated(|host| {
        let config = config(r#"( "*:80" )"#).replace("peer nobody", "peer root");
        let broker = Broker::start(host, &config);
        let mut command = Command::new(host.binary(binaries::CLIENT));
        command.args(["--socket", SOCKET, "run", "--", "/usr/bin/python3", "-c"]);
        command.arg(format!(
            "{PRELUDE}
CLONE_NEWNET = 0x40000000
show('another namespace', 'entered' if libc.unshare(CLONE_NEWNET) == 0 else errno.errorcode[ctypes.get_errno()])
case('bind', socket.socket(INET, TCP), ('0.0.0.0', 80))
"
        ));
        let (found, _) = results_of(command);
        expect(&found, &[("another namespace", "entered"), ("bind", "kernel")]);
        assert!(!broker.log.lines().iter().any(|line| line.contains("operation=\"listen\"")));
    });
}

#[test]
fn a_program_in_a_chroot_without_proc_and_with_another_user_binds_and_keeps_its_flags() {
    isolated(|host| {
        let config = config(r#"( "*:80" )"#).replace("peer nobody", "peer root");
        let _broker = Broker::start(host, &config);
        let root = host.path("empty");
        std::fs::create_dir(&root).unwrap();
        let mut command = Command::new(host.binary(binaries::CLIENT));
        command.args(["--socket", SOCKET, "run", "--", "/usr/bin/python3", "-c"]);
        command.arg(format!(
            "{PRELUDE}
os.chroot({:?})
os.setgroups([]); os.setgid({NOBODY}); os.setuid({NOBODY})
one = socket.socket(INET, TCP)
case('bind', one, ('0.0.0.0', 80))
show('close-on-exec', not one.get_inheritable())
show('uid', os.getuid())
",
            root.to_str().unwrap(),
            NOBODY = crate::programs::NOBODY
        ));
        let (found, _) = results_of(command);
        expect(&found, &[("bind", "broker"), ("close-on-exec", "True"), ("uid", "65534")]);
    });
}

#[test]
fn a_server_that_executes_itself_and_binds_again_gets_the_same_listener() {
    isolated(|host| {
        let _broker = Broker::start(host, &config(r#"( "*:80" )"#));
        let script = "import os, signal, socket, sys
signal.signal(signal.SIGHUP, lambda *_: os.execv(sys.executable, [sys.executable, '-u', '-c', sys.argv[1], sys.argv[1]]))
one = socket.socket()
one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
one.bind(('127.0.0.1', 80))
one.listen()
print('listens', os.getpid(), os.fstat(one.fileno()).st_ino)
while True: signal.pause()";
        let running = Running::start(command(host, &["--", "/usr/bin/python3", "-u", "-c", script, script]));
        let first = running.log.wait_for(&["listens"]);
        running.signal(rustix::process::Signal::HUP);
        portreeve_tests::eventually("the second start", || {
            let lines = running.log.lines();
            (lines.iter().filter(|line| **line == first).count() == 2).then_some(())
        });
    });
}
