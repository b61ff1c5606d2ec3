//! The Prometheus text format, version 0.0.4: families of samples, with escaped labels.
//!
//! Promises: the text of a label can neither end the quotes nor the line, and only printable characters are
//! printed.

use std::fmt::{self, Display, Write as _};

use portreeve::printable::is_printable;

/// A page of metrics that is being written.
#[derive(Default)]
pub struct Text(String);

impl Text {
    /// Starts a family. Its samples follow.
    pub fn family<'t>(&'t mut self, name: &'t str, kind: &str, help: &str) -> Family<'t> {
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
        Family { out: &mut self.0, name }
    }

    /// The page.
    pub fn finish(self) -> String {
        self.0
    }
}

/// A metric family, while its samples are written.
pub struct Family<'t> {
    out: &'t mut String,
    name: &'t str,
}

impl Family<'_> {
    /// Writes a sample with these labels.
    pub fn sample(&mut self, labels: &[(&str, &str)], value: impl Display) -> &mut Self {
        self.suffixed("", labels, value)
    }

    /// Writes a sample with a suffix after the family's name, for histograms.
    pub fn suffixed(&mut self, suffix: &str, labels: &[(&str, &str)], value: impl Display) -> &mut Self {
        let _ = writeln!(self.out, "{}{suffix}{} {value}", self.name, Labels(labels));
        self
    }
}

struct Labels<'t>(&'t [(&'t str, &'t str)]);

impl Display for Labels<'_> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (name, value)) in self.0.iter().enumerate() {
            write!(out, "{}{name}=\"", if index == 0 { "{" } else { "," })?;
            for c in value.chars() {
                match c {
                    '\\' | '"' => write!(out, "\\{c}")?,
                    c if !is_printable(c) => write!(out, "\\\\u{{{:x}}}", u32::from(c))?,
                    c => out.write_char(c)?,
                }
            }
            out.write_char('"')?;
        }
        if self.0.is_empty() { Ok(()) } else { out.write_char('}') }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_label_stays_within_its_quotes_whatever_its_text() {
        let mut text = Text::default();
        text.family("a", "gauge", "of b").sample(&[("b", "x\"} 1\n\u{1b}[2J\u{202e}\\"), ("c", "")], 2);
        assert_eq!(
            text.finish(),
            "# HELP a of b\n# TYPE a gauge\na{b=\"x\\\"} 1\\\\u{a}\\\\u{1b}[2J\\\\u{202e}\\\\\",c=\"\"} 2\n"
        );
    }
}
