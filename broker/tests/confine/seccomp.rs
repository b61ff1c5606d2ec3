//! The system call filter.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::time::Duration;

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use portreeve_broker::config::{Resource, Resources};
use portreeve_broker::confine::seccomp::{Seccomp, SeccompNeeds, Support, allowed, install, probe};

use crate::child::{self, End};

/// Installs the filter, and prints the marker that the harness expects.
fn confine(needs: SeccompNeeds) {
    let status = install(&needs, Support::Present).unwrap();
    assert_eq!(status, Seccomp::Enforced { calls: allowed(&needs).count() });
    println!("{}", child::CONFINED);
}

const PLAIN: SeccompNeeds = SeccompNeeds { socket_files: false, limits: Resources::NONE };
const FILES: SeccompNeeds = SeccompNeeds { socket_files: true, limits: Resources::NONE };

fn a_runtime_with_sockets_timers_and_signals_works() {
    confine(PLAIN);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let (a, b) = tokio::net::UnixDatagram::pair().unwrap();
        a.send(b"request").await.unwrap();
        let mut buffer = [0; 16];
        assert_eq!(b.recv(&mut buffer).await.unwrap(), 7);
        tokio::time::sleep(Duration::from_millis(1)).await;
        let mut hangups = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::hangup()).unwrap();
        let process = nix::unistd::getpid();
        // SAFETY: tgkill takes three numbers.
        let sent =
            unsafe { libc::syscall(libc::SYS_tgkill, process.as_raw(), process.as_raw(), libc::SIGHUP) };
        assert_eq!(sent, 0);
        hangups.recv().await.unwrap();
    });
}

fn listeners_of_every_kind_can_be_created() {
    confine(PLAIN);
    for host in ["127.0.0.1:0", "[::1]:0"] {
        let listener = TcpListener::bind(host).unwrap();
        listener.set_nonblocking(true).unwrap();
        assert_eq!(listener.accept().unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
        let copy = listener.try_clone().unwrap();
        assert_eq!(copy.local_addr().unwrap(), listener.local_addr().unwrap());
        UdpSocket::bind(host).unwrap();
    }
    for kind in [SockType::Stream, SockType::SeqPacket, SockType::Datagram] {
        socket(AddressFamily::Unix, kind, SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK, None).unwrap();
    }
    assert_eq!(nix::net::if_::if_nametoindex("lo").unwrap(), 1);
    // A large allocation, and a hash table, which needs a random seed.
    let large = vec![1_u8; 64 << 20];
    assert_eq!(large.iter().map(|byte| u64::from(*byte)).sum::<u64>(), 64 << 20);
    let table: std::collections::HashMap<u32, u32> = (0..10_000).map(|n| (n, n)).collect();
    assert_eq!(table.len(), 10_000);
    assert!(nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE).is_ok());
}

fn a_socket_file_can_be_created_and_removed_if_configured() {
    let directory = tempfile::tempdir().unwrap();
    let opened = std::fs::File::open(directory.path()).unwrap();
    confine(FILES);
    nix::unistd::fchdir(&opened).unwrap();
    drop(UnixListener::bind("socket").unwrap());
    // A datagram socket detects a live listener without connect(2): the kernel reports that the socket types differ.
    let probe = UnixDatagram::unbound().unwrap();
    assert_eq!(probe.send_to(&[], "socket").unwrap_err().raw_os_error(), Some(libc::ECONNREFUSED));
    nix::unistd::unlinkat(&opened, "socket", nix::unistd::UnlinkatFlags::NoRemoveDir).unwrap();
    let live = UnixListener::bind("socket").unwrap();
    assert_eq!(probe.send_to(&[], "socket").unwrap_err().raw_os_error(), Some(libc::EPROTOTYPE));
    drop(live);
    nix::unistd::unlinkat(&opened, "socket", nix::unistd::UnlinkatFlags::NoRemoveDir).unwrap();
    nix::unistd::chdir("/").unwrap();
    std::mem::forget(directory);
}

