//! Tokens of the configuration language, without allocation and in one pass.
//!
//! Comments and white space are skipped. An invalid token is returned as [`Kind::Bad`], and the parser writes the
//! message.

/// The kind of a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Word,
    /// A quoted string, quotes included; `escaped` if it contains a backslash.
    Quoted {
        escaped: bool,
    },
    Equals,
    Comma,
    OpenBrace,
    CloseBrace,
    OpenBracket,
    CloseBracket,
    OpenParen,
    CloseParen,
    End,
    Bad(Bad),
}

/// Why a token is invalid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bad {
    /// A quoted string without its closing quote.
    Quote,
    /// A comment without its `*/`.
    Comment,
    /// A character that the language does not use.
    Character(char),
}

/// A token and its byte range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Token {
    pub kind: Kind,
    pub start: usize,
    pub end: usize,
}

/// Splits a text into tokens. Copy it to look ahead.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Lexer<'t> {
    text: &'t str,
    at: usize,
}

impl<'t> Lexer<'t> {
    pub fn new(text: &'t str) -> Self {
        // Some editors begin a file with a byte order mark.
        let at = if text.starts_with('\u{feff}') { 3 } else { 0 };
        Lexer { text, at }
    }

    /// Goes on at an offset.
    pub fn resume_at(&mut self, offset: usize) {
        self.at = offset;
    }

    fn byte(&self, offset: usize) -> Option<u8> {
        self.text.as_bytes().get(offset).copied()
    }

    fn find(&self, from: usize, what: &str) -> Option<usize> {
        self.text.get(from..)?.find(what).map(|found| from + found)
    }

    /// The next token; [`Kind::End`] at the end of the text, as often as it is called.
    pub fn next(&mut self) -> Token {
        let token = self.scan();
        self.at = token.end;
        token
    }

    fn scan(&mut self) -> Token {
        loop {
            let start = self.at;
            let token = |kind, end| Token { kind, start, end };
            let Some(byte) = self.byte(start) else {
                return token(Kind::End, start);
            };
            let kind = match byte {
                b' ' | b'\t' | b'\r' | b'\n' | 0x0c => {
                    self.at += 1;
                    continue;
                }
                b'#' => {
                    self.at = self.find(start, "\n").unwrap_or(self.text.len());
                    continue;
                }
                b'/' if self.byte(start + 1) == Some(b'*') => match self.find(start + 2, "*/") {
                    Some(end) => {
                        self.at = end + 2;
                        continue;
                    }
                    None => return token(Kind::Bad(Bad::Comment), self.text.len()),
                },
                b'"' => return self.quoted(start),
                b'=' => Kind::Equals,
                b',' => Kind::Comma,
                b'{' => Kind::OpenBrace,
                b'}' => Kind::CloseBrace,
                b'[' => Kind::OpenBracket,
                b']' => Kind::CloseBracket,
                b'(' => Kind::OpenParen,
                b')' => Kind::CloseParen,
                _ if ends_word(byte) => {
                    let bad = Bad::Character(char::from(byte));
                    return token(Kind::Bad(bad), start + 1);
                }
                _ => return token(Kind::Word, self.word_end(start)),
            };
            return token(kind, start + 1);
        }
    }

    fn word_end(&self, start: usize) -> usize {
        let mut end = start;
        while let Some(byte) = self.byte(end) {
            if ends_word(byte) || byte == b'/' && self.byte(end + 1) == Some(b'*') {
                break;
            }
            end += 1;
        }
        end
    }

    fn quoted(&self, start: usize) -> Token {
        let mut escaped = false;
        let mut at = start + 1;
        while let Some(byte) = self.byte(at) {
            match byte {
                b'"' => {
                    return Token { kind: Kind::Quoted { escaped }, start, end: at + 1 };
                }
                b'\\' => {
                    escaped = true;
                    at += 2;
                }
                _ => at += 1,
            }
        }
        Token { kind: Kind::Bad(Bad::Quote), start, end: self.text.len() }
    }
}

/// Whether a byte cannot be part of a bareword. Bytes of non-ASCII characters can.
fn ends_word(byte: u8) -> bool {
    matches!(byte, 0..=0x20 | 0x7f | b'#' | b'"' | b'\'' | b'=' | b',' | b';')
        || matches!(byte, b'{' | b'}' | b'[' | b']' | b'(' | b')')
}

/// The characters of a quoted token without its quotes, each with its offset in `raw`. A backslash escapes a quote or
/// another backslash; before any other character it stands for itself.
pub(crate) fn unquote(raw: &str) -> impl Iterator<Item = (usize, char)> {
    let inner = raw.strip_prefix('"').and_then(|rest| rest.strip_suffix('"'));
    let shift = usize::from(inner.is_some());
    let quoted = inner.is_some();
    let mut chars = inner.unwrap_or(raw).char_indices().peekable();
    std::iter::from_fn(move || {
        let (at, c) = chars.next()?;
        if quoted
            && c == '\\'
            && let Some((_, escaped)) = chars.next_if(|(_, next)| matches!(next, '"' | '\\'))
        {
            return Some((at + shift, escaped));
        }
        Some((at + shift, c))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(text: &str) -> Vec<&str> {
        let mut lexer = Lexer::new(text);
        std::iter::from_fn(|| {
            let token = lexer.next();
            (token.kind != Kind::End).then(|| &text[token.start..token.end])
        })
        .collect()
    }

    #[test]
    fn barewords_end_at_delimiters() {
        assert_eq!(
            texts("Listen /tmp/2025{a=127.0.0.0/8}x/*c*/y#z\n[*]:25"),
            ["Listen", "/tmp/2025", "{", "a", "=", "127.0.0.0/8", "}", "x", "y", "[", "*", "]", ":25"]
        );
    }

    #[test]
    fn a_backslash_is_passed_through_before_an_ordinary_character() {
        let read = |raw: &str| unquote(raw).map(|(_, c)| c).collect::<String>();
        assert_eq!(read(r#""^\d+\.x""#), r"^\d+\.x");
        assert_eq!(read(r#""a\"b\\""#), r#"a"b\"#);
        assert_eq!(read(r"a\b"), r"a\b");
        assert_eq!(unquote(r#""a\"b""#).last(), Some((4, 'b')));
    }

    #[test]
    fn an_unterminated_token_extends_to_the_end() {
        for (text, bad) in [
            ("\"abc\\\"", Bad::Quote),
            ("\"abc\\", Bad::Quote),
            ("/* abc *", Bad::Comment),
            ("/*/", Bad::Comment),
        ] {
            let token = Lexer::new(text).next();
            assert_eq!((token.kind, token.end), (Kind::Bad(bad), text.len()));
        }
    }
}
