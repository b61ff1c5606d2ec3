//! `portreeved check` reports every error in one run: as text, in colour, as JSON, and by its exit code.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)] // test helpers may panic

mod findings;
mod forms;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Command, Output};

use serde_json::Value;

/// A directory that only this user can write, with a configuration in it.
struct Folder(tempfile::TempDir);

impl Folder {
    fn new(text: &str) -> Self {
        let folder = Folder(tempfile::tempdir().unwrap());
        folder.file("main.conf", text, 0o600);
        folder
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn file(&self, name: &str, text: &str, mode: u32) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
    }

    fn check(&self, options: &[&str]) -> Output {
        let mut command = command(options);
        command.arg(self.path("main.conf")).output().unwrap()
    }

    /// The document that `--json` always prints.
    fn json(&self) -> Value {
        let output = self.check(&["--json"]);
        assert!(output.stderr.is_empty(), "{}", text(&output.stderr));
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// Line, severity and message of every finding, without the directory's name.
    fn findings(&self) -> Vec<String> {
        let document = self.json();
        let folder = format!("{}/", self.0.path().display());
        let line = |finding: &Value| {
            let word = |name: &str| finding[name].as_str().unwrap().to_owned();
            format!("{} {}: {}", finding["line"], word("severity"), word("message")).replace(&folder, "")
        };
        document["diagnostics"].as_array().unwrap().iter().map(line).collect()
    }

    /// Names and contents of all files in the directory.
    fn contents(&self) -> Vec<(PathBuf, Option<Vec<u8>>)> {
        let mut all = Vec::new();
        let mut queue = vec![self.0.path().to_owned()];
        while let Some(path) = queue.pop() {
            if path.is_dir() {
                queue.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
            }
            all.push((path.clone(), fs::read(&path).ok()));
        }
        all.sort();
        all
    }
}

fn command(options: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_portreeved"));
    command.arg("check").args(options).env_remove("NO_COLOR").env("TERM", "xterm");
    command
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Valid on every host: it names no account that must exist.
const VALID: &str = "security { user = 65534 group = 65534 }\n";
