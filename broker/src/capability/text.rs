//! Parser for the text format of `cap_from_text(3)`, compatible with libcap 2.66.
//!
//! Promises: it accepts the same texts, with the same three sets, as libcap on a kernel with the same number of
//! capabilities; every error has a place and a remedy. Touches nothing. Undocumented behaviour of libcap is kept and
//! marked below, because a configuration must keep its meaning.

use super::error::{Problem, TextError};
use super::set::{CapabilitySet, Count};
use super::state::{Flags, State};
use super::table;

/// Parses a capability text for the running kernel.
///
/// # Errors
/// The first place where libcap would refuse the text.
pub fn parse(text: &str) -> Result<State, TextError> {
    parse_with(text, Count::of_kernel())
}

/// Parses a capability text for a kernel with `count` capabilities.
///
/// # Errors
/// The first place where libcap would refuse the text.
pub fn parse_with(text: &str, count: Count) -> Result<State, TextError> {
    if let Some(at) = text.find('\0') {
        return Err(TextError { span: at..at + 1, problem: Problem::Zero });
    }
    let mut reader = Reader { text, at: 0, all: count.all() };
    let mut state = State::default();
    loop {
        while reader.peek().is_some_and(is_space) {
            reader.at += 1;
        }
        if reader.peek().is_none() {
            return Ok(state);
        }
        reader.clause(&mut state)?;
    }
}

/// `isspace(3)` of the C locale; `u8::is_ascii_whitespace` lacks the vertical tab.
fn is_space(byte: u8) -> bool {
    byte.is_ascii_whitespace() || byte == 0x0b
}

/// Whether a capability's name or number can start with this byte.
fn starts_a_name(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_'
}

/// A position in the text. It only advances over ASCII bytes, so it is always a character boundary.
struct Reader<'a> {
    text: &'a str,
    at: usize,
    all: CapabilitySet,
}

impl<'a> Reader<'a> {
    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    fn rest(&self) -> &'a str {
        self.text.get(self.at..).unwrap_or_default()
    }

    fn error(&self, length: usize, problem: Problem) -> TextError {
        TextError { span: self.at..self.at + length, problem }
    }

    /// An error about the next character or its absence.
    fn error_at_next(&self, of: impl FnOnce(char) -> Problem, at_end: Problem) -> TextError {
        match self.rest().chars().next() {
            Some(next) => self.error(next.len_utf8(), of(next)),
            None => self.error(0, at_end),
        }
    }

    /// One clause: a list, or nothing for all, and one or more operators with their flags.
    fn clause(&mut self, state: &mut State) -> Result<(), TextError> {
        let listed = self.peek().is_some_and(starts_a_name);
        let list = if listed { self.list()? } else { self.all };
        match self.peek() {
            Some(b'=') => {
                self.at += 1;
                // Another operator may follow at once: the list is then cleared everywhere before it.
                let flags = match self.peek() {
                    Some(b'+' | b'-') => Flags::default(),
                    _ => self.flags(None)?,
                };
                Self::clear(state, list);
                state.change(flags, |set| set.union(list));
            }
            Some(b'+' | b'-') => {}
            _ if listed => return Err(self.error_at_next(|_| Problem::NoOperator, Problem::NoOperator)),
            _ => return Err(self.error_at_next(Problem::NotAClause, Problem::NoOperator)),
        }
        self.operators(state, list, listed)
    }

    fn clear(state: &mut State, list: CapabilitySet) {
        let every = Flags { effective: true, inheritable: true, permitted: true };
        state.change(every, |set| set.difference(list));
    }

    /// Applies each `+` and `-` with its flags, until white space or the end.
    fn operators(&mut self, state: &mut State, list: CapabilitySet, listed: bool) -> Result<(), TextError> {
        while let Some(operator @ (b'+' | b'-')) = self.peek() {
            if !listed {
                return Err(self.error(1, Problem::NoList(char::from(operator))));
            }
            self.at += 1;
            let flags = self.flags(Some(operator))?;
            if operator == b'+' {
                state.change(flags, |set| set.union(list));
            } else {
                state.change(flags, |set| set.difference(list));
            }
        }
        Ok(())
    }

    /// Flags up to white space, the end, `+` or `-`. `after` is the `+` or `-` before them, which needs at least one flag;
    /// `None` for `=`, which may stand alone.
    fn flags(&mut self, after: Option<u8>) -> Result<Flags, TextError> {
        let mut flags = Flags::default();
        let start = self.at;
        loop {
            match self.peek() {
                Some(b'e') => flags.effective = true,
                Some(b'i') => flags.inheritable = true,
                Some(b'p') => flags.permitted = true,
                Some(b'+' | b'-') if self.at > start => return Ok(flags),
                next if next.is_none_or(is_space) => match after {
                    Some(operator) if self.at == start => {
                        return Err(self.error(0, Problem::NoFlag(char::from(operator))));
                    }
                    _ => return Ok(flags),
                },
                _ => return Err(self.error_at_next(Problem::NotAFlag, Problem::NotAFlag(' '))),
            }
            self.at += 1;
        }
    }

    /// Capabilities separated by commas.
    fn list(&mut self) -> Result<CapabilitySet, TextError> {
        let mut list = CapabilitySet::EMPTY;
        loop {
            self.item(&mut list)?;
            if self.peek() != Some(b',') {
                return Ok(list);
            }
            self.at += 1;
            if !self.peek().is_some_and(starts_a_name) {
                return Err(self.error_at_next(|_| Problem::NothingAfterComma, Problem::NothingAfterComma));
            }
        }
    }

    /// One capability of a list, by name or number, or `all`.
    fn item(&mut self, list: &mut CapabilitySet) -> Result<(), TextError> {
        let rest = self.rest();
        let letter_end = |byte: u8| !(byte.is_ascii_alphabetic() || byte == b'_');
        let length = rest.bytes().position(letter_end).unwrap_or(rest.len());
        if length == 0 {
            let number = self.number()?;
            list.insert(number);
            return Ok(());
        }
        let name = rest.get(..length).unwrap_or_default();
        let digit_follows = rest.as_bytes().get(length).is_some_and(u8::is_ascii_digit);
        if name.eq_ignore_ascii_case("all") && !digit_follows {
            // It replaces what the list has so far: a number over the kernel's last, written before it, is lost.
            *list = self.all;
        } else if let Some(number) = table::number(name) {
            list.insert(number);
        } else {
            return Err(self.error(length, Problem::UnknownName { name: name.into() }));
        }
        self.at += length;
        Ok(())
    }

    /// A number as `strtoul(3)` reads it in base 0: 0x for hex, a leading 0 for octal, as far as the digits go.
    fn number(&mut self) -> Result<u8, TextError> {
        let bytes = self.rest().as_bytes();
        let (radix, prefix) = match (bytes.first(), bytes.get(1), bytes.get(2)) {
            (Some(b'0'), Some(b'x' | b'X'), Some(digit)) if digit.is_ascii_hexdigit() => (16, 2),
            (Some(b'0'), ..) => (8, 0),
            _ => (10, 0),
        };
        let mut length = prefix;
        let mut value = 0u64;
        for digit in bytes.iter().skip(prefix).map_while(|byte| char::from(*byte).to_digit(radix)) {
            value = value.saturating_mul(u64::from(radix)).saturating_add(u64::from(digit));
            length += 1;
        }
        match u8::try_from(value) {
            Ok(number) if number < 64 => {
                self.at += length;
                Ok(number)
            }
            _ => {
                let number = self.rest().get(..length).unwrap_or_default().into();
                Err(self.error(length, Problem::NumberTooHigh { number }))
            }
        }
    }
}
