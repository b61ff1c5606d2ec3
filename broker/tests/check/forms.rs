//! Forms of output: exit codes, one JSON document, text, and colour on terminals.

use std::fs;
use std::io::Read as _;
use std::os::unix::fs::PermissionsExt;
use std::process::Stdio;

use serde_json::Value;

use super::{Folder, VALID, command, text};

#[test]
fn exit_codes_distinguish_valid_invalid_and_unreadable() {
    let good = Folder::new(VALID);
    let output = good.check(&[]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    assert!(output.stderr.is_empty() && text(&output.stdout).ends_with("main.conf: valid\n"));
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
    for wrong in [&["--as", "root", "x"][..], &["--config", "a", "x"], &["a", "b"], &["--nonsense", "a"]] {
        assert_eq!(command(wrong).output().unwrap().status.code(), Some(64), "{wrong:?}");
    }
}

#[test]
fn a_syntax_check_accepts_any_owner_and_any_scope() {
    let folder = Folder::new("Domain \"x\" { a = b }\nsecurity { nonsense = 1 }\ninclude missing.conf\n");
    fs::set_permissions(folder.path("main.conf"), PermissionsExt::from_mode(0o666)).unwrap();
    let output = folder.check(&["--syntax"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(text(&output.stdout).ends_with(": valid syntax\n"));
    let refused = folder.check(&[]);
    assert_eq!(refused.status.code(), Some(78));
    assert!(text(&refused.stderr).contains("chmod go-w"));
}

#[test]
fn a_check_changes_no_file() {
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
fn json_names_the_file_the_findings_and_skipped_scopes() {
    let folder = Folder::new(&format!("{VALID}Domain \"x\" {{ }}\nsecurity {{ chrot = \"a\u{9b}b\" }}\n"));
    let document = folder.json();
    assert_eq!(document["file"].as_str(), folder.path("main.conf").to_str());
    assert_eq!(document["ok"], false);
    assert_eq!(document["omitted"], 0);
    let finding = &document["diagnostics"][0];
    for (name, value) in [("line", 3), ("column", 12), ("end_line", 3), ("end_column", 17)] {
        assert_eq!(finding[name], value, "{name}: {finding}");
    }
    assert_eq!(finding["severity"], "error");
    assert!(finding["message"].as_str().unwrap().contains("chrot"));
    assert_eq!(finding["help"], "did you mean chroot?");
    assert_eq!(document["skipped"][0]["name"], "Domain");
    assert_eq!(document["skipped"][0]["line"], 2);

    folder.file("main.conf", &format!("{VALID}Domain \"x\" {{ }}\n"), 0o600);
    assert_eq!(folder.json()["ok"], true);
    assert_eq!(folder.json()["diagnostics"], serde_json::json!([]));
    let verbose = text(&folder.check(&["--verbose"]).stdout);
    assert!(verbose.contains("main.conf:2:1: \"Domain\" belongs to the MTA and was skipped\n"), "{verbose}");
    let unread = command(&["--json"]).arg(folder.path("none")).output().unwrap();
    let document: Value = serde_json::from_slice(&unread.stdout).unwrap();
    assert_eq!(document["ok"], false);
    assert!(document["diagnostics"][0]["message"].as_str().unwrap().contains("cannot be opened"));
}

#[test]
fn control_characters_of_a_file_never_reach_a_terminal() {
    let folder = Folder::new("security { us\u{1b}er = 1\u{9b}31m }\n\"\u{7f}\u{1b}[2J\"\n");
    for options in [&[][..], &["--json"], &["--verbose"]] {
        let output = folder.check(options);
        for stream in [&output.stdout, &output.stderr] {
            let out = text(stream);
            assert!(out.chars().all(|c| c == '\n' || !c.is_control()), "{options:?}: {out:?}");
        }
    }
}

/// Runs a check with a terminal as standard error, and returns what it writes there.
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
    // The command holds the other end of the terminal; reading ends only when that end is closed.
    drop(command);
    let mut out = Vec::new();
    // Linux returns EIO here where a pipe would return end of file.
    let _ = fs::File::from(master).read_to_end(&mut out);
    assert_eq!(child.wait().unwrap().code(), Some(78));
    text(&out)
}

#[test]
fn colour_is_used_only_on_terminals_without_no_color() {
    let folder = Folder::new("security { usr = 1 }\n");
    assert!(on_a_terminal(&folder, None).contains("\u{1b}["));
    assert!(on_a_terminal(&folder, Some("")).contains("\u{1b}["));
    let declined = on_a_terminal(&folder, Some("1"));
    assert!(declined.contains("has no option") && !declined.contains('\u{1b}'), "{declined:?}");
    assert!(!text(&folder.check(&[]).stderr).contains('\u{1b}'));
}
