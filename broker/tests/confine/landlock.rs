//! What Landlock denies and what it permits.

use std::fs::{self, File};
use std::io::ErrorKind::PermissionDenied;
use std::net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr as UnixAddress, UnixListener, UnixStream};

use nix::sys::signal::{Signal, kill};
use portreeve_broker::confine::landlock::{Bind, Landlock, Listed, Permitted, restrict};

use crate::child::{self, End};

/// A free TCP port.
fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// Restricts this process. Fails if this kernel's Landlock is incomplete.
fn enforce(ports: &[std::ops::RangeInclusive<u16>], directories: &[File]) {
    let status =
        restrict(Permitted { tcp_ports: ports, socket_directories: directories }, Listed::Unknown).unwrap();
    assert!(matches!(status, Landlock::Enforced { abi: 6.., .. }), "this test needs Linux 6.12: {status:?}");
}

fn no_file_can_be_opened_created_or_removed() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("file");
    fs::write(&file, "").unwrap();
    enforce(&[], &[]);
    assert_eq!(fs::read("/etc/passwd").unwrap_err().kind(), PermissionDenied);
    assert_eq!(fs::read_dir("/").unwrap_err().kind(), PermissionDenied);
    assert_eq!(fs::write(&file, "x").unwrap_err().kind(), PermissionDenied);
    assert_eq!(fs::remove_file(&file).unwrap_err().kind(), PermissionDenied);
    assert_eq!(fs::create_dir(directory.path().join("new")).unwrap_err().kind(), PermissionDenied);
    assert_eq!(UnixListener::bind(directory.path().join("socket")).unwrap_err().kind(), PermissionDenied);
    assert_eq!(std::process::Command::new("/bin/true").spawn().unwrap_err().kind(), PermissionDenied);
    std::mem::forget(directory);
}

fn only_sockets_can_be_created_and_removed_in_socket_directories() {
    let directory = tempfile::tempdir().unwrap();
    enforce(&[], &[File::open(directory.path()).unwrap()]);
    let socket = directory.path().join("socket");
    drop(UnixListener::bind(&socket).unwrap());
    fs::remove_file(&socket).unwrap();
    assert_eq!(fs::write(directory.path().join("file"), "").unwrap_err().kind(), PermissionDenied);
    assert_eq!(fs::create_dir(directory.path().join("new")).unwrap_err().kind(), PermissionDenied);
    std::mem::forget(directory);
}

fn tcp_binds_only_permitted_ports_and_connects_nowhere() {
    let (permitted, other) = (free_port(), free_port());
    assert_ne!(permitted, other);
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let status = restrict::<File>(
        Permitted { tcp_ports: &[permitted..=permitted], socket_directories: &[] },
        Listed::Unknown,
    )
    .unwrap();
    assert!(matches!(status, Landlock::Enforced { bind: Bind::Ports(1), .. }), "{status:?}");
    for host in ["127.0.0.1", "::1", "0.0.0.0", "::"] {
        let address = |port| SocketAddr::new(host.parse().unwrap(), port);
        assert_eq!(TcpListener::bind(address(other)).unwrap_err().kind(), PermissionDenied, "{host}");
        assert_eq!(TcpListener::bind(address(0)).unwrap_err().kind(), PermissionDenied, "{host}");
        TcpListener::bind(address(permitted)).unwrap();
    }
    assert_eq!(TcpStream::connect(server.local_addr().unwrap()).unwrap_err().kind(), PermissionDenied);
    // This version of Landlock does not limit UDP; the policy does.
    UdpSocket::bind((Ipv6Addr::LOCALHOST, 0)).unwrap();
}

fn a_policy_of_every_port_binds_any_port_and_reports_it() {
    let status =
        restrict::<File>(Permitted { tcp_ports: &[1..=65535], socket_directories: &[] }, Listed::Unknown)
            .unwrap();
    assert!(matches!(status, Landlock::Enforced { bind: Bind::EveryPort, .. }), "{status:?}");
    let bound = TcpListener::bind("127.0.0.1:0").unwrap();
    assert_eq!(TcpStream::connect(bound.local_addr().unwrap()).unwrap_err().kind(), PermissionDenied);
}

fn a_rule_for_each_port_can_be_installed() {
    let status =
        restrict::<File>(Permitted { tcp_ports: &[2..=65535], socket_directories: &[] }, Listed::Unknown)
            .unwrap();
    assert!(matches!(status, Landlock::Enforced { bind: Bind::Ports(65534), .. }), "{status:?}");
    assert_eq!(TcpListener::bind("127.0.0.1:1").unwrap_err().kind(), PermissionDenied);
    TcpListener::bind(("127.0.0.1", free_port_from_range())).unwrap();
}

/// Like [`free_port`], after binding port 0 is denied.
fn free_port_from_range() -> u16 {
    (20_000..60_000).find(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok()).unwrap()
}

fn signals_and_abstract_sockets_reach_no_other_process() {
    let name = format!("portreeve-test-{}", std::process::id());
    let address = UnixAddress::from_abstract_name(&name).unwrap();
    let _outside = UnixListener::bind_addr(&address).unwrap();
    enforce(&[], &[]);
    assert_eq!(UnixStream::connect_addr(&address).unwrap_err().kind(), PermissionDenied);
    assert_eq!(kill(nix::unistd::getppid(), None), Err(nix::errno::Errno::EPERM));
    kill(nix::unistd::getpid(), Signal::SIGCONT).unwrap();
}

fn a_kernel_without_landlock_is_reported() {
    child::make_unavailable(libc::SYS_landlock_create_ruleset);
    let status =
        restrict::<File>(Permitted { tcp_ports: &[25..=25], socket_directories: &[] }, Listed::Unknown)
            .unwrap();
    let Landlock::Absent(why) = status else { panic!("{status:?}") };
    assert!(why.starts_with("the kernel does not support it, or the system call filter"), "{why}");
    fs::read("/etc/passwd").unwrap();
}

child::tests! {
    End::Success => [
        no_file_can_be_opened_created_or_removed,
        only_sockets_can_be_created_and_removed_in_socket_directories,
        tcp_binds_only_permitted_ports_and_connects_nowhere,
        a_policy_of_every_port_binds_any_port_and_reports_it,
        a_rule_for_each_port_can_be_installed,
        signals_and_abstract_sockets_reach_no_other_process,
        a_kernel_without_landlock_is_reported,
    ],
}
