//! A compromised broker: after it confined itself, it runs each attack with every lock, without each lock in turn, and
//! with each lock alone. The results are the table in SECURITY.md.
//!
//! `UPDATE_SECURITY=1` rewrites the table.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::net::TcpListener;
use std::os::fd::AsRawFd as _;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use portreeve_tests::kernel::landlock_abi;
use portreeve_tests::{Host, binaries, broker, isolated, namespaces};

const LOCKS: [&str; 7] = ["root", "bounding", "securebits", "sets", "no_new_privs", "landlock", "seccomp"];
const BEGIN: &str = "<!-- attacks: begin -->\n";
const END: &str = "<!-- attacks: end -->";

/// The result of one attack.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Outcome {
    /// The system call filter killed the broker.
    Killed,
    /// The kernel refused the attack with this error, or the attack gained nothing.
    Refused(String),
    /// The attack succeeded.
    Done,
}

impl Outcome {
    fn cell(&self) -> &str {
        match self {
            Outcome::Killed => "SIGSYS",
            Outcome::Refused(error) => error,
            Outcome::Done => "**done**",
        }
    }
}

/// The host as the attacks expect it.
struct Field<'a> {
    host: &'a Host,
    config: PathBuf,
    _listeners: (TcpListener, UnixListener, UnixListener),
}

impl<'a> Field<'a> {
    fn new(host: &'a Host) -> Self {
        for directory in ["sockets", "cron"] {
            fs::create_dir(host.path(directory)).unwrap();
        }
        let text = r#"
            security { user = nobody group = nogroup capabilities = "cap_net_bind_service+ep" }
            broker {
                socket = /run/host/sockets/broker.sock
                permit "mail" { listen = ( "127.0.0.1:25" ) }
            }"#;
        let name = SocketAddr::from_abstract_name("portreeve-victim").unwrap();
        let listeners = (
            TcpListener::bind("127.0.0.1:2500").unwrap(),
            UnixListener::bind_addr(&name).unwrap(),
            UnixListener::bind(host.path("other.sock")).unwrap(),
        );
        Self { host, config: broker::config(host, text), _listeners: listeners }
    }

    /// Starts a broker without these locks, which runs one attack.
    fn attack(&self, name: &str, omitted: &[&str]) -> Outcome {
        // Undo the changes of an earlier attack that succeeded.
        for leftover in ["file", "device", "link", "broker.sock"] {
            let _ = fs::remove_file(self.host.path("sockets").join(leftover));
        }
        let _ = fs::remove_file(self.host.path("cron/job"));
        fs::write(self.host.path("sockets/other.sock"), "").unwrap();
        if !self.host.path("other.sock").exists() {
            fs::write(self.host.path("other.sock"), "").unwrap();
        }
        let mut command = Command::new(self.host.binary(binaries::HOSTILE_BROKER));
        command.arg("--config").arg(&self.config).args(["--attack", name]);
        omitted.iter().for_each(|lock| {
            command.args(["--omit", lock]);
        });
        let program = File::open(self.host.binary(binaries::HOSTILE_WORKER)).unwrap();
        let output = command.stdin(Stdio::from(program)).output().unwrap();
        let printed = String::from_utf8_lossy(&output.stdout);
        let errors = String::from_utf8_lossy(&output.stderr);
        let what = format!("{name:?} without {omitted:?}: {} {printed} {errors}", output.status);
        let mut lines = printed.lines();
        assert_eq!(lines.next(), Some("attacking"), "{what}");
        match (lines.next(), output.status.signal()) {
            (None, Some(libc::SIGSYS)) => Outcome::Killed,
            // The attack executed another program, which prints nothing.
            (None, None) if output.status.success() => Outcome::Done,
            (Some(line), None) => match line.strip_prefix("held ") {
                Some(how) => Outcome::Refused(how.to_owned()),
                None => {
                    assert!(line.starts_with("done"), "{what}");
                    Outcome::Done
                }
            },
            _ => panic!("{what}"),
        }
    }

    fn attacks(&self) -> Vec<String> {
        let mut command = Command::new(self.host.binary(binaries::HOSTILE_BROKER));
        let list = namespaces::run(command.arg("--list-attacks"), "the tests");
        list.lines().map(str::to_owned).collect()
    }
}

/// All results of one attack.
struct Row {
    name: String,
    all: Outcome,
    without: BTreeMap<&'static str, Outcome>,
    alone: BTreeMap<&'static str, Outcome>,
    unlocked: Outcome,
}

fn row(field: &Field<'_>, name: &str) -> Row {
    let but = |kept: &str| LOCKS.into_iter().filter(|lock| *lock != kept).collect::<Vec<_>>();
    Row {
        all: field.attack(name, &[]),
        without: LOCKS.into_iter().map(|lock| (lock, field.attack(name, &[lock]))).collect(),
        alone: LOCKS.into_iter().map(|lock| (lock, field.attack(name, &but(lock)))).collect(),
        unlocked: field.attack(name, &LOCKS),
        name: name.to_owned(),
    }
}

impl Row {
    fn markdown(&self) -> String {
        let without: String = LOCKS.iter().map(|lock| format!(" {} |", self.without[lock].cell())).collect();
        let alone: Vec<&str> = LOCKS.into_iter().filter(|lock| self.alone[lock] != Outcome::Done).collect();
        let alone = match (&self.unlocked, alone.as_slice()) {
            (Outcome::Done, []) => "none".to_owned(),
            (Outcome::Done, alone) => alone.join(", "),
            (_, _) => "the kernel, without a lock".to_owned(),
        };
        format!("| {} | {} |{without} {alone} |\n", self.name, self.all.cell())
    }
}