fn calls_that_the_c_library_makes_itself_fail_without_a_signal() {
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    confine(PLAIN);
    let refused = Some(libc::EACCES);
    assert_eq!(std::fs::read("/etc/shadow").unwrap_err().raw_os_error(), refused);
    assert_eq!(std::fs::metadata("/etc").unwrap_err().raw_os_error(), refused);
    assert_eq!(TcpStream::connect(server.local_addr().unwrap()).unwrap_err().raw_os_error(), refused);
    assert_eq!(std::env::current_dir().unwrap_err().raw_os_error(), refused);
}

fn a_pipe_that_was_open_before_still_works() {
    let (mut reader, mut writer) = std::io::pipe().unwrap();
    confine(PLAIN);
    writer.write_all(b"x").unwrap();
    let mut one = [0];
    reader.read_exact(&mut one).unwrap();
    assert_eq!(&one, b"x");
}

fn an_abort_ends_with_sigabrt() {
    confine(PLAIN);
    std::process::abort();
}

fn a_kernel_without_seccomp_is_reported() {
    child::make_unavailable(libc::SYS_seccomp);
    assert_eq!(install(&PLAIN, Support::Missing).unwrap(), Seccomp::Absent);
    std::fs::read("/etc/passwd").unwrap();
}

fn a_kernel_with_seccomp_that_a_filter_denies_is_a_failure() {
    child::make_unavailable(libc::SYS_seccomp);
    for failure in [install(&PLAIN, Support::Present).unwrap_err(), probe(&PLAIN).unwrap_err()] {
        assert!(failure.to_string().contains("a container or of the service manager denies"), "{failure}");
    }
}

/// A broker whose policy permits limits of open files.
fn limits() -> SeccompNeeds {
    SeccompNeeds { limits: Resource::named("nofile").into_iter().collect(), ..PLAIN }
}

/// prlimit(2) with limits that change nothing.
fn prlimit(process: libc::pid_t, resource: libc::__rlimit_resource_t) -> std::io::Result<()> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the kernel reads and writes one limit at each pointer.
    let result = unsafe {
        libc::prlimit(process, resource, std::ptr::null(), &raw mut limit);
        libc::prlimit(process, resource, &raw const limit, std::ptr::null_mut())
    };
    if result == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
}

fn a_limit_that_the_policy_permits_can_be_set_for_another_process() {
    let parent = nix::unistd::getppid().as_raw();
    confine(limits());
    prlimit(parent, libc::RLIMIT_NOFILE).unwrap();
    assert!(nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_CPU).is_ok());
}

/// Declares tests that each make one call, which must not return.
macro_rules! fatal_calls {
    ($($name:ident: $needs:expr, $call:expr;)*) => {
        $(fn $name() {
            confine($needs);
            let _ = $call; // must not return
        })*
        child::tests! {
            End::Success => [
                a_runtime_with_sockets_timers_and_signals_works,
                listeners_of_every_kind_can_be_created,
                a_socket_file_can_be_created_and_removed_if_configured,
                calls_that_the_c_library_makes_itself_fail_without_a_signal,
                a_pipe_that_was_open_before_still_works,
                a_kernel_without_seccomp_is_reported,
                a_kernel_with_seccomp_that_a_filter_denies_is_a_failure,
                a_limit_that_the_policy_permits_can_be_set_for_another_process,
            ],
            End::Signal(libc::SIGABRT) => [an_abort_ends_with_sigabrt],
            End::Signal(libc::SIGSYS) => [$($name),*],
        }
    };
}

/// A system call by number; every argument is a number or a null pointer.
fn call(number: libc::c_long, arguments: [libc::c_long; 5]) -> libc::c_long {
    let [a, b, c, d, e] = arguments;
    // SAFETY: the only pointer that the tests pass is null, which the kernel checks.
    unsafe { libc::syscall(number, a, b, c, d, e) }
}

const SOCKET: libc::c_long = libc::SYS_socket;

