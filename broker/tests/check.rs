//! `portreeved check`: every mistake of one run, as text, in colour, as JSON, and by its exit code.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)] // a helper of a test may fail it

use std::fs;
use std::io::Read as _;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::Value;

/// A folder that only this user can write, with a configuration in it.
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

    /// The one document of `--json`, which is there whatever is wrong.
    fn json(&self) -> Value {
        let output = self.check(&["--json"]);
        assert!(output.stderr.is_empty(), "{}", text(&output.stderr));
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// Severity and message of every finding, without the folder's name.
    fn found(&self) -> Vec<String> {
        let document = self.json();
        let folder = format!("{}/", self.0.path().display());
        let line = |found: &Value| {
            let word = |name: &str| found[name].as_str().unwrap().to_owned();
            format!("{} {}: {}", found["line"], word("severity"), word("message")).replace(&folder, "")
        };
        document["diagnostics"].as_array().unwrap().iter().map(line).collect()
    }

    /// Names and contents of everything in it.
    fn contents(&self) -> Vec<(PathBuf, Option<Vec<u8>>)> {
        let mut all = Vec::new();
        let mut waiting = vec![self.0.path().to_owned()];
        while let Some(path) = waiting.pop() {
            if path.is_dir() {
                waiting.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
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

/// What is the same on every host: no account is looked up by a name that might be there.
const SOUND: &str = "security { user = 65534 group = 65534 }\n";

#[test]
fn the_exit_code_tells_good_from_wrong_from_unread() {
    let good = Folder::new(SOUND);
    let output = good.check(&[]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    assert!(output.stderr.is_empty() && text(&output.stdout).ends_with("main.conf: good\n"));
    assert_eq!(Folder::new("security { usr = 1 }").check(&[]).status.code(), Some(78));
    assert_eq!(Folder::new("security {").check(&["--syntax"]).status.code(), Some(78));
    for options in [&[][..], &["--json"], &["--syntax"], &["--syntax", "--json"]] {
        for unread in ["none.conf", "folder"] {
            fs::create_dir_all(good.path("folder")).unwrap();
            fs::set_permissions(good.path("folder"), PermissionsExt::from_mode(0o755)).unwrap();
            let output = command(options).arg(good.path(unread)).output().unwrap();
            assert_eq!(output.status.code(), Some(66), "{options:?} {unread}: {}", text(&output.stderr));
        }
    }
    for wrong in [&["--as", "root", "x"][..], &["--config", "a", "x"], &[], &["a", "b"], &["--nonsense", "a"]]
    {
        assert_eq!(command(wrong).output().unwrap().status.code(), Some(64), "{wrong:?}");
    }
}

#[test]
fn one_run_tells_every_mistake_of_the_file_and_of_what_it_means_here() {
    let folder = Folder::new("");
    let path = |name: &str| folder.path(name).display().to_string();
    folder.file("script", "#!/bin/sh\n", 0o755);
    let config = format!(
        "security {{
  user = no-such-user
  group = no-such-group
  supplemental_groups = ( 4300 no-such-third )
  chroot = {}
  capabilities = \"cap_net_bind_servce+ep\"
  privileges = \"basic,!net_privadr\"
  chrot = /
}}
worker {{
  command = ( {} )
  restart = perhaps
}}
broker {{
  socket = {}
  socket_group = no-such-fourth
  peer no-such-peer {{ allow = status }}
  peer @no-such-fifth {{ allow = status }}
}}
",
        path("nowhere"),
        path("script"),
        path("run/broker.sock")
    );
    folder.file("main.conf", &config, 0o600);
    assert_eq!(
        folder.found(),
        [
            "2 error: there is no user \"no-such-user\" on this system",
            "3 error: there is no group \"no-such-group\" on this system",
            "4 error: there is no group \"no-such-third\" on this system",
            "5 error: \"nowhere\" cannot be opened: No such file or directory (os error 2)",
            "6 error: no capability is named \"cap_net_bind_servce\"",
            "7 error: \"net_privadr\" is not a privilege",
            "8 error: the scope security has no option \"chrot\"",
            "11 error: \"script\" is a script, and a script cannot be started by descriptor",
            "12 error: \"perhaps\" is no value for restart",
            "15 warning: the directory \"run\" of this Unix socket does not exist now",
            "16 error: there is no group \"no-such-fourth\" on this system",
            "17 error: there is no user \"no-such-peer\" on this host",
            "18 error: there is no group \"no-such-fifth\" on this host",
        ]
    );
    let shown = text(&folder.check(&[]).stderr);
    assert!(shown.contains("  capabilities = \"cap_net_bind_servce+ep\"\n"), "{shown}");
    assert!(shown.contains("\n  |                   ^^^^^^^^^^^^^^^^^^^\n"), "{shown}");
    assert!(shown.contains("help: write cap_net_bind_service\n"), "{shown}");
}

#[test]
fn what_a_mistake_may_have_caused_is_not_told_as_another() {
    // No user, no capabilities and no chroot are what is left when their options are misspelt.
    let text = "security { usr = 65534 grup = 65534 capabilites = \"cap_net_bind_service+ep\" }
        ESMTP_Listener { Listen \":25\" {} }
        broker { permit p { listen = ( :26 ) } }\n";
    let folder = Folder::new(text);
    let found = folder.found();
    assert_eq!(found.len(), 3, "{found:?}");
    assert!(found.iter().all(|line| line.contains("has no option")), "{found:?}");
}

#[test]
fn what_the_capabilities_cannot_serve_is_an_error_for_a_permit_and_a_warning_for_a_static_listener() {
    let text = "ESMTP_Listener { Listen \":25\" {} }\nbroker { permit p { listen = ( :26 ) limit = ( \"nofile=9\" ) } }\n";
    let folder = Folder::new(&format!("{SOUND}{text}"));
    assert_eq!(
        folder.found(),
        [
            "2 warning: port 25 is bound at start and cannot be started again: the broker does not keep \
             cap_net_bind_service",
            "3 error: port 26 cannot be bound: the broker does not keep cap_net_bind_service",
            "3 error: the limit nofile=9 cannot be given: the broker does not keep cap_sys_resource",
        ]
    );
}

#[test]
fn capabilities_that_no_kernel_gives_are_refused() {
    for (capabilities, message) in [
        ("63+ep", "1 error: this kernel has no capability 63"),
        ("64+ep", "1 error: \"64\" is more than 63, the highest number a capability can have"),
        ("cap_chown=e", "1 error: cap_chown would be effective and not permitted, which the kernel refuses"),
        ("cap_chown+", "1 error: no flag follows '+'"),
    ] {
        let folder =
            Folder::new(&format!("security {{ user = 1 group = 1 capabilities = \"{capabilities}\" }}"));
        assert_eq!(folder.found(), [message]);
    }
}

#[test]
fn privileges_of_another_system_are_told_with_the_capabilities_that_come_nearest() {
    let scope =
        |more: &str| format!("security {{ user = 1 group = 1 privileges = \"basic net_privaddr\" {more} }}");
    for (more, help) in [
        ("", "capabilities has none of them"),
        (
            "capabilities = \"cap_net_bind_service+ep\"",
            "capabilities has what comes nearest: cap_net_bind_service",
        ),
    ] {
        let folder = Folder::new(&scope(more));
        assert_eq!(folder.found(), ["1 note: Linux has no such privileges: they are validated and not used"]);
        let output = folder.check(&[]);
        assert!(output.status.success());
        assert!(text(&output.stderr).contains(help), "{}", text(&output.stderr));
    }
}

#[test]
fn the_syntax_alone_may_be_anyones_file_with_any_scope() {
    let folder = Folder::new("Domain \"x\" { a = b }\nsecurity { nonsense = 1 }\ninclude missing.conf\n");
    fs::set_permissions(folder.path("main.conf"), PermissionsExt::from_mode(0o666)).unwrap();
    let output = folder.check(&["--syntax"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(text(&output.stdout).ends_with(": well formed\n"));
    let refused = folder.check(&[]);
    assert_eq!(refused.status.code(), Some(78));
    assert!(text(&refused.stderr).contains("chmod go-w"));
}

#[test]
fn the_document_names_the_file_the_findings_and_what_is_skipped() {
    let folder = Folder::new(&format!("{SOUND}Domain \"x\" {{ }}\nsecurity {{ chrot = \"a\u{9b}b\" }}\n"));
    let document = folder.json();
    assert_eq!(document["file"].as_str(), folder.path("main.conf").to_str());
    assert_eq!(document["ok"], false);
    assert_eq!(document["omitted"], 0);
    let found = &document["diagnostics"][0];
    for (name, value) in [("line", 3), ("column", 12), ("end_line", 3), ("end_column", 17)] {
        assert_eq!(found[name], value, "{name}: {found}");
    }
    assert_eq!(found["severity"], "error");
    assert!(found["message"].as_str().unwrap().contains("chrot"));
    assert_eq!(found["help"], "did you mean chroot?");
    assert_eq!(document["skipped"][0]["name"], "Domain");
    assert_eq!(document["skipped"][0]["line"], 2);

    folder.file("main.conf", &format!("{SOUND}Domain \"x\" {{ }}\n"), 0o600);
    assert_eq!(folder.json()["ok"], true);
    assert_eq!(folder.json()["diagnostics"], serde_json::json!([]));
    let verbose = text(&folder.check(&["--verbose"]).stdout);
    assert!(verbose.contains("main.conf:2:1: \"Domain\" is the MTA's and was skipped\n"), "{verbose}");
    let unread = command(&["--json"]).arg(folder.path("none")).output().unwrap();
    let document: Value = serde_json::from_slice(&unread.stdout).unwrap();
    assert_eq!(document["ok"], false);
    assert!(document["diagnostics"][0]["message"].as_str().unwrap().contains("cannot be opened"));
}

#[test]
fn no_control_character_of_a_file_reaches_a_terminal() {
    let folder = Folder::new("security { us\u{1b}er = 1\u{9b}31m }\n\"\u{7f}\u{1b}[2J\"\n");
    for options in [&[][..], &["--json"], &["--verbose"]] {
        let output = folder.check(options);
        for stream in [&output.stdout, &output.stderr] {
            let out = text(stream);
            assert!(out.chars().all(|c| c == '\n' || !c.is_control()), "{options:?}: {out:?}");
        }
    }
}

/// What a check writes to standard error where that is a terminal.
fn on_a_terminal(folder: &Folder, no_color: Option<&str>) -> String {
    use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
    let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    grantpt(&master).unwrap();
    unlockpt(&master).unwrap();
    let name = ptsname(&master, Vec::new()).unwrap();
    let flags = rustix::fs::OFlags::RDWR | rustix::fs::OFlags::NOCTTY;
    let terminal = rustix::fs::open(name, flags, rustix::fs::Mode::empty()).unwrap();
    let mut command = command(&[]);
    command.arg(folder.path("main.conf")).stdout(Stdio::null()).stderr(terminal);
    if let Some(value) = no_color {
        command.env("NO_COLOR", value);
    }
    let mut child = command.spawn().unwrap();
    // It holds the other end: without it reading ends.
    drop(command);
    let mut out = Vec::new();
    // Linux answers EIO where a pipe would answer with its end.
    let _ = fs::File::from(master).read_to_end(&mut out);
    assert_eq!(child.wait().unwrap().code(), Some(78));
    text(&out)
}

#[test]
fn colour_is_for_terminals_whose_user_has_not_declined_it() {
    let folder = Folder::new("security { usr = 1 }\n");
    assert!(on_a_terminal(&folder, None).contains("\u{1b}["));
    assert!(on_a_terminal(&folder, Some("")).contains("\u{1b}["));
    let declined = on_a_terminal(&folder, Some("1"));
    assert!(declined.contains("has no option") && !declined.contains('\u{1b}'), "{declined:?}");
    assert!(!text(&folder.check(&[]).stderr).contains('\u{1b}'));
}

#[test]
fn a_check_creates_nothing_and_touches_nothing() {
    let folder = Folder::new("");
    let path = |name: &str| folder.path(name).display().to_string();
    fs::create_dir(folder.path("chroot")).unwrap();
    fs::set_permissions(folder.path("chroot"), PermissionsExt::from_mode(0o755)).unwrap();
    let config = format!(
        "security {{ user = 65533 group = 65533 chroot = {} }}
         Control_Listener {{ Listen \"{}\" {{}} Listen \"127.0.0.1:48123\" {{}} }}
         broker {{ socket = {} }}\n",
        path("chroot"),
        path("listener.sock"),
        path("broker.sock")
    );
    folder.file("main.conf", &config, 0o600);
    let before = folder.contents();
    for options in [&[][..], &["--json"], &["--verbose"], &["--syntax"]] {
        let output = folder.check(options);
        assert!(output.status.success(), "{}", text(&output.stderr));
    }
    assert_eq!(folder.contents(), before);
}

#[test]
fn what_lies_in_the_chroot_is_not_followed_out_of_it() {
    let folder = Folder::new("");
    fs::create_dir_all(folder.path("chroot/deep/er")).unwrap();
    folder.file("chroot/deep/er/su", "", 0o4755);
    folder.file("chroot/tool", "", 0o2755);
    folder.file("outside/su", "", 0o4755);
    symlink("../../outside", folder.path("chroot/deep/link")).unwrap();
    symlink("/usr/bin", folder.path("chroot/bin")).unwrap();
    let chroot = folder.path("chroot");
    fs::set_permissions(&chroot, PermissionsExt::from_mode(0o755)).unwrap();
    let config = format!("security {{ user = 65533 group = 65533\nchroot = {} }}\n", chroot.display());
    folder.file("main.conf", &config, 0o600);
    let mut found = folder.found();
    found.sort();
    assert_eq!(
        found,
        [
            "2 warning: \"chroot/deep/er/su\" in the chroot is set-user-id or set-group-id",
            "2 warning: \"chroot/tool\" in the chroot is set-user-id or set-group-id",
        ]
    );
}

#[test]
fn a_chroot_full_of_surprises_is_told_in_part() {
    let folder = Folder::new("");
    for number in 0..100 {
        folder.file(&format!("chroot/{number}"), "", 0o4755);
    }
    let chroot: &Path = &folder.path("chroot");
    fs::set_permissions(chroot, PermissionsExt::from_mode(0o755)).unwrap();
    let config = format!("security {{ user = 65533 group = 65533 chroot = {} }}\n", chroot.display());
    folder.file("main.conf", &config, 0o600);
    let found = folder.found();
    assert_eq!(found.len(), 33, "{found:?}");
    assert!(found.iter().any(|line| line.contains("note: only 32 files of the chroot")), "{found:?}");
}