fn table(rows: &[Row]) -> String {
    let locks = LOCKS.join(" | ");
    let rule = "|---".repeat(LOCKS.len() + 3);
    let rows: String = rows.iter().map(Row::markdown).collect();
    format!("| attack | all locks | {locks} | sufficient alone |\n{rule}|\n{rows}")
}

fn document() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../broker/SECURITY.md")
}

/// The rows of a table: the attack, and which cells say that it succeeded.
fn done(table: &str) -> BTreeMap<&str, Vec<bool>> {
    let rows = table.lines().filter_map(|line| line.strip_prefix("| ")?.split_once(" | "));
    rows.map(|(name, cells)| (name, cells.split(" | ").map(|cell| cell.contains("done")).collect())).collect()
}

/// Whether the file system of this file supports opening by the handle of the attack. Without that, as on 9p, the
/// attack fails before Landlock is consulted.
fn has_handles(file: &File) -> bool {
    // struct file_handle: 8 bytes of handle, type 1, for the inode 2.
    let handle = [8_u32, 1, 2, 0];
    // SAFETY: the handle has the length that it declares, and nothing else owns the opened descriptor.
    unsafe {
        let opened = libc::syscall(
            libc::SYS_open_by_handle_at,
            file.as_raw_fd(),
            handle.as_ptr(),
            libc::O_RDONLY | libc::O_CLOEXEC,
        );
        i32::try_from(opened).is_ok_and(|fd| libc::close(fd) == 0)
    }
}

/// The attacks that only later versions of Landlock prevent, and the first such version.
const LATER: [(&str, u32); 4] = [
    ("connect by TCP", 4),
    ("bind a TCP port that the policy does not permit", 4),
    ("signal another process", 6),
    ("connect to an abstract Unix socket", 6),
];

/// Whether a row of the table is about an attack that this kernel's Landlock does not restrict.
fn is_beyond_landlock(row: &str) -> bool {
    LATER.iter().any(|(name, since)| *since > landlock_abi() && row.starts_with(&format!("| {name} |")))
}

#[test]
fn each_attack_of_a_compromised_broker_has_the_documented_result() {
    // Open the document before the test host hides its directory.
    let update = std::env::var_os("UPDATE_SECURITY").is_some();
    let mut file = File::options().read(true).write(update).open(document()).unwrap();
    isolated(|host| {
        let field = Field::new(host);
        let rows: Vec<Row> = field.attacks().iter().map(|name| row(&field, name)).collect();
        let found = table(&rows);
        let mut text = String::new();
        file.read_to_string(&mut text).unwrap();
        let (before, rest) = text.split_once(BEGIN).unwrap();
        let (written, after) = rest.split_once(END).unwrap();
        if update {
            let text = format!("{before}{BEGIN}{found}{END}{after}");
            file.set_len(0).unwrap();
            file.seek(SeekFrom::Start(0)).unwrap();
            file.write_all(text.as_bytes()).unwrap();
        } else if is_root_of_the_machine() {
            let has_handles = has_handles(&File::open(host.binary(binaries::HOSTILE_WORKER)).unwrap());
            // Kernels differ in the calls that they have.
            let comparable = |table: &str| -> Vec<String> {
                table
                    .lines()
                    .filter(|row| !row.starts_with("| load a kernel module") && !is_beyond_landlock(row))
                    .filter(|row| has_handles || !row.starts_with("| open a file by its handle"))
                    .map(str::to_owned)
                    .collect()
            };
            for row in rows.iter().filter(|row| is_beyond_landlock(&row.markdown())) {
                assert_eq!(row.all, row.without["landlock"], "{}", row.name);
                assert_eq!(row.alone["landlock"], Outcome::Done, "{}", row.name);
                let line =
                    written.lines().find(|line| line.starts_with(&format!("| {} |", row.name))).unwrap();
                assert_eq!(line.split(" | ").nth(7), Some(row.all.cell()), "{line}");
            }
            let why =
                "the table in SECURITY.md differs from the results. Set UPDATE_SECURITY=1 to rewrite it.";
            assert_eq!(comparable(&found), comparable(written), "{why}");
        } else {
            // In a user namespace the kernel refuses more. No attack may succeed that fails according to the document.
            let written = done(written);
            for (name, found) in done(&found) {
                let documented = &written[name];
                assert!(
                    found.iter().zip(documented).all(|(found, documented)| *documented || !found),
                    "{name}"
                );
            }
        }
    });
}

fn is_root_of_the_machine() -> bool {
    fs::read_to_string("/proc/self/uid_map").unwrap().split_whitespace().nth(2) == Some("4294967295")
}

#[test]
fn the_released_broker_contains_no_test_code() {
    isolated(|host| {
        let text = fs::read(host.binary(binaries::BROKER)).unwrap();
        let hostile = fs::read(host.binary(binaries::HOSTILE_BROKER)).unwrap();
        let has =
            |program: &[u8], word: &str| program.windows(word.len()).any(|window| window == word.as_bytes());
        for word in
            ["list-attacks", "it was made to fail", "omitted by a test", "run code to regain capabilities"]
        {
            assert!(has(&hostile, word), "{word}");
            assert!(!has(&text, word) || word == "omitted by a test", "{word}");
        }
        for option in ["--attack=fork", "--omit=seccomp", "--fail=root", "--list-attacks"] {
            let output = Command::new(host.binary(binaries::BROKER)).arg(option).output().unwrap();
            assert_eq!(output.status.code(), Some(64), "{option}");
        }
    });
}
