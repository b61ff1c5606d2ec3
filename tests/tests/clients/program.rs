//! A client program under test.

use std::io::{BufRead as _, BufReader, Read as _};
use std::net::TcpStream;
use std::process::{Child, ChildStdout, Command, Stdio};

/// A running program, and what it writes.
pub struct Program {
    child: Child,
    lines: BufReader<ChildStdout>,
}

impl Program {
    /// Starts it.
    pub fn start(mut command: Command) -> Self {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap());
        Self { child, lines }
    }

    /// Its next line; on the end of the program also what it wrote to standard error.
    #[track_caller]
    pub fn line(&mut self) -> String {
        let mut line = String::new();
        self.lines.read_line(&mut line).unwrap();
        if line.is_empty() {
            let mut errors = String::new();
            self.child.stderr.take().unwrap().read_to_string(&mut errors).unwrap();
            panic!("the program has ended: {errors}");
        }
        line.trim_end().to_owned()
    }

    /// Kills it.
    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Waits for the end, and expects success.
    #[track_caller]
    pub fn wait(self) {
        let output = self.child.wait_with_output().unwrap();
        assert!(output.status.success(), "{output:?}");
    }

    /// Waits for the end, and expects success without a word on standard error.
    #[track_caller]
    pub fn end(self) {
        let output = self.child.wait_with_output().unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && errors.is_empty(), "{}: {errors}", output.status);
    }
}

/// What a server on this port greets with.
#[track_caller]
pub fn greeting(port: u16) -> String {
    let mut text = String::new();
    TcpStream::connect(("127.0.0.1", port)).unwrap().read_to_string(&mut text).unwrap();
    text
}

/// The code blocks of a page in this language, in order.
pub fn examples(page: &str, language: &str) -> Vec<String> {
    let blocks = page.split("```").skip(1).step_by(2);
    blocks.filter_map(|block| block.strip_prefix(&format!("{language}\n"))).map(str::to_owned).collect()
}

/// A configuration whose control socket is in its usual place, where a program without a path looks for it.
pub fn with_default_socket(configuration: &str) -> String {
    std::fs::create_dir("/run/portreeve").unwrap();
    configuration.replace(portreeve_tests::broker::SOCKET, portreeve::DEFAULT_SOCKET)
}
