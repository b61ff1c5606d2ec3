//! SECURITY.md names only tests that exist.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Every Rust file below a directory.
fn sources(directory: PathBuf, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(|character: char| !character.is_ascii_alphanumeric() && character != '_')
}

#[test]
fn every_test_named_in_the_document_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let document = fs::read_to_string(root.join("broker/SECURITY.md")).unwrap();
    // The name of a test is a sentence; nothing else between backquotes has as many words.
    let is_test = |name: &&str| {
        let is_word = |character: char| character.is_ascii_lowercase() || "_0123456789".contains(character);
        name.chars().all(is_word) && name.matches('_').count() > 2
    };
    let named: BTreeSet<&str> = document
        .split('`')
        .skip(1)
        .step_by(2)
        .filter(is_test)
        .filter(|name| *name != "cap_net_bind_service")
        .collect();
    assert!(named.len() > 30, "{named:?}");

    let mut files = Vec::new();
    for place in [
        "broker/src",
        "broker/tests",
        "protocol/tests",
        "worker/tests",
        "worker/cli/tests",
        "tests/tests",
        // The rows of `for_each_trick!` are the names of tests.
        "tests/src/adversary",
    ] {
        sources(root.join(place), &mut files);
    }
    let texts: Vec<String> = files.iter().map(|path| fs::read_to_string(path).unwrap()).collect();
    let known: BTreeSet<&str> = texts.iter().flat_map(|text| words(text)).collect();
    let missing: Vec<&&str> = named.iter().filter(|name| !known.contains(**name)).collect();
    assert!(missing.is_empty(), "SECURITY.md names tests that do not exist: {missing:#?}");
}
