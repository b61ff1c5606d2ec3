//! Every configuration in the README and in the pages, scripts and files of deploy is well formed.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, clippy::panic)] // test helpers may panic

use std::fs;
use std::path::Path;
use std::process::Command;

use portreeve_broker::config::parse_text;

/// The text of each block, between the lines that begin and end it.
fn blocks<'t>(text: &'t str, begins: &str, ends: &str) -> Vec<&'t str> {
    let parts = text.split(begins).skip(1);
    parts.map(|part| part.split_once(ends).unwrap_or_else(|| panic!("{begins} has no {ends}")).0).collect()
}

/// The configurations in a file: the whole file if its name ends in `.conf`, otherwise the blocks that a page or a
/// script quotes. systemd's files may end in `.conf` too; their content excludes them.
fn configurations(name: &str, text: &str) -> Vec<String> {
    let quoted = match name {
        _ if name.ends_with(".conf") => vec![text],
        _ if name.ends_with(".md") => blocks(text, "```text\n", "\n```"),
        _ => blocks(text, "<<EOF\n", "\nEOF\n"),
    };
    quoted.into_iter().filter(|block| block.contains("security {")).map(str::to_owned).collect()
}

#[test]
fn every_shown_configuration_is_well_formed() {
    let repository = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let (mut queue, mut shown) = (vec![repository.join("README.md"), repository.join("deploy")], 0);
    while let Some(path) = queue.pop() {
        if path.is_dir() {
            queue.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
            continue;
        }
        let Ok(text) = fs::read_to_string(&path) else { continue };
        // The shell substitutes one word here.
        let text = text.replace("$(id -gn nobody)", "nogroup");
        for configuration in configurations(&path.display().to_string(), &text) {
            let file = folder.path().join("shown.conf");
            fs::write(&file, configuration).unwrap();
            let mut check = Command::new(env!("CARGO_BIN_EXE_portreeved"));
            let output = check.args(["check", "--syntax"]).arg(&file).output().unwrap();
            assert!(output.status.success(), "{path:?}: {}", String::from_utf8_lossy(&output.stderr));
            shown += 1;
        }
    }
    assert!(
        shown > 10,
        "too few: the README, the pages of deploy/docs, the quickstart and the samples have one each"
    );
}

#[test]
fn the_commented_options_of_the_sample_of_a_cluster_are_valid() {
    let sample = include_str!("../../deploy/samples/cluster.conf");
    // A commented option has no space after the comment sign at its own level.
    let is_option =
        |line: &str| line.trim_start().strip_prefix('#').is_some_and(|rest| !rest.starts_with(' '));
    let is_inner = |line: &str| line.starts_with("  #  ");
    let uncommented = |line: &str| match is_option(line) || is_inner(line) {
        true => line.replacen('#', "", 1),
        false => line.to_owned(),
    };
    let text: Vec<String> = sample.lines().map(uncommented).collect();
    let (config, warnings) = parse_text("cluster.conf", &text.join("\n")).unwrap();
    assert!(warnings.is_empty(), "{warnings:?}");
    let coordinator = &config.cluster.coordinator;
    assert_eq!(coordinator.engine.as_ref().unwrap().endpoints.len(), 3);
    assert_eq!(coordinator.checks.len(), 1);
}
