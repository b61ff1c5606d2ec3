//! The tour of the command in deploy/tour.md is what a broker on a real host shows: each of its commands is run, and what
//! it prints is what stands there, but for numbers that change by themselves.

use std::fmt::Write as _;
use std::process::{Command, Stdio};

use portreeve_tests::{Broker, Host, broker, isolated, lan};

const TOUR: &str = include_str!("../../../deploy/tour.md");

/// The text with what its commands print now.
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

/// Without what changes by itself: times, numbers that are a word, but for exit codes, those of three digits or more, and how wide
/// that makes a column.
fn without_what_changes(text: &str) -> Vec<String> {
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

/// Some digits, and what ends them.
fn long_numbers(part: &str) -> String {
    let digits = part.trim_end_matches(|c: char| !c.is_ascii_digit());
    if digits.len() < 3 { part.to_owned() } else { part.replacen(digits, "#", 1) }
}

#[test]
fn the_tour_shows_what_the_command_prints() {
    isolated(|host| {
        lan::join(&["far"]);
        std::fs::create_dir("/run/portreeve").unwrap();
        let configuration = TOUR.split("```text\n").nth(1).unwrap().split("```").next().unwrap();
        let broker = Broker::start_command(host, broker::command(host, &broker::config(host, configuration)));
        let now = run(host, TOUR);
        drop(broker);
        if let Some(path) = std::env::var_os("PORTREEVE_TOUR") {
            std::fs::write(path, &now).unwrap();
        }
        for (there, here) in without_what_changes(TOUR).iter().zip(without_what_changes(&now)) {
            assert_eq!(*there, here, "\nin deploy/tour.md, and now:\n{now}");
        }
        assert_eq!(TOUR.lines().count(), now.lines().count(), "{now}");
    });
}
