//! The Python package: its own tests, its examples, and its blocking and asyncio clients with the real broker.

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use portreeve_tests::broker::SOCKET;
use portreeve_tests::{Broker, Host, isolated, sample};

/// Debian's interpreter, which has Debian's modules; another one in the PATH may not have them.
const PYTHON: &str = "/usr/bin/python3";
const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../worker/python");

macro_rules! files {
    ($($name:literal),* $(,)?) => {
        &[$(($name, include_str!(concat!("../../../worker/python/", $name)))),*]
    };
}

/// The package and its examples. A test's host does not have the source tree.
const FILES: &[(&str, &str)] = files![
    "examples/greeter.py",
    "examples/mail.py",
    "portreeve/__init__.py",
    "portreeve/_aio.py",
    "portreeve/_blocking.py",
    "portreeve/_channel.py",
    "portreeve/_connection.py",
    "portreeve/_lease.py",
    "portreeve/_listener.py",
    "portreeve/_wire.py",
    "portreeve/endpoint.py",
    "portreeve/errors.py",
    "portreeve/messages.py",
    "portreeve/py.typed",
];

/// Puts the package and its examples on the host.
fn install(host: &Host) {
    for (name, text) in FILES {
        let path = host.path("python").join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
}

/// An interpreter of user nobody, without a privilege, that has the package. A warning, such as that of a socket that was not
/// closed, is an error.
fn python(host: &Host) -> Command {
    let mut command = Command::new("setpriv");
    command
        .args(["--reuid", "nobody", "--regid", "nogroup", "--clear-groups", "--inh-caps=-all", "--bounding-set=-all"])
        .args(["--no-new-privs", PYTHON, "-B", "-X", "dev", "-W", "error"])
        .env("PYTHONPATH", host.path("python"))
        .env_remove("PORTREEVE_CHANNEL");
    command
}

/// A running Python program, and what it writes.
struct Program {
    child: Child,
    input: ChildStdin,
    lines: BufReader<ChildStdout>,
}

impl Program {
    fn start(mut command: Command) -> Self {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let (input, lines) = (child.stdin.take().unwrap(), BufReader::new(child.stdout.take().unwrap()));
        Self { child, input, lines }
    }

    /// Runs a script on a host that has the package. The script is a Python module with the path of the control socket in `path`.
    fn script(host: &Host, script: &str) -> Self {
        let mut command = python(host);
        command.args(["-c", &format!("path = {SOCKET:?}\n{script}")]);
        Self::start(command)
    }

    /// Its next line; on the end of the program also what it wrote to standard error.
    #[track_caller]
    fn line(&mut self) -> String {
        let mut line = String::new();
        self.lines.read_line(&mut line).unwrap();
        if line.is_empty() {
            let mut errors = String::new();
            self.child.stderr.take().unwrap().read_to_string(&mut errors).unwrap();
            panic!("the program has ended: {errors}");
        }
        line.trim_end().to_owned()
    }

    /// Lets a program continue that reads a line.
    fn proceed(&mut self) {
        writeln!(self.input).unwrap();
    }

    /// Waits for the end, and expects success without a word on standard error.
    #[track_caller]
    fn end(self) {
        drop(self.input);
        let output = self.child.wait_with_output().unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && errors.is_empty(), "{}: {errors}", output.status);
    }
}

#[track_caller]
fn greeting(port: u16) -> String {
    let mut text = String::new();
    TcpStream::connect(("127.0.0.1", port)).unwrap().read_to_string(&mut text).unwrap();
    text
}

#[test]
fn the_packages_own_tests_pass() {
    let mut command = Command::new(PYTHON);
    command.current_dir(FOLDER).args(["-B", "-X", "dev", "-W", "error", "-m", "unittest", "-q"]);
    let output = command.output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && errors.contains("\nOK\n"), "{}: {errors}", output.status);
}

#[test]
fn every_file_of_the_package_is_tested() {
    let mut expected = BTreeSet::new();
    for folder in ["examples", "portreeve"] {
        for entry in fs::read_dir(Path::new(FOLDER).join(folder)).unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            if name != "__pycache__" {
                expected.insert(format!("{folder}/{name}"));
            }
        }
    }
    let files: BTreeSet<String> = FILES.iter().map(|(name, _)| (*name).to_owned()).collect();
    assert_eq!(files, expected);
}

#[test]
fn a_program_without_privileges_greets_on_port_25() {
    isolated(|host| {
        install(host);
        let broker = Broker::start(host, &sample::control(r#"( "*:25" )"#));
        let before = broker.descriptors();
        let mut command = python(host);
        command.arg(host.path("python/examples/greeter.py")).args(["*:25", SOCKET]);
        let mut program = Program::start(command);
        assert_eq!(program.line(), "listening on *:25");
        assert_eq!(greeting(25), "220 ready\r\n");
        program.end();
        // The end of the block has stopped the listener.
        TcpStream::connect("127.0.0.1:25").unwrap_err();
        broker.await_no_leak(&before);
    });
}
