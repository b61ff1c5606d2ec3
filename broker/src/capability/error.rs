//! Errors of the capability text parser.
//!
//! Promises: each error has the byte range that is wrong, the cause, and what to write instead. Touches nothing.

use std::ops::Range;

use super::table;

/// An error in a capability text and its place.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{problem}: {}", self.remedy())]
pub struct TextError {
    /// The byte range that is wrong; empty if something is missing.
    pub span: Range<usize>,
    /// What is wrong there.
    pub problem: Problem,
}

/// The kinds of errors in a capability text.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// A name that no known capability has.
    #[error("no capability is named {name:?}")]
    UnknownName {
        /// The name as written.
        name: String,
    },
    /// A number that is too high for a capability.
    #[error("{number:?} is above 63, the highest capability number")]
    NumberTooHigh {
        /// The number as written.
        number: String,
    },
    /// A comma that no name follows.
    #[error("a capability is missing after the comma")]
    NothingAfterComma,
    /// A clause that starts with `+` or `-`, or `=` followed by one of them.
    #[error("a list of capabilities is missing before '{0}'")]
    NoList(char),
    /// A list that no operator follows.
    #[error("an operator is missing after the list of capabilities")]
    NoOperator,
    /// `+` or `-` without a flag.
    #[error("a flag is missing after '{0}'")]
    NoFlag(char),
    /// A character among the flags that is not a flag.
    #[error("{0:?} is not a flag")]
    NotAFlag(char),
    /// A character that cannot start a clause.
    #[error("{0:?} cannot start a clause")]
    NotAClause(char),
    /// A byte 0, at which C would stop reading.
    #[error("the text contains a NUL byte")]
    Zero,
}

impl TextError {
    /// What to write instead.
    pub fn remedy(&self) -> String {
        match &self.problem {
            Problem::UnknownName { name } => match table::nearest_capability(name) {
                Some(nearest) => format!("write {nearest}"),
                None => "see capabilities(7) for the names".into(),
            },
            Problem::NumberTooHigh { .. } => {
                format!("the highest capability of this kernel is {}", super::last_cap())
            }
            Problem::NothingAfterComma => "write a capability there, or remove the comma".into(),
            Problem::NoList(_) => "name the capabilities, or all, before the operator".into(),
            Problem::NoOperator => {
                "follow the list with =, + or - and the flags, as in cap_net_admin=ep".into()
            }
            Problem::NoFlag(_) => "write one or more of e, i and p; only = can be without flags".into(),
            Problem::NotAFlag(_) => "write flags e, i and p in lower case".into(),
            Problem::NotAClause(_) => "start with a capability, with all, or with =".into(),
            Problem::Zero => "remove it".into(),
        }
    }
}
