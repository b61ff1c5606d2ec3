//! What depends on the kernel: Yama, and the ways to call bind(2) that the filter does not see.

use std::fs;
use std::process::Command;

use portreeve_tests::broker::SOCKET;
use portreeve_tests::namespaces::run;
use portreeve_tests::{Broker, binaries, isolated};
use rustix::process::Signal;

use crate::binds::{expect, results, results_of};
use crate::programs::{command, config, outcome};
use crate::supervisor::by_signal;

/// Binds in the first process, and then in one that has put itself into the background, whose parent is the supervisor.
const BACKGROUND: &str = "
supervisor = os.getppid()
case('first', socket.socket(INET, TCP), ('127.0.0.1', 80))
parent_ended, end_of_parent = os.pipe()
middle = os.fork()
if middle == 0:
    os.setsid()
    if os.fork() == 0:
        os.read(parent_ended, 1)
        show('adopted', os.getppid() == supervisor)
        case('background', socket.socket(INET, TCP), ('127.0.0.1', 81))
    os._exit(0)
os.waitpid(middle, 0)
os.write(end_of_parent, b'.')
";

/// `tests/kernels/run every_level_of_yama` runs it in an emulated machine, with the kernel of Debian.
#[test]
#[ignore = "it sets kernel.yama.ptrace_scope of the whole machine, and the last level cannot be left"]
fn every_level_of_yama_lets_the_program_be_supervised_or_refuses_it() {
    const LEVEL: &str = "/proc/sys/kernel/yama/ptrace_scope";
    isolated(|host| {
        let set = |level: &str| fs::write(LEVEL, level).unwrap_or_else(|error| panic!("{LEVEL}: {error}"));
        let root = r"broker { peer root { allow = ( listen ) permit = ( servers ) } }";
        let _broker = Broker::start(host, &(config(r#"( "*:80-90" )"#) + root));
        let as_root = |arguments: &[&str]| {
            let mut command = command(host, arguments);
            std::os::unix::process::CommandExt::uid(&mut command, 0);
            command
        };
        let refused = |command: Command, level: &str| {
            let expected = format!(
                "portreeve: cannot intercept bind(2) of \"echo\": kernel.yama.ptrace_scope is {level}, and portreeve has to look into \
                 the program's processes. Set it to 0 or 1"
            );
            let (code, out, error) = outcome(command);
            assert_eq!((code, out.as_str()), (Some(71), ""), "level {level}: {error}");
            assert!(error.starts_with(&expected), "{error}");
        };
        for level in ["0", "1"] {
            set(level);
            let (found, error) = results(host, BACKGROUND);
            expect(&found, &[("first", "broker"), ("adopted", "True"), ("background", "broker")]);
            assert_eq!(error, "", "level {level}");
        }
        let running = by_signal(host, 85);
        running.signal(Signal::USR1);
        running.log.wait_for(&["85 bound"]);
        set("2");
        running.signal(Signal::USR1);
        running.log.wait_for(&["86 EACCES"]);
        running.log.wait_for(&["cannot read the address", "kernel.yama.ptrace_scope is 2: set it to 0 or 1"]);
        refused(command(host, &["echo", "run"]), "2");
        // It has CAP_SYS_PTRACE.
        let script =
            format!("{}case('root', socket.socket(INET, TCP), ('127.0.0.1', 87))", crate::binds::PRELUDE);
        let (found, _) = results_of(as_root(&["--", "/usr/bin/python3", "-c", &script]));
        expect(&found, &[("root", "broker")]);
        set("1");
        running.signal(Signal::USR1);
        running.log.wait_for(&["87 bound"]);
        set("3");
        refused(command(host, &["echo", "run"]), "3");
        refused(as_root(&["echo", "run"]), "3");
    });
}

/// Binds by io_uring. Prints whether the kernel has IORING_OP_BIND, or the error of io_uring_setup(2).
const IO_URING: &str = r"
import mmap
SETUP, ENTER, REGISTER = 425, 426, 427
REGISTER_PROBE, OP_BIND, OP_SUPPORTED, ENTER_GETEVENTS, OFFSET_OF_ENTRIES = 8, 56, 1, 1, 0x10000000
parameters = ctypes.create_string_buffer(120)
ring = libc.syscall(SETUP, 4, parameters)
def name(result):
    return errno.errorcode[-result] if result < 0 else result
def by_ring(one, address):
    submissions, completions = struct.unpack_from('2I', parameters)
    field = lambda place: struct.unpack_from('I', parameters, place)[0]
    tail, array, results = field(40 + 4), field(40 + 24), field(80 + 20)
    rings = mmap.mmap(ring, max(array + 4 * submissions, results + 16 * completions))
    entries = mmap.mmap(ring, 64 * submissions, offset=OFFSET_OF_ENTRIES)
    buffer = ctypes.create_string_buffer(struct.pack('=H', INET) + struct.pack('!H4s8x', address[1], socket.inet_aton(address[0])), 16)
    (number,) = struct.unpack_from('I', rings, tail)
    slot = number % submissions
    entries[64 * slot:64 * (slot + 1)] = struct.pack('=BBHiQQ40x', OP_BIND, 0, 0, one.fileno(), 16, ctypes.addressof(buffer))
    struct.pack_into('I', rings, array + 4 * slot, slot)
    struct.pack_into('I', rings, tail, number + 1)
    assert libc.syscall(ENTER, ring, 1, 1, ENTER_GETEVENTS, None, 0) == 1
    return struct.unpack_from('=Qi', rings, results + 16 * (number % completions))[1]
if ring < 0:
    show('io_uring', errno.errorcode[ctypes.get_errno()])
else:
    probe = ctypes.create_string_buffer(16 + 8 * 256)
    assert libc.syscall(REGISTER, ring, REGISTER_PROBE, probe, 256) == 0
    show('io_uring', 'bind' if struct.unpack_from('H', probe, 16 + 8 * OP_BIND + 2)[0] & OP_SUPPORTED else 'no bind')
    for what, port in ('privileged', 80), ('unprivileged', 8000):
        one = socket.socket(INET, TCP)
        show(what, (name(by_ring(one, ('127.0.0.1', port))), one.getsockname()[1]))
        kept.append(one)
case('bind(2)', socket.socket(INET, TCP), ('127.0.0.1', 80))
";

#[test]
fn without_proc_descriptors_are_inherited_and_other_threads_get_listeners_since_linux_6_9() {
    isolated(|host| {
        let _broker = Broker::start(host, &config(r#"( "*:80" "*:81" )"#));
        let script = format!(
            "{}
one, two = socket.socket(INET, TCP), socket.socket(INET, TCP)
case('first thread', one, ('127.0.0.1', 80))
show('inheritable', (two.get_inheritable(), one.get_inheritable()))
thread = threading.Thread(target=lambda: case('another thread', two, ('127.0.0.1', 81)))
thread.start()
thread.join()
show('has proc', os.path.exists('/proc/self'))
show('has pidfds of threads', [int(part) for part in os.uname().release.split('.')[:2]] >= [6, 9])
",
            crate::binds::PRELUDE
        );
        let mut without = Command::new("unshare");
        without.args(["--mount", "--", "sh", "-c", "mount -t tmpfs none /proc && exec setpriv \"$@\"", "sh"]);
        without.args(["--reuid", "nobody", "--regid", "nogroup", "--clear-groups"]);
        without.arg(host.binary(binaries::CLIENT)).args(["--socket", SOCKET, "run", "--"]);
        without.args(["/usr/bin/python3", "-c", &script]);
        let (found, error) = results_of(without);
        let pidfds_of_threads = found["has pidfds of threads"].as_str();
        let another = match pidfds_of_threads {
            "True" => "broker",
            _ => "EACCES",
        };
        expect(
            &found,
            &[
                ("first thread", "broker"),
                ("inheritable", "(False, True)"),
                ("another thread", another),
                ("has proc", "False"),
                ("has pidfds of threads", pidfds_of_threads),
            ],
        );
        assert_eq!(error.contains("cannot read the socket of a bind"), another == "EACCES", "{error}");
    });
}

/// How often the broker has been asked for a listener.
fn listened(broker: &Broker) -> usize {
    broker.log.lines().iter().filter(|line| line.contains("operation=\"listen\"")).count()
}

#[test]
fn a_bind_by_io_uring_is_the_kernels() {
    isolated(|host| {
        let broker = Broker::start(host, &config(r#"( "*:80" "*:8000" )"#));
        let (found, _) = results(host, IO_URING);
        let io_uring = found["io_uring"].as_str();
        println!("io_uring: {io_uring}");
        let binds = match io_uring {
            "bind" => Some(("('EACCES', 0)", "(0, 8000)")),
            "no bind" => Some(("('EINVAL', 0)", "('EINVAL', 0)")),
            // Without CONFIG_IO_URING, or with kernel.io_uring_disabled.
            "ENOSYS" | "EPERM" => None,
            other => panic!("io_uring_setup(2): {other}"),
        };
        let mut expected = vec![("io_uring", io_uring), ("bind(2)", "broker")];
        if let Some((privileged, unprivileged)) = binds {
            expected.extend([("privileged", privileged), ("unprivileged", unprivileged)]);
        }
        expect(&found, &expected);
        assert_eq!(listened(&broker), 1, "the broker is asked about bind(2) only");
    });
}

/// Calls bind(2) of the 32-bit ABI and of x32, as a 64-bit process can. Prints the negative error, and the port that the socket has.
#[cfg(target_arch = "x86_64")]
const CALLS_OF_OTHER_ABIS: &str = r#"
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <netinet/in.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

static long call32(long number, long first, long second, long third)
{
    long result;
    __asm__ volatile("int $0x80" : "=a"(result) : "a"(number), "b"(first), "c"(second), "d"(third)
                     : "memory", "r8", "r9", "r10", "r11");
    return (int)result;
}

static long call_x32(long number, long first, long second, long third)
{
    long result;
    __asm__ volatile("syscall" : "=a"(result) : "a"(number | 0x40000000), "D"(first), "S"(second), "d"(third)
                     : "memory", "rcx", "r11");
    return result;
}

int main(int argc, char **argv)
{
    enum { SOCKETCALL = 102, SYS_BIND = 2, BIND = 361, GETPID = 20, BIND_X32 = 49 };
    static const char *const names[] = {"bind", "socketcall", "x32"};
    struct { struct sockaddr_in address; uint32_t arguments[3]; } *low;
    (void)argv;
    if (argc > 1)
        return call32(GETPID, 0, 0, 0) != getpid();
    low = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_32BIT, -1, 0);
    if (low == MAP_FAILED)
        return 2;
    for (int call = 0; call < 3; call++)
        for (int port = 80; port <= 8000; port += 8000 - 80) {
            int one = socket(AF_INET, SOCK_STREAM, 0);
            struct sockaddr_in name = {0};
            socklen_t length = sizeof name;
            long result;
            low->address.sin_family = AF_INET;
            low->address.sin_port = htons((uint16_t)port);
            low->address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
            low->arguments[0] = (uint32_t)one;
            low->arguments[1] = (uint32_t)(uintptr_t)&low->address;
            low->arguments[2] = sizeof low->address;
            result = call == 0   ? call32(BIND, one, (long)&low->address, sizeof low->address)
                     : call == 1 ? call32(SOCKETCALL, SYS_BIND, (long)low->arguments, 0)
                                 : call_x32(BIND_X32, one, (long)&low->address, sizeof low->address);
            getsockname(one, (struct sockaddr *)&name, &length);
            printf("%s %d = %ld, %d\n", names[call], port, result, ntohs(name.sin_port));
            close(one);
        }
    return 0;
}
"#;

#[cfg(target_arch = "x86_64")]
#[test]
fn a_bind_by_a_call_of_the_32_bit_abi_or_x32_is_the_kernels() {
    isolated(|host| {
        let broker = Broker::start(host, &config(r#"( "*:80" "*:8000" )"#));
        let (source, program) = (host.file("calls.c", CALLS_OF_OTHER_ABIS), host.path("calls"));
        run(Command::new("cc").args(["-Wall", "-Wextra", "-Werror", "-o"]).arg(&program).arg(source), "gcc");
        let program = program.to_str().unwrap();
        let has_32_bit_calls = Command::new(program).arg("only the process id").status().unwrap();
        if !has_32_bit_calls.success() {
            // The kernel has no such calls: the instruction is an error, so nothing can be bound.
            assert_eq!(std::os::unix::process::ExitStatusExt::signal(&has_32_bit_calls), Some(libc::SIGSEGV));
            let (code, out, _) = outcome(command(host, &[program]));
            assert_eq!((code, out.as_str()), (Some(128 + libc::SIGSEGV), ""));
            return;
        }
        let (found, _) = results_of(command(host, &[program]));
        // An ordinary kernel of today has no x32.
        let has_x32 = found["x32 8000"] == "0, 8000";
        let denied = format!("-{}, 0", libc::EACCES);
        let missing = format!("-{}, 0", libc::ENOSYS);
        expect(
            &found,
            &[
                ("bind 80", &denied),
                ("bind 8000", "0, 8000"),
                ("socketcall 80", &denied),
                ("socketcall 8000", "0, 8000"),
                ("x32 80", if has_x32 { &denied } else { &missing }),
                ("x32 8000", if has_x32 { "0, 8000" } else { &missing }),
            ],
        );
        assert_eq!(listened(&broker), 0);
    });
}
