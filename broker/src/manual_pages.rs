//! Checks the manual pages against the code: options, faults, steps and exit codes must be the same in both.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use portreeve_protocol::FaultCode;

use crate::{cli, config};

const CONFIGURATION: &str = include_str!("../../deploy/man/portreeve.conf.5");
const FAULTS: &str = include_str!("../../deploy/man/portreeve-faults.7");
const BROKER: &str = include_str!("../../deploy/man/portreeved.8");

/// A configuration with every scope, so that every option is read.
const EVERY_SCOPE: &str = r#"
security {}
broker { permit p {} peer p {} }
worker {}
cluster { topology "10.0.0.0/8" {} engine {} check c {} }
binding b {}
x_listener { listen "*:25" {} }
"#;

/// The lines between the lines `begin` and `end`.
fn part<'p>(page: &'p str, begin: &'p str, end: &'p str) -> impl Iterator<Item = &'p str> {
    page.lines().skip_while(move |line| *line != begin).skip(1).take_while(move |line| *line != end)
}

fn lines_after<'p>(lines: impl Iterator<Item = &'p str>, macro_name: &'p str) -> BTreeSet<&'p str> {
    lines.filter_map(|line| line.strip_prefix(macro_name)).collect()
}

#[track_caller]
fn assert_same<T: Ord + std::fmt::Debug>(code: &BTreeSet<T>, page: &BTreeSet<T>) {
    let missing: Vec<_> = code.difference(page).collect();
    let surplus: Vec<_> = page.difference(code).collect();
    assert!(missing.is_empty(), "the page lacks {missing:?}");
    assert!(surplus.is_empty(), "the page has {surplus:?}, which the code lacks");
}

#[test]
fn every_option_has_its_entry_in_the_page_of_the_configuration_and_no_other_has() {
    let code: BTreeSet<(String, String)> = config::option_coverage::options_read(EVERY_SCOPE);
    let mut page = BTreeSet::new();
    let mut scope = "";
    let mut lines = part(CONFIGURATION, ".Sh SCOPES", ".Sh FILES");
    while let Some(line) = lines.next() {
        if let Some(name) = line.strip_prefix(".Ss Scope ") {
            scope = name;
        }
        let Some(option) = line.strip_prefix(".It Ic ") else { continue };
        page.insert((scope.to_owned(), option.to_owned()));
        // The first sentence runs to the break: type, default, and what a new value needs.
        let first: Vec<&str> = lines.by_ref().take_while(|line| *line != ".br").collect();
        let first = first.join(" ");
        assert!(first.contains("default"), "{scope} {option} has no default: {first}");
        let needs = first.ends_with("; reload.") || first.ends_with("; restart.");
        assert!(needs, "{scope} {option} does not say reload or restart: {first}");
    }
    // The options of a listener scope apply to the listeners in it, and are described there.
    let code = code.into_iter().map(|(scope, option)| (scope.replace("x_listener", "listen"), option));
    assert_same(&code.collect(), &page);
}

#[test]
fn every_fault_has_its_section_and_no_other_has() {
    let codes = (1..=u16::MAX).map(FaultCode::from);
    let words = codes.take_while(|code| !matches!(code, FaultCode::Other(_))).map(FaultCode::name);
    assert_same(&words.collect(), &lines_after(part(FAULTS, ".Sh FAULTS", ".Sh START-UP ERRORS"), ".Ss "));
}

#[test]
fn every_step_that_can_fail_has_its_section_and_no_other_has() {
    let mut code: BTreeSet<String> = BTreeSet::from(["The kernel's refusals".to_owned()]);
    for file in sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src")) {
        let text = fs::read_to_string(&file).unwrap();
        for begins in ["const STEP: &str = ", "Failure::os(", "Failure::new("] {
            let after = text.split(begins).skip(1);
            code.extend(after.filter_map(step));
        }
        // Findings have the step as the first argument.
        code.extend(text.split("findings.error(").skip(1).filter_map(step));
    }
    let page = lines_after(part(FAULTS, ".Sh START-UP ERRORS", ".Sh SEE ALSO"), ".Ss ");
    assert_same(&code, &page.into_iter().map(str::to_owned).collect());
}

/// The literal at the position of a step: the first argument, or the one after an exit code.
fn step(arguments: &str) -> Option<String> {
    let arguments = arguments.trim_start();
    let arguments = match arguments.strip_prefix("Exit::") {
        Some(rest) => rest.split_once(',')?.1.trim_start(),
        None => arguments,
    };
    let literal = arguments.strip_prefix('"')?;
    Some(literal.split_once('"')?.0.to_owned())
}

/// The source files, except those that only tests use.
fn sources(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    let mut all = Vec::new();
    for path in entries {
        let name = path.file_name().unwrap().to_str().unwrap();
        match path.is_dir() {
            _ if ["hostile", "manual_pages.rs", "tests.rs"].contains(&name) => {}
            true => all.extend(sources(&path)),
            false => all.push(path),
        }
    }
    all
}

#[test]
fn every_section_about_a_fault_says_how_to_check_and_how_to_fix() {
    let mut sections = FAULTS.split("\n.Ss ").skip(1);
    sections.by_ref().for_each(|section| {
        let name = section.lines().next().unwrap();
        for tag in ["\n.It Check\n", "\n.It Fix\n"] {
            assert!(section.contains(tag), "{name} lacks {tag:?}");
        }
    });
}

#[test]
fn every_word_of_the_command_line_is_in_the_page_of_the_broker_and_no_other_is() {
    let help = |line: &str| {
        let words = line.split([' ', ',', '[', ']']).filter(|word| word.starts_with("--"));
        words.map(|word| word.trim_matches('-').to_owned()).collect::<Vec<_>>()
    };
    let code: BTreeSet<String> = cli::HELP.lines().flat_map(help).collect();
    let options = part(BROKER, ".Sh OPTIONS", ".Sh SIGNALS").filter(|line| line.starts_with(".It Fl"));
    let page = options.flat_map(|line| {
        let long = line.split(' ').filter_map(|word| word.strip_prefix('-'));
        long.map(str::to_owned).collect::<Vec<_>>()
    });
    assert_same(&code, &page.collect());

    let exits = |text: &str| -> BTreeSet<u8> {
        let numbers = text.split(|c: char| !c.is_ascii_digit()).filter_map(|word| word.parse().ok());
        numbers.filter(|number| (64..=78).contains(number)).collect()
    };
    let page = part(BROKER, ".Sh EXIT STATUS", ".Sh FILES").filter(|line| line.starts_with(".It "));
    let code = exits(include_str!("failure.rs"));
    assert_same(&code, &exits(&page.collect::<Vec<_>>().join(" ")));
    assert_same(&code, &exits(cli::HELP));
}
