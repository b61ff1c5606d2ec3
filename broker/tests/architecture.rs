//! Checks ARCHITECTURE.md against the source: the layers of the modules, the functions of a request's life, and the places
//! in which every operation must occur.
#![allow(clippy::unwrap_used, clippy::panic)] // a helper of a test may fail it

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use portreeve_broker::config::GROUPS;
use portreeve_protocol::message::OPERATIONS;

const PAGE: &str = include_str!("../ARCHITECTURE.md");

/// Known imports from a module above. An import that no longer exists must be removed from this list.
const KNOWN_UPWARD_IMPORTS: [(&str, &str); 1] = [("inject", "hostile")];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// The rows of the table below a heading, as cells.
fn table(heading: &str) -> Vec<Vec<String>> {
    let section = PAGE.split_once(&format!("## {heading}\n")).unwrap_or_else(|| panic!("no {heading}")).1;
    let section = section.split("\n## ").next().unwrap();
    let rows = section.lines().filter(|line| line.starts_with('|')).skip(2);
    rows.map(|row| row.trim_matches('|').split('|').map(|cell| cell.trim().to_owned()).collect()).collect()
}

/// The code spans of a cell.
fn codes(cell: &str) -> Vec<&str> {
    cell.split('`').skip(1).step_by(2).collect()
}

/// Every file at a path: itself, or the sources below it.
fn files(path: &Path) -> Vec<PathBuf> {
    if path.is_file() {
        return vec![path.to_owned()];
    }
    let mut all = Vec::new();
    for entry in fs::read_dir(path).unwrap_or_else(|error| panic!("{}: {error}", path.display())) {
        all.extend(files(&entry.unwrap().path()));
    }
    all.sort();
    all
}

/// The text of a file, of all files below a folder, or with `/*.rs` of the sources in it alone.
fn text(place: &str) -> String {
    let path = root().join(place.trim_end_matches("/*.rs"));
    let direct = |file: &PathBuf| !place.ends_with("/*.rs") || file.parent() == Some(path.as_path());
    files(&path).iter().filter(|file| direct(file)).filter_map(|file| fs::read_to_string(file).ok()).collect()
}

/// Whether a text has a word or phrase that is no part of a longer word.
fn has(text: &str, phrase: &str) -> bool {
    let is_word = |c: char| c.is_alphanumeric() || c == '_' || c == '-';
    text.match_indices(phrase).any(|(at, _)| {
        let before = text[..at].chars().next_back().filter(|_| phrase.starts_with(is_word));
        let after = text[at + phrase.len()..].chars().next().filter(|_| phrase.ends_with(is_word));
        !before.is_some_and(is_word) && !after.is_some_and(is_word)
    })
}

/// The modules that the source of each module imports from.
fn imports() -> BTreeMap<String, Vec<String>> {
    let src = root().join("broker/src");
    let mut imports: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for file in files(&src) {
        let path = file.strip_prefix(&src).unwrap();
        let first = path.components().next().unwrap().as_os_str().to_str().unwrap();
        let module = first.trim_end_matches(".rs");
        if ["lib", "main", "bin", "manual_pages"].contains(&module) {
            continue;
        }
        let imported = imports.entry(module.to_owned()).or_default();
        let source = fs::read_to_string(&file).unwrap();
        for (at, prefix) in source.match_indices("crate::") {
            let path = &source[at + prefix.len()..];
            let names = match path.strip_prefix('{') {
                Some(list) => list.split('}').next().unwrap().split(',').collect(),
                None => vec![path],
            };
            for name in names {
                let end = |c: char| !c.is_alphanumeric() && c != '_';
                imported.push(name.trim().split(end).next().unwrap().to_owned());
            }
        }
    }
    imports
}

#[test]
fn a_module_imports_only_from_modules_below_it() {
    let layers: Vec<String> = table("Modules").iter().map(|row| codes(&row[0])[0].to_owned()).collect();
    let layer = |module: &str| layers.iter().position(|name| name == module);
    let imports = imports();
    let missing: Vec<_> = imports.keys().filter(|module| layer(module).is_none()).collect();
    assert!(missing.is_empty(), "ARCHITECTURE.md does not list {missing:?}");
    let surplus: Vec<_> = layers.iter().filter(|module| !imports.contains_key(*module)).collect();
    assert!(surplus.is_empty(), "ARCHITECTURE.md lists {surplus:?}, which broker/src does not have");
    let mut upward = Vec::new();
    for (module, imported) in &imports {
        for other in imported.iter().filter(|other| layer(other).is_some()) {
            if layer(other) < layer(module) {
                upward.push((module.as_str(), other.as_str()));
            }
        }
    }
    upward.sort_unstable();
    upward.dedup();
    assert_eq!(upward, KNOWN_UPWARD_IMPORTS, "imports from a module above");
}

