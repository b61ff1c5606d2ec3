//! Lexer, parser and typed reader: whatever the text, an answer, and a report that drives no terminal.
#![no_main]

use libfuzzer_sys::fuzz_target;
use portreeve_broker::config::{Report, Style, check_syntax_text, parse_text};

fuzz_target!(|text: &str| {
    let syntax = check_syntax_text("fuzz.conf", text);
    if let Err(report) = &syntax {
        printable(report);
    }
    match parse_text("fuzz.conf", text) {
        Ok((_, warnings)) => {
            assert!(syntax.is_ok(), "read as a configuration, and not well formed");
            warnings.into_iter().map(Report::from).for_each(|report| printable(&report));
        }
        Err(report) => printable(&report),
    }
});

fn printable(report: &Report) {
    for line in report.one_lines().chain(report.render(Style::Plain).lines().map(str::to_owned)) {
        assert!(!line.contains(|c: char| c.is_control()), "{line:?}");
    }
}
