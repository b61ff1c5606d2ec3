//! The console blocks of the pages, such as the tour in deploy/tour.md, show what a real broker prints. Each test runs
//! the commands of a page beside a broker with the page's first configuration, and compares the output with the page,
//! without numbers that vary.

use std::fmt::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

use portreeve_tests::{Broker, Host, broker, isolated, lan};

use super::documents::{PAGES, Page, page};

/// The text of a page with the current output of its commands.
fn run(host: &Host, text: &str) -> String {
    let (mut shown, mut in_console) = (String::new(), false);
    for line in text.lines() {
        match (in_console, line) {
            (true, "```") => in_console = false,
            (false, "```console") => in_console = true,
            (true, line) if !line.starts_with("$ ") => continue,
            _ => {}
        }
        writeln!(shown, "{line}").unwrap();
        if let (true, Some(command)) = (in_console, line.strip_prefix("$ ")) {
            shown.push_str(&output(host, command));
        }
    }
    shown
}

fn output(host: &Host, command: &str) -> String {
    let path = format!("{}:{}", host.path("bin").display(), std::env::var("PATH").unwrap());
    let output = Command::new("sh")
        .args(["-c", &format!("exec 2>&1; {command}")])
        .current_dir(host.path(""))
        .env("PATH", path)
        .env_remove("COLUMNS")
        .stdin(Stdio::null())
        .output()
        .unwrap();
    String::from_utf8(output.stdout).unwrap()
}

/// The lines without what varies: times, numbers that are whole words except exit codes, numbers of three or more
/// digits, and the widths of columns.
fn without_what_varies(text: &str) -> Vec<String> {
    let line = |line: &str| {
        let (mut words, mut before) = (Vec::new(), "");
        for word in line.split_whitespace() {
            let number = word.trim_end_matches([',', ':']);
            let is_number = number.chars().all(|c| c.is_ascii_digit() || c == '.')
                && number.matches('.').count() < 2
                && number.contains(|c: char| c.is_ascii_digit());
            words.push(match word {
                _ if word.starts_with("20") && word.ends_with('Z') => "TIME".to_owned(),
                _ if is_number && before != "code" => word.replace(number, "#"),
                _ => word.split_inclusive(|c: char| !c.is_ascii_digit()).map(long_numbers).collect(),
            });
            before = word;
        }
        words.join(" ")
    };
    text.lines().map(line).collect()
}

/// Replaces a number of three or more digits; the part ends with at most one other character.
fn long_numbers(part: &str) -> String {
    let digits = part.trim_end_matches(|c: char| !c.is_ascii_digit());
    if digits.len() < 3 { part.to_owned() } else { part.replacen(digits, "#", 1) }
}

/// The start of a console block.
const CONSOLE: &str = "```console\n";

/// Runs the commands of a page in order, and compares the output.
fn is_as_shown(host: &Host, path: &str) {
    let Page { text, .. } = page(path);
    let configuration = page(path).configurations().next().unwrap();
    lan::create(&["far"]);
    std::fs::create_dir("/run/portreeve").unwrap();
    let broker = Broker::start_command(host, broker::command(host, &broker::config(host, configuration)));
    let now = run(host, text);
    drop(broker);
    if let Some(directory) = std::env::var_os("PORTREEVE_TOUR") {
        let file = Path::new(&directory).join(path);
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(file, &now).unwrap();
    }
    for (there, here) in without_what_varies(text).iter().zip(without_what_varies(&now)) {
        assert_eq!(*there, here, "\nin {path}, and now:\n{now}");
    }
    assert_eq!(text.lines().count(), now.lines().count(), "{now}");
}

/// A test for each page that has console blocks.
macro_rules! pages {
    ($($test:ident: $path:literal,)+) => {
        $(#[test]
        fn $test() {
            isolated(|host| is_as_shown(host, $path));
        })+

        #[test]
        fn every_page_with_commands_is_tested() {
            let run = [$($path),+];
            for page in PAGES.iter().filter(|page| page.text.contains(CONSOLE)) {
                assert!(run.contains(&page.path), "{} is not tested", page.path);
            }
        }
    };
}

pages! {
    the_tour_shows_what_the_command_prints: "deploy/tour.md",
    the_readme_shows_what_the_commands_print: "README.md",
    the_page_about_addresses_shows_what_the_commands_print: "deploy/docs/addresses.md",
    the_page_about_listeners_shows_what_the_commands_print: "deploy/docs/listeners.md",
    the_page_about_operating_shows_what_the_commands_print: "deploy/docs/operating.md",
    the_page_about_reload_shows_what_the_commands_print: "deploy/docs/reload.md",
    the_page_about_security_shows_what_the_commands_print: "deploy/docs/security-overview.md",
}
