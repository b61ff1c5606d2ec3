//! Every mistake is reported with its position and its remedy. The snapshots hold the wording, for review.
//!
//! Each case is a whole configuration. Its snapshot is what an operator reads.
#![forbid(unsafe_code)]

mod cluster;
mod endpoints;
mod grammar;
mod names;
mod scopes;
mod values;

use portreeve_broker::config::parse_text;

/// The errors or warnings that an operator reads for each configuration.
fn report_of(cases: &[(&str, &str)]) -> String {
    let mut out = String::new();
    for (name, text) in cases {
        let report = match parse_text("main.conf", text) {
            Err(report) => report.to_string(),
            Ok((_, warnings)) => {
                assert!(!warnings.is_empty(), "{name}: no error and no warning");
                let text = |warning: &portreeve_broker::config::Diagnostic| warning.to_string();
                warnings.iter().map(text).collect::<Vec<_>>().join("\n")
            }
        };
        out += &format!("# {name}\n\n{report}\n\n");
    }
    out
}

/// Asserts a snapshot that does not repeat the source of the cases.
macro_rules! assert_report {
    ($cases:expr) => {
        insta::with_settings!({omit_expression => true}, {
            insta::assert_snapshot!(report_of($cases));
        });
    };
}
pub(crate) use assert_report;
