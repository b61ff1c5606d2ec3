//! The syntax tree of one file, without any interpretation.
//!
//! The tree holds spans instead of texts, so it stays small and every token has a place for messages.

use std::borrow::Cow;

use super::lexer::unquote;
use super::source::{Sources, Span, Spanned};

/// An item of a file or scope.
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
    /// The place of `<NAME="VALUE">`, which scopes of Momentum 2 have.
    pub attributes: Option<Span>,
    pub items: Vec<Item>,
}

/// `include "path"`, and the items of the included files once they have been read.
#[derive(Debug)]
pub(crate) struct Include {
    pub path: Scalar,
    /// The items of the included files in their order.
    pub items: Vec<Item>,
}

/// The value of an option.
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
    /// The token contains a backslash.
    pub escaped: bool,
}

impl Value {
    /// The span of the whole value, brackets included.
    pub fn span(&self) -> Span {
        match self {
            Value::Scalar(scalar) => scalar.span,
            Value::List { span, .. } | Value::Dict { span, .. } | Value::Rules { span, .. } => *span,
        }
    }
}

impl Scalar {
    /// The text without quotes and escapes.
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

    /// The text and its place.
    pub fn spanned(self, sources: &Sources) -> Spanned<String> {
        Spanned { value: self.text(sources).into_owned(), span: self.span }
    }
}
