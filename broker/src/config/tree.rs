//! The tree of one file: what stands where, with nothing decided about its meaning.
//!
//! Texts stay in the sources; the tree holds spans of every token that carries meaning, so a file of ten
//! megabytes costs little more than itself and any token can be pointed at.

use std::borrow::Cow;

use super::lexer::unquote;
use super::source::{Sources, Span, Spanned};

/// What stands in a file or scope.
#[derive(Debug)]
pub(crate) enum Item {
    Option(Opt),
    Scope(Scope),
    Include(Include),
}

/// `name = value`
#[derive(Debug)]
pub(crate) struct Opt {
    pub name: Span,
    pub value: Value,
}

/// `name instance { … }`
#[derive(Debug)]
pub(crate) struct Scope {
    pub name: Span,
    pub instance: Option<Scalar>,
    /// Where `<NAME="VALUE">` begins, which scopes of Momentum 2 have.
    pub attributes: Option<Span>,
    pub items: Vec<Item>,
}

/// `include "path"`, and what was found there once it has been read.
#[derive(Debug)]
pub(crate) struct Include {
    pub path: Scalar,
    /// The items of the included files in their order.
    pub items: Vec<Item>,
}

/// What an option is set to.
#[derive(Debug)]
pub(crate) enum Value {
    Scalar(Scalar),
    /// `( a, b )`
    List {
        span: Span,
        items: Vec<Scalar>,
    },
    /// `[ key = value ]`
    Dict {
        span: Span,
        entries: Vec<(Scalar, Scalar)>,
    },
    /// `( endpoint [ rules ] )` of a listener of Momentum 2.
    Rules {
        span: Span,
        endpoints: Vec<Scalar>,
    },
}

/// A bareword or quoted string.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Scalar {
    /// The token, quotes included.
    pub span: Span,
    pub quoted: bool,
    /// A backslash stands in it.
    pub escaped: bool,
}

impl Value {
    /// All of it, brackets included.
    pub fn span(&self) -> Span {
        match self {
            Value::Scalar(scalar) => scalar.span,
            Value::List { span, .. } | Value::Dict { span, .. } | Value::Rules { span, .. } => *span,
        }
    }
}

impl Scalar {
    /// The text as it was meant.
    pub fn text(self, sources: &Sources) -> Cow<'_, str> {
        let raw = sources.text(self.span);
        match (self.quoted, self.escaped) {
            (false, _) => raw.into(),
            (true, false) => {
                raw.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')).unwrap_or(raw).into()
            }
            (true, true) => unquote(raw).map(|(_, c)| c).collect::<String>().into(),
        }
    }

    /// The text with its place.
    pub fn spanned(self, sources: &Sources) -> Spanned<String> {
        Spanned { value: self.text(sources).into_owned(), span: self.span }
    }
}
