//! Every mistake is told with its place and its remedy: the wording, for review.
//!
//! Each case is a whole configuration. What stands in the snapshots is what an operator reads.
#![forbid(unsafe_code)]

mod endpoints;
mod grammar;
mod names;
mod scopes;
mod values;

use portreeve_broker::config::parse_text;

/// What an operator reads of each configuration, mistakes and warnings.
fn told(cases: &[(&str, &str)]) -> String {
    let mut out = String::new();
    for (name, text) in cases {
        let said = match parse_text("main.conf", text) {
            Err(report) => report.to_string(),
            Ok((_, warnings)) => {
                assert!(!warnings.is_empty(), "{name} is no mistake");
                let shown = |found: &portreeve_broker::config::Diagnostic| found.to_string();
                warnings.iter().map(shown).collect::<Vec<_>>().join("\n")
            }
        };
        out += &format!("# {name}\n\n{said}\n\n");
    }
    out
}

/// A snapshot without the source that the cases already are.
macro_rules! assert_told {
    ($cases:expr) => {
        insta::with_settings!({omit_expression => true}, {
            insta::assert_snapshot!(told($cases));
        });
    };
}
pub(crate) use assert_told;
