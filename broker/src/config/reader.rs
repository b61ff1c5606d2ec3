//! Reads the options of one section as typed values and reports invalid values and unknown options.
//!
//! A reader records each name that the code reads, so the list of known names is always complete.

use std::collections::HashSet;
use std::ops::RangeInclusive;
use std::time::Duration;

use super::characters;
use super::diagnostic::{MAX_DIAGNOSTICS, Problems};
use super::nearest::{nearest, resembling};
use super::scalar::{boolean, integer};
use super::section::Section;
use super::source::{Sources, Span, Spanned};
use super::tree::{Opt, Scalar, Value};

/// Options whose quoted words may be any text.
const FREE_TEXT: [&str; 2] = ["command", "environment"];

/// Reads one section.
pub(crate) struct Reader<'r, 't> {
    pub section: &'r Section<'t>,
    pub sources: &'r Sources,
    pub problems: &'r mut Problems,
    options: Vec<&'static str>,
    scopes: Vec<&'static str>,
}

impl<'r, 't> Reader<'r, 't> {
    pub fn new(section: &'r Section<'t>, sources: &'r Sources, problems: &'r mut Problems) -> Self {
        Reader { section, sources, problems, options: Vec::new(), scopes: Vec::new() }
    }

    /// The scope's name as it is written.
    pub fn name(&self) -> &'r str {
        self.sources.text(self.section.name)
    }

    /// The scope's own name, which this kind of scope must have; `meant` describes it in the message.
    pub fn instance(&mut self, meant: &str) -> Option<Spanned<String>> {
        let found = self.section.instance.and_then(|name| characters::in_scalar(name, false, self.sources));
        if let Some(found) = found {
            self.problems.character(&format!("the name of this {} scope", self.name()), found);
            return None;
        }
        let instance = self.section.instance.map(|scalar| scalar.spanned(self.sources));
        if instance.as_ref().is_none_or(|instance| instance.value.is_empty()) {
            let name = self.name();
            let help = format!("write {name} \"{meant}\" {{");
            let message = format!("this {name} scope has no name");
            self.problems.error(self.section.name, message, help);
            return None;
        }
        instance
    }

    /// Reports a name: this kind of scope has none.
    pub fn no_instance(&mut self) {
        if let Some(instance) = self.section.instance {
            let name = self.name();
            let help = format!("write {name} {{");
            self.problems.error(instance.span, format!("the {name} scope takes no name"), help);
        }
    }

    fn option(&mut self, name: &'static str) -> Option<&'t Opt> {
        self.options.push(name);
        #[cfg(test)]
        super::option_coverage::record(self.name(), name);
        let option = self.section.option(name)?;
        let found = characters::in_value(&option.value, FREE_TEXT.contains(&name), self.sources);
        match found {
            Some(found) => self.problems.character(&format!("the value of {name}"), found),
            None => return Some(option),
        }
        None
    }

    /// The scopes of a kind inside this one.
    pub fn scopes(&mut self, name: &'static str) -> impl Iterator<Item = &'r Section<'t>> + use<'r, 't> {
        self.scopes.push(name);
        let sources = self.sources;
        self.section.scopes().iter().filter(move |section| section.is(name, sources))
    }

    fn scalar(&mut self, name: &'static str) -> Option<Scalar> {
        match &self.option(name)?.value {
            Value::Scalar(scalar) => Some(*scalar),
            other => {
                let help = format!("write {name} = VALUE");
                self.problems.error(other.span(), format!("{name} takes one value"), help);
                None
            }
        }
    }

    /// A text that must not be empty.
    pub fn text(&mut self, name: &'static str) -> Option<Spanned<String>> {
        let text = self.any_text(name)?;
        if text.value.is_empty() {
            self.problems.error(
                text.span,
                format!("{name} is empty"),
                format!("write a value, or remove {name}"),
            );
            return None;
        }
        Some(text)
    }

    /// A text that may be empty.
    pub fn any_text(&mut self, name: &'static str) -> Option<Spanned<String>> {
        Some(self.scalar(name)?.spanned(self.sources))
    }

    /// A text parsed by `parse`, whose error is the remedy.
    pub fn parsed<T>(
        &mut self,
        name: &'static str,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Option<Spanned<T>> {
        let text = self.text(name)?;
        match parse(&text.value) {
            Ok(value) => Some(text.map(|_| value)),
            Err(help) => {
                let message = format!("{:?} is not a valid value for {name}", text.value);
                self.problems.error(text.span, message, help);
                None
            }
        }
    }

    pub fn boolean(&mut self, name: &'static str) -> Option<bool> {
        self.parsed(name, boolean).map(|spanned| spanned.value)
    }

    /// A whole number in a range.
    pub fn number(&mut self, name: &'static str, range: RangeInclusive<u32>) -> Option<u32> {
        let (min, max) = (u64::from(*range.start()), u64::from(*range.end()));
        let parse = |text: &str| {
            let fits = integer(text).filter(|number| (min..=max).contains(number));
            fits.and_then(|number| u32::try_from(number).ok()).ok_or_else(|| match text.starts_with('0') {
                true => format!("write {min} to {max}; a number that begins with 0 is octal"),
                false => format!("write a whole number from {min} to {max}"),
            })
        };
        self.parsed(name, parse).map(|spanned| spanned.value)
    }

    /// Whole seconds in a range.
    pub fn seconds(&mut self, name: &'static str, range: RangeInclusive<u32>) -> Option<Duration> {
        let (min, max) = (u64::from(*range.start()), u64::from(*range.end()));
        let parse = |text: &str| {
            integer(text)
                .filter(|number| (min..=max).contains(number))
                .ok_or_else(|| format!("write whole seconds from {min} to {max}, without a unit"))
        };
        self.parsed(name, parse).map(|spanned| Duration::from_secs(spanned.value))
    }

    /// The permission bits of a file, always octal.
    pub fn mode(&mut self, name: &'static str) -> Option<u32> {
        let parse = |text: &str| {
            let digits = Some(text).filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()));
            digits
                .and_then(|text| u32::from_str_radix(text, 8).ok())
                .filter(|mode| *mode <= 0o777)
                .ok_or_else(|| "write the permission bits in octal, from 0000 to 0777".to_owned())
        };
        self.parsed(name, parse).map(|spanned| spanned.value)
    }

    /// A list of words; one word alone is a list of one.
    pub fn list(&mut self, name: &'static str) -> Option<Vec<Spanned<String>>> {
        let items = match &self.option(name)?.value {
            Value::Scalar(scalar) => std::slice::from_ref(scalar),
            Value::List { items, .. } => items,
            Value::Dict { span, .. } | Value::Rules { span, .. } => {
                let help = format!("write {name} = ( A B )");
                self.problems.error(*span, format!("{name} takes a list"), help);
                return None;
            }
        };
        let mut words = Vec::with_capacity(items.len());
        for item in items {
            let word = item.spanned(self.sources);
            if word.value.is_empty() {
                let message = format!("{name} contains an empty word");
                self.problems.error(word.span, message, "remove it");
            } else {
                words.push(word);
            }
        }
        Some(words)
    }

    /// A list whose words are each parsed; the error of `parse` is the remedy.
    pub fn parsed_list<T>(
        &mut self,
        name: &'static str,
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> Vec<Spanned<T>> {
        let mut values = Vec::new();
        for word in self.list(name).unwrap_or_default() {
            match parse(&word.value) {
                Ok(value) => values.push(Spanned { value, span: word.span }),
                Err(help) => {
                    let message = format!("{:?} is not a valid value for {name}", word.value);
                    self.problems.error(word.span, message, help);
                }
            }
        }
        values
    }

    /// A dictionary in the order of the file; of a repeated key the last value counts.
    pub fn dict(&mut self, name: &'static str) -> Option<Vec<(Spanned<String>, Spanned<String>)>> {
        let option = self.option(name)?;
        let Value::Dict { entries, .. } = &option.value else {
            let help = format!("write {name} = [ KEY = VALUE ]");
            self.problems.error(option.value.span(), format!("{name} takes a dictionary"), help);
            return None;
        };
        let mut seen = HashSet::new();
        let mut all: Vec<_> = entries
            .iter()
            .rev()
            .filter(|(key, _)| seen.insert(key.text(self.sources)))
            .map(|(key, value)| (key.spanned(self.sources), value.spanned(self.sources)))
            .collect();
        all.reverse();
        Some(all)
    }

    /// Warns about unread options that are probably misspelt; the other unread options are the MTA's.
    pub fn misspelt_options(&mut self) {
        let mut close: Vec<_> = self
            .section
            .options()
            .filter(|(name, _)| !self.options.contains(name) && !self.scopes.contains(name))
            .filter_map(|(name, option)| Some((option.name, resembling(name, &self.options)?)))
            .take(MAX_DIAGNOSTICS)
            .collect();
        close.sort_unstable();
        for (at, meant) in close {
            let message = format!("{} is not an option of the broker and is skipped", self.sources.text(at));
            self.problems.warning(at, message, format!("did you mean {meant}?"));
        }
    }

    /// Reports every option that was not read.
    pub fn no_other_options(&mut self) {
        let scope = self.name();
        for (name, option) in self.section.options() {
            if self.options.contains(&name) {
                continue;
            }
            let message = format!("the scope {scope} has no option {name:?}");
            let help = match self.scopes.contains(&name) {
                true => format!("{name} is a scope: write {name} \"NAME\" {{"),
                false => known(name, &self.options, &self.scopes),
            };
            self.problems.error(option.name, message, help);
        }
    }

    /// Reports every scope that was not read.
    pub fn no_other_scopes(&mut self) {
        let scope = self.name();
        for section in self.section.scopes() {
            let name = self.sources.text(section.name);
            if self.scopes.iter().any(|known| known.eq_ignore_ascii_case(name)) {
                continue;
            }
            let message = format!("the scope {scope} has no scope {name:?}");
            let help = match self.options.iter().find(|known| known.eq_ignore_ascii_case(name)) {
                Some(option) => format!("{option} is an option: write {option} = VALUE"),
                None => known(name, &self.scopes, &self.options),
            };
            self.problems.error(section.name, message, help);
        }
    }

    /// Adds an error.
    pub fn error(&mut self, span: Span, message: impl Into<String>, help: impl Into<String>) {
        self.problems.error(span, message, help);
    }
}

/// The remedy for an unknown name: the probable one, or all known ones.
fn known(name: &str, these: &[&'static str], others: &[&'static str]) -> String {
    if let Some(meant) = nearest(name, these.iter().chain(others).copied()) {
        return format!("did you mean {meant}?");
    }
    match these {
        [] => "remove it".to_owned(),
        _ => format!("known names: {}", these.join(", ")),
    }
}
