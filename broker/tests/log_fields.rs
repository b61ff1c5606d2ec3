//! Compares the fields that log lines have with their table in deploy/docs/operating.md.
#![allow(clippy::unwrap_used, clippy::panic)] // a helper of a test may fail it

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

const PAGE: &str = include_str!("../../deploy/docs/operating.md");

/// The sources below a folder.
fn sources(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let nested = entries.flat_map(|path| if path.is_dir() { sources(&path) } else { vec![path] });
    nested.filter(|path| path.extension().is_some_and(|name| name == "rs")).collect()
}

/// The text up to the parenthesis that closes the one before it, split at the commas outside of parentheses and quotes.
fn arguments(text: &str) -> Vec<String> {
    let (mut all, mut current) = (Vec::new(), String::new());
    let (mut depth, mut quoted, mut escaped) = (0, false, false);
    for c in text.chars() {
        match c {
            _ if escaped => escaped = false,
            '\\' if quoted => escaped = true,
            '"' => quoted = !quoted,
            _ if quoted => {}
            '(' | '[' | '{' => depth += 1,
            ')' if depth == 0 => break,
            ')' | ']' | '}' => depth -= 1,
            ',' if depth == 0 => {
                all.push(std::mem::take(&mut current));
                continue;
            }
            _ => {}
        }
        current.push(c);
    }
    all.push(current);
    all.into_iter().map(|argument| argument.trim().to_owned()).collect()
}

/// The fields of one line: the arguments before the message.
fn fields(arguments: &[String]) -> Vec<String> {
    let before = arguments.iter().take_while(|argument| !argument.starts_with('"'));
    let fields = before.filter(|argument| !argument.starts_with("target:"));
    let name = |argument: &String| {
        let name = argument.split('=').next().unwrap_or_default().trim().trim_start_matches(['%', '?']);
        name.rsplit('.').next().unwrap_or_default().to_owned()
    };
    fields.map(name).filter(|name| !name.is_empty()).collect()
}

#[test]
fn the_documented_fields_are_those_of_the_lines() {
    let mut written = BTreeSet::new();
    for file in sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src")) {
        let source = fs::read_to_string(&file).unwrap();
        for level in ["error", "warn", "info", "debug"] {
            for (_, rest) in source
                .match_indices(&format!("tracing::{level}!("))
                .map(|(at, name)| source.split_at(at + name.len()))
            {
                let arguments = arguments(rest);
                assert!(
                    arguments.iter().any(|argument| argument.starts_with('"')),
                    "{}: a line without a message: {arguments:?}",
                    file.display()
                );
                written.extend(fields(&arguments));
            }
        }
    }
    let section = PAGE.split_once("### Fields\n").unwrap().1.split("\n#").next().unwrap();
    let rows = section.lines().filter(|line| line.starts_with("| `"));
    let names = rows.flat_map(|row| {
        let cell = row.trim_start_matches('|').split('|').next().unwrap();
        cell.split('`').skip(1).step_by(2).map(str::to_owned).collect::<Vec<_>>()
    });
    let documented: BTreeSet<String> = names.collect();
    assert!(written.len() > 20, "{written:?}");
    assert_eq!(written, documented);
}