fatal_calls! {
    running_a_program_kills_the_process: PLAIN, call(libc::SYS_execve, [0; 5]);
    running_a_program_by_descriptor_kills_the_process: FILES, call(libc::SYS_execveat, [0; 5]);
    forking_kills_the_process: PLAIN, call(libc::SYS_clone, [libc::SIGCHLD.into(), 0, 0, 0, 0]);
    starting_a_thread_kills_the_process: PLAIN, std::thread::spawn(|| ()).join();
    mounting_kills_the_process: PLAIN, call(libc::SYS_mount, [0; 5]);
    changing_the_root_kills_the_process: FILES, call(libc::SYS_chroot, [0; 5]);
    entering_a_namespace_kills_the_process: PLAIN, call(libc::SYS_setns, [0; 5]);
    tracing_kills_the_process: PLAIN, call(libc::SYS_ptrace, [libc::PTRACE_ATTACH.into(), 1, 0, 0, 0]);
    reading_the_memory_of_others_kills_the_process: PLAIN, call(libc::SYS_process_vm_readv, [1, 0, 0, 0, 0]);
    signalling_others_kills_the_process: PLAIN, call(libc::SYS_kill, [1, 0, 0, 0, 0]);
    signalling_a_thread_of_others_kills_the_process: PLAIN, call(libc::SYS_tgkill, [1, 1, 0, 0, 0]);
    loading_a_module_kills_the_process: PLAIN, call(libc::SYS_init_module, [0; 5]);
    loading_bpf_kills_the_process: PLAIN, call(libc::SYS_bpf, [0; 5]);
    changing_the_user_kills_the_process: PLAIN, call(libc::SYS_setresuid, [0; 5]);
    changing_the_capabilities_kills_the_process: PLAIN, call(libc::SYS_capset, [0; 5]);
    opening_with_openat2_kills_the_process: FILES, call(libc::SYS_openat2, [0; 5]);
    executable_memory_kills_the_process: PLAIN, call(libc::SYS_mmap, [0, 4096, libc::PROT_EXEC.into(), 0x22, -1]);
    making_memory_executable_kills_the_process: PLAIN, call(libc::SYS_mprotect, [0, 0, libc::PROT_EXEC.into(), 0, 0]);
    a_netlink_socket_kills_the_process: PLAIN, call(SOCKET, [libc::AF_NETLINK.into(), libc::SOCK_RAW.into(), 0, 0, 0]);
    a_packet_socket_kills_the_process: PLAIN, call(SOCKET, [libc::AF_PACKET.into(), libc::SOCK_RAW.into(), 0, 0, 0]);
    a_raw_socket_kills_the_process: PLAIN, call(SOCKET, [libc::AF_INET.into(), libc::SOCK_RAW.into(), 1, 0, 0]);
    a_multipath_socket_kills_the_process: PLAIN, call(SOCKET, [libc::AF_INET.into(), libc::SOCK_STREAM.into(), 262, 0, 0]);
    an_option_of_the_packet_filter_kills_the_process: PLAIN, call(libc::SYS_setsockopt, [0, libc::IPPROTO_IP.into(), 64, 0, 0]);
    a_fast_open_connect_kills_the_process: PLAIN, call(libc::SYS_sendto, [0, 0, 0, libc::MSG_FASTOPEN.into(), 0]);
    another_ioctl_kills_the_process: PLAIN, call(libc::SYS_ioctl, [0, libc::TIOCSTI.cast_signed(), 0, 0, 0]);
    raising_a_limit_kills_the_process: PLAIN, nix::sys::resource::setrlimit(nix::sys::resource::Resource::RLIMIT_CORE, 0, 0);
    a_limit_that_the_policy_does_not_permit_kills_the_process: limits(), prlimit(nix::unistd::getppid().as_raw(), libc::RLIMIT_CORE);
    a_limit_of_the_broker_itself_kills_the_process: limits(), prlimit(0, libc::RLIMIT_NOFILE);
    a_limit_of_the_broker_by_its_number_kills_the_process: limits(), prlimit(std::process::id().cast_signed(), libc::RLIMIT_NOFILE);
    changing_directory_kills_the_process_without_socket_files: PLAIN, call(libc::SYS_chdir, [0; 5]);
    removing_a_file_kills_the_process_without_socket_files: PLAIN, call(libc::SYS_unlinkat, [0; 5]);
    setting_a_prctl_kills_the_process: PLAIN, call(libc::SYS_prctl, [libc::PR_SET_DUMPABLE.into(), 1, 0, 0, 0]);
}