#[test]
fn the_functions_of_a_requests_life_exist() {
    for row in table("The life of a request") {
        let file = codes(&row[1])[0];
        let source = text(file);
        for function in codes(&row[2]) {
            assert!(has(&source, &format!("fn {function}")), "{file} has no function {function}");
        }
    }
}

/// The decision, the three operations that report the policy or its settings to their peer, and the two whose events and addresses
/// are decided one by one.
const READ_POLICY: [&str; 6] =
    ["cluster.rs", "handler.rs", "hello.rs", "policy.rs", "renew_all.rs", "subscribe.rs"];

#[test]
fn an_operation_acts_by_its_permit_and_does_not_consult_policy_again() {
    for file in files(&root().join("broker/src/server/operation")) {
        let name = file.file_name().unwrap().to_str().unwrap();
        let reads = fs::read_to_string(&file).unwrap().contains("broker.policy");
        assert_eq!(reads, READ_POLICY.contains(&name), "{name} reads the policy: {reads}");
    }
}

/// The request type of each operation, from the protocol's table.
fn request_types() -> BTreeMap<String, String> {
    let source = text("protocol/src/message.rs");
    let table = source.split_once("operations! {\n").unwrap().1.split("\n}").next().unwrap();
    let row = |line: &str| {
        let mut words = line.split_whitespace().skip(1).map(|word| word.trim_matches('"').to_owned());
        (words.next().unwrap(), words.next().unwrap())
    };
    table.lines().map(row).collect()
}

/// The client method of an operation: its name, with `addresses` if it takes several.
fn method(name: &str) -> String {
    match name {
        "announce" => "announce_addresses".to_owned(),
        "list-addresses" => "addresses".to_owned(),
        "cluster" => "cluster_settings".to_owned(),
        "subscribe" => "events".to_owned(),
        _ if name.ends_with("-address") => name.replace('-', "_") + "es",
        _ => name.replace('-', "_"),
    }
}

#[test]
fn every_operation_is_in_each_place_of_the_checklist() {
    let types = request_types();
    let mut forgotten = Vec::new();
    let steps = table("Adding an operation");
    assert!((1..=10).contains(&steps.len()), "{} steps", steps.len());
    for row in steps {
        let (step, what) = (&row[0], &row[2]);
        let places: Vec<(&str, String)> =
            codes(&row[1]).into_iter().map(|place| (place, text(place))).collect();
        for (_, name) in OPERATIONS.iter().filter(|(_, name)| !codes(&row[4]).contains(name)) {
            let request = types.get(*name).unwrap_or_else(|| panic!("{name} has no row in operations!"));
            let word = GROUPS.iter().find(|(_, names)| names.contains(name)).map_or(*name, |(word, _)| word);
            for template in codes(&row[3]) {
                let phrase = template
                    .replace("{name}", name)
                    .replace("{Request}", request)
                    .replace("{method}", &method(name))
                    .replace("{word}", word);
                for (place, _) in places.iter().filter(|(_, source)| !has(source, &phrase)) {
                    forgotten.push(format!("{name}: step {step}, {place} lacks `{phrase}`: {what}"));
                }
            }
        }
    }
    assert!(forgotten.is_empty(), "ARCHITECTURE.md, Adding an operation:\n{}", forgotten.join("\n"));
}

#[test]
fn unsafe_code_is_only_in_modules_that_make_system_calls() {
    let src = root().join("broker/src");
    for file in files(&src) {
        let path = file.strip_prefix(&src).unwrap();
        if ["sys", "confine", "launcher", "hostile"].iter().any(|module| path.starts_with(module)) {
            continue;
        }
        let source = fs::read_to_string(&file).unwrap();
        let code = source.lines().map(|line| line.split("//").next().unwrap_or_default());
        for line in code {
            assert!(!has(line, "unsafe"), "{}: {line}", path.display());
        }
    }
}
