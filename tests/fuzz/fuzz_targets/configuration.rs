//! Lexer, parser and typed reader: any text gives a result, and reports contain no control characters.
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
            assert!(syntax.is_ok(), "accepted as a configuration, but rejected by the syntax check");
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
