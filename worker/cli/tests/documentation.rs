//! Completions and man pages cover every subcommand, and shells and mandoc accept them.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Command, Output};

fn portreeve(arguments: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_portreeve")).env_clear().args(arguments).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// The subcommands that --help lists.
fn subcommands() -> BTreeSet<String> {
    let help = portreeve(&["--help"]);
    let list =
        help.lines().skip_while(|line| *line != "Commands:").skip(1).take_while(|line| !line.is_empty());
    let names = list.filter_map(|line| line.split_whitespace().next());
    names.filter(|name| *name != "help").map(str::to_owned).collect()
}

#[test]
fn completions_have_every_subcommand_and_each_installed_shell_accepts_them() {
    let folder = tempfile::tempdir().unwrap();
    let subcommands = subcommands();
    assert!(subcommands.contains("status") && subcommands.len() > 6, "{subcommands:?}");
    for shell in ["bash", "zsh", "fish"] {
        let script = portreeve(&["completions", shell]);
        // The script asks the program.
        let mut command = Command::new(env!("CARGO_BIN_EXE_portreeve"));
        command.env_clear().env("PORTREEVE_COMPLETE", shell).env("_CLAP_COMPLETE_INDEX", "1");
        command.env("_CLAP_IFS", "\n").args(["--", "portreeve", ""]);
        let known = String::from_utf8(command.output().unwrap().stdout).unwrap();
        for subcommand in &subcommands {
            assert!(known.contains(subcommand.as_str()), "{shell} does not know {subcommand}: {known}");
        }
        let file = folder.path().join(shell);
        std::fs::write(&file, script).unwrap();
        match Command::new(shell).arg("-n").arg(&file).output() {
            Ok(Output { status, stderr, .. }) => {
                assert!(status.success() && stderr.is_empty(), "{}", String::from_utf8_lossy(&stderr));
            }
            Err(_) => assert_ne!(shell, "bash", "bash is not installed"),
        }
    }
}

#[test]
fn every_subcommand_has_a_man_page_that_mandoc_accepts() {
    let folder = tempfile::tempdir().unwrap();
    portreeve(&["man", folder.path().to_str().unwrap()]);
    let page = |name: &str| std::fs::read_to_string(folder.path().join(name)).unwrap();
    let first = page("portreeve.1");
    for subcommand in subcommands() {
        assert!(first.contains(&format!("portreeve\\-{subcommand}(1)")), "{subcommand}");
        assert!(page(&format!("portreeve-{subcommand}.1")).contains(".SH DESCRIPTION"));
    }
    assert!(page("portreeve-address-add.1").contains("\\-\\-lease"));
    assert!(first.contains(".SH \"EXIT STATUS\"") && first.contains("\n77\n"), "{first}");
    assert!(first.contains("\n78\n"), "{first}");
    for subcommand in ["listen", "limit"] {
        assert!(page(&format!("portreeve-{subcommand}.1")).contains(r"[\-\- \fICOMMAND\fR ...]"));
    }
    let pages: Vec<_> =
        std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
    lint(&pages.iter().map(AsRef::as_ref).collect::<Vec<_>>());
}

/// Checks man pages with mandoc, if it is installed.
fn lint(pages: &[&Path]) {
    let mut command = Command::new("mandoc");
    if let Ok(output) = command.args(["-T", "lint", "-W", "warning"]).args(pages).output() {
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    }
}
