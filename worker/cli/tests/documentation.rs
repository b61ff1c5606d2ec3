//! What shells and man(1) are told of the command is read by them without complaint, and leaves no verb out.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Command, Output};

fn portreeve(arguments: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_portreeve")).env_clear().args(arguments).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// The verbs that --help lists.
fn verbs() -> BTreeSet<String> {
    let help = portreeve(&["--help"]);
    let list =
        help.lines().skip_while(|line| *line != "Commands:").skip(1).take_while(|line| !line.is_empty());
    let names = list.filter_map(|line| line.split_whitespace().next());
    names.filter(|name| *name != "help").map(str::to_owned).collect()
}

#[test]
fn the_completions_know_every_verb_and_each_shell_that_is_here_reads_them() {
    let folder = tempfile::tempdir().unwrap();
    let verbs = verbs();
    assert!(verbs.contains("status") && verbs.len() > 6, "{verbs:?}");
    for shell in ["bash", "zsh", "fish"] {
        let script = portreeve(&["completions", shell]);
        for verb in &verbs {
            assert!(script.contains(verb.as_str()), "{shell} does not know {verb}");
        }
        let file = folder.path().join(shell);
        std::fs::write(&file, script).unwrap();
        match Command::new(shell).arg("-n").arg(&file).output() {
            Ok(Output { status, stderr, .. }) => {
                assert!(status.success() && stderr.is_empty(), "{}", String::from_utf8_lossy(&stderr));
            }
            Err(_) => assert_ne!(shell, "bash", "there is no bash"),
        }
    }
}

#[test]
fn every_verb_has_a_man_page_that_man_reads() {
    let folder = tempfile::tempdir().unwrap();
    portreeve(&["man", folder.path().to_str().unwrap()]);
    let page = |name: &str| std::fs::read_to_string(folder.path().join(name)).unwrap();
    let first = page("portreeve.1");
    for verb in verbs() {
        assert!(first.contains(&format!("portreeve\\-{verb}(1)")), "{verb}");
        assert!(page(&format!("portreeve-{verb}.1")).contains(".SH DESCRIPTION"));
    }
    assert!(page("portreeve-address-add.1").contains("\\-\\-lease"));
    assert!(first.contains(".SH \"EXIT STATUS\"") && first.contains("\n77\n"), "{first}");
    let pages: Vec<_> =
        std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
    lint(&pages.iter().map(AsRef::as_ref).collect::<Vec<_>>());
}

/// By mandoc, where it is installed.
fn lint(pages: &[&Path]) {
    let mut command = Command::new("mandoc");
    if let Ok(output) = command.args(["-T", "lint", "-W", "warning"]).args(pages).output() {
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    }
}
