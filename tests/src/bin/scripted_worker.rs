//! A worker that executes a test's commands. It sends its channel to the test's socket, /control.sock in its chroot, and
//! then replies to each line with one line.
//!
//! With the argument `descriptors` it only prints its descriptors.

use std::fmt::Write as _;
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};

use portreeve::blocking::Client;
use rustix::io::fcntl_getfd;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketType, sendmsg};

fn main() {
    if std::env::args().nth(1).as_deref() == Some("descriptors") {
        println!("{}", descriptors());
        return;
    }
    let at_start = descriptors();
    // Taken over as any worker does, and held until the end.
    let _listeners = portreeve::listeners_from_environment().unwrap();
    let mut channel = Some(portreeve::Channel::from_environment().unwrap());
    let mut client = None;
    let mut control = UnixStream::connect(portreeve_tests::scripted_worker::SOCKET).unwrap();
    send_channel(&control);
    let commands = BufReader::new(control.try_clone().unwrap());
    for command in commands.lines().map_while(Result::ok) {
        let reply = match command.strip_prefix("limit ") {
            Some(arguments) => {
                let open = |channel| Client::open(channel, "scripted").unwrap();
                client = client.or_else(|| channel.take().map(open));
                limit(client.as_ref().unwrap(), arguments)
            }
            None => execute(&command, &at_start),
        };
        writeln!(control, "{reply}").unwrap();
    }
}

/// Sets the soft and the hard limit of a resource, RESOURCE VALUE, by a request of this process. Returns what is in force.
fn limit(client: &Client, arguments: &str) -> String {
    let (resource, value) = arguments.split_once(' ').unwrap();
    let value = Some(value.parse().unwrap());
    match client.set_limit(resource, value, value) {
        Ok(limit) => format!("{} {}", limit.soft, limit.hard),
        Err(error) => error.to_string().replace('\n', " "),
    }
}

fn execute(command: &str, at_start: &str) -> String {
    match command {
        "descriptors" => at_start.to_owned(),
        "environment" => std::env::vars().map(|(name, value)| format!("{name}={value} ")).collect(),
        "descriptors of a child" => {
            // The child inherits these streams, because the chroot has no /dev/null.
            let output = Command::new("/scripted_worker")
                .arg("descriptors")
                .stdin(Stdio::inherit())
                .stderr(Stdio::inherit())
                .output()
                .unwrap();
            String::from_utf8_lossy(&output.stdout).trim_end().to_owned()
        }
        "attempts" => attempts(),
        "ignore SIGTERM" => {
            // SAFETY: ignoring a signal runs no code.
            unsafe { libc::signal(libc::SIGTERM, libc::SIG_IGN) };
            "done".to_owned()
        }
        "signal the launcher" => {
            // SAFETY: the calls use no memory; signal 0 only checks the permission.
            let result = unsafe { libc::kill(libc::getppid(), 0) };
            format!("{result} {:?}", io::Error::last_os_error().raw_os_error())
        }
        "stay if the launcher ends" => {
            // SAFETY: the call uses no memory.
            unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, 0) };
            "done".to_owned()
        }
        "daemonize" => daemonize().to_string(),
        "exit" => std::process::exit(0),
        other => format!("unknown command: {other:?}"),
    }
}

/// Starts a process of a session of its own, whose parent has ended, and returns its id. It holds every descriptor of the
/// worker.
fn daemonize() -> i32 {
    let (mut reader, mut writer) = io::pipe().unwrap();
    // SAFETY: this program has one thread, so its children can run any code.
    unsafe {
        let child = libc::fork();
        if child > 0 {
            libc::waitpid(child, std::ptr::null_mut(), 0);
            drop(writer);
            let mut pid = [0; 4];
            io::Read::read_exact(&mut reader, &mut pid).unwrap();
            return i32::from_ne_bytes(pid);
        }
        libc::setsid();
        if libc::fork() > 0 {
            libc::_exit(0);
        }
        writer.write_all(&libc::getpid().to_ne_bytes()).unwrap();
        loop {
            libc::pause();
        }
    }
}

fn open(number: i32) -> Option<BorrowedFd<'static>> {
    // SAFETY: the descriptor is only queried and sent, never closed; if the number is not open, the calls fail with EBADF.
    let descriptor = unsafe { BorrowedFd::borrow_raw(number) };
    fcntl_getfd(descriptor).is_ok().then_some(descriptor)
}

fn descriptors() -> String {
    let mut line = String::new();
    for (number, descriptor) in (0..1024).filter_map(|number| Some((number, open(number)?))) {
        let _ = match rustix::net::sockopt::socket_type(descriptor) {
            Ok(SocketType::SEQPACKET) => write!(line, "{number}:channel "),
            Ok(_) => write!(line, "{number}:socket "),
            Err(_) => write!(line, "{number} "),
        };
    }
    line.trim_end().to_owned()
}

fn send_channel(control: &UnixStream) {
    let is_channel =
        |one: &BorrowedFd<'_>| rustix::net::sockopt::socket_type(one) == Ok(SocketType::SEQPACKET);
    let channel = (3..1024).filter_map(open).find(is_channel).unwrap();
    let rights = [channel];
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    assert!(ancillary.push(SendAncillaryMessage::ScmRights(&rights)));
    sendmsg(control, &[io::IoSlice::new(b"c")], &mut ancillary, SendFlags::NOSIGNAL).unwrap();
}

/// Tries everything that would regain privileges. Returns the errno of each attempt, or `done` if it succeeded.
fn attempts() -> String {
    // SAFETY: the system calls use no memory except the paths, which are static and end in NUL. Each must fail; the test
    // reports one that does not.
    let results = unsafe {
        [
            ("setuid", libc::setuid(0)),
            ("setresuid", libc::setresuid(0, 0, 0)),
            ("setgid", libc::setgid(0)),
            ("setgroups", libc::setgroups(0, std::ptr::null())),
            ("chroot", libc::chroot(c"/".as_ptr())),
            ("unshare-mount", libc::unshare(libc::CLONE_NEWNS)),
            ("mknod", libc::mknod(c"/node".as_ptr(), libc::S_IFBLK | 0o600, libc::makedev(254, 0))),
            ("sethostname", libc::sethostname(c"x".as_ptr(), 1)),
            ("ambient", libc::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_RAISE, 10, 0, 0)),
            ("keepcaps", libc::prctl(libc::PR_SET_KEEPCAPS, 1, 0, 0, 0)),
            ("securebits", libc::prctl(libc::PR_SET_SECUREBITS, 0, 0, 0, 0)),
            ("no-new-privs-off", libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 0, 0, 0, 0)),
        ]
        .map(|(name, result)| (name, result, io::Error::last_os_error()))
    };
    let mut line: String = results
        .iter()
        .map(|(name, result, error)| match (result, error.raw_os_error()) {
            (0, _) => format!("{name}=done "),
            (_, Some(libc::EPERM)) => format!("{name}=EPERM "),
            (_, other) => format!("{name}={other:?} "),
        })
        .collect();
    let bind = std::net::TcpListener::bind(("127.0.0.1", 25));
    let outcome = bind.map_or_else(|error| format!("{:?}", error.kind()), |_| "done".to_owned());
    let _ = write!(line, "bind-25={outcome}");
    line
}
