//! Why a capability text is refused.
//!
//! Promises: each refusal has the bytes that are wrong, what is wrong with them, and what to write instead.
//! Touches nothing.

use std::ops::Range;

use super::table;

/// Why a text is not a capability text, and where.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{problem}: {}", self.remedy())]
pub struct TextError {
    /// Bytes of the text that are wrong; empty where something is missing.
    pub span: Range<usize>,
    /// What is wrong there.
    pub problem: Problem,
}

/// What is wrong at one place of a capability text.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// A name that no known capability has.
    #[error("no capability is named {name:?}")]
    UnknownName {
        /// The name as written.
        name: String,
    },
    /// A number that no capability can have.
    #[error("{number:?} is more than 63, the highest number a capability can have")]
    NumberTooHigh {
        /// The number as written.
        number: String,
    },
    /// A comma that no name follows.
    #[error("no capability follows the comma")]
    NothingAfterComma,
    /// A clause that starts with `+` or `-`, or `=` followed by one of them.
    #[error("'{0}' has no list of capabilities before it")]
    NoList(char),
    /// A list that no operator follows.
    #[error("no operator follows the list of capabilities")]
    NoOperator,
    /// `+` or `-` without a flag.
    #[error("no flag follows '{0}'")]
    NoFlag(char),
    /// Something among the flags that is not one.
    #[error("{0:?} is not a flag")]
    NotAFlag(char),
    /// Something that starts no clause.
    #[error("{0:?} cannot start a clause")]
    NotAClause(char),
    /// A byte 0, at which C would stop reading.
    #[error("a zero byte stands in the text")]
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
                format!("this kernel's last capability is {}", super::last_cap())
            }
            Problem::NothingAfterComma => "write a capability there, or remove the comma".into(),
            Problem::NoList(_) => "name the capabilities, or all, before the operator".into(),
            Problem::NoOperator => {
                "follow the list with =, + or - and the flags, as in cap_net_admin=ep".into()
            }
            Problem::NoFlag(_) => "write one or more of e, i and p; only = may stand alone".into(),
            Problem::NotAFlag(_) => "flags are e, i and p, in lower case".into(),
            Problem::NotAClause(_) => "start with a capability, with all, or with =".into(),
            Problem::Zero => "remove it".into(),
        }
    }
}
