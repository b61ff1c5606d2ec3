//! Paths and parameters of MAIL and RCPT. RFC 5321 section 4.1.2.
//!
//! Promises: accepted text is printable ASCII without a line end, so that it is safe in a header field and in a log.

/// Maximum length of a path, a local part and a domain. RFC 5321 section 4.5.3.1.
const MAX_PATH: usize = 256;
const MAX_LOCAL: usize = 64;
const MAX_DOMAIN: usize = 255;

/// The argument does not have the syntax of a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed;

/// Splits `<path> parameters` into the mailbox, without a source route, and the parameters. The mailbox of
/// `<>` is empty.
pub fn path(text: &str) -> Result<(&str, impl Iterator<Item = &str>), Malformed> {
    let text = text.trim_start_matches(' ');
    let inner = text.strip_prefix('<').ok_or(Malformed)?;
    let end = find_unquoted(inner, '>').ok_or(Malformed)?;
    let (path, rest) = inner.split_at_checked(end).ok_or(Malformed)?;
    let rest = rest.strip_prefix('>').ok_or(Malformed)?;
    if path.len() > MAX_PATH || !(rest.is_empty() || rest.starts_with(' ')) {
        return Err(Malformed);
    }
    let mailbox = match path.strip_prefix('@') {
        // A source route is accepted and ignored. RFC 5321 appendix C.
        Some(route) => route.split_once(':').ok_or(Malformed)?.1,
        None => path,
    };
    Ok((mailbox, rest.split(' ').filter(|word| !word.is_empty())))
}

/// Whether a mailbox is `local@domain`.
pub fn is_mailbox(text: &str) -> bool {
    let at = if text.starts_with('"') { find_unquoted(text, '@') } else { text.find('@') };
    let Some((local, domain)) = at.and_then(|at| text.split_at_checked(at)) else {
        return false;
    };
    is_local(local) && domain.strip_prefix('@').is_some_and(is_domain)
}

fn is_local(local: &str) -> bool {
    let quoted = local.strip_prefix('"').and_then(|rest| rest.strip_suffix('"'));
    let well_formed = match quoted {
        Some(inner) => inner.bytes().all(|byte| (b' '..=b'~').contains(&byte)),
        None => local.split('.').all(|atom| !atom.is_empty() && atom.bytes().all(is_atext)),
    };
    well_formed && local.len() <= MAX_LOCAL
}

fn is_atext(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-/=?^_`{|}~".contains(&byte)
}

/// Whether the text is a domain or an address literal, as in EHLO and mailboxes.
pub fn is_domain(text: &str) -> bool {
    let literal = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    let well_formed = match literal {
        Some(inner) => {
            !inner.is_empty()
                && inner.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".:-".contains(&byte))
        }
        None => text.split('.').all(|label| {
            let is_inner = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
            !label.is_empty() && label.len() <= 63 && !label.starts_with('-') && label.bytes().all(is_inner)
        }),
    };
    well_formed && text.len() <= MAX_DOMAIN
}

/// The position of a character outside of quotes.
fn find_unquoted(text: &str, wanted: char) -> Option<usize> {
    let (mut quoted, mut escaped) = (false, false);
    text.char_indices().find_map(|(at, c)| {
        match c {
            _ if escaped => escaped = false,
            '\\' if quoted => escaped = true,
            '"' => quoted = !quoted,
            _ if c == wanted && !quoted => return Some(at),
            _ => {}
        }
        None
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split(text: &str) -> Option<(&str, Vec<&str>)> {
        path(text).ok().map(|(mailbox, parameters)| (mailbox, parameters.collect()))
    }

    #[test]
    fn paths_are_split_from_their_parameters() {
        assert_eq!(split("<>"), Some(("", vec![])));
        assert_eq!(
            split("<a@b.example> SIZE=1  BODY=7BIT"),
            Some(("a@b.example", vec!["SIZE=1", "BODY=7BIT"]))
        );
        assert_eq!(split("<@x,@y:a@b>"), Some(("a@b", vec![])));
        assert_eq!(split("<\"a>b\"@c>"), Some(("\"a>b\"@c", vec![])));
        for bad in ["", "a@b", "<a@b", "<a@b>SIZE=1", "<@x>"] {
            assert_eq!(split(bad), None, "{bad}");
        }
        assert_eq!(split(&format!("<{}@b>", "a".repeat(255))), None);
    }

    #[test]
    fn mailboxes_are_printable_and_have_both_parts() {
        for good in ["a@b", "a.b+c@d-e.example", "\"a b@c\"@d", "a@[192.0.2.1]", "a@[IPv6:2001:db8::1]"] {
            assert!(is_mailbox(good), "{good}");
        }
        for bad in [
            "",
            "a",
            "@b",
            "a@",
            "a b@c",
            "a@b..c",
            ".a@b",
            "a@b\u{e9}",
            "a\u{1b}@b",
            "\"a\u{7f}\"@b",
            "a@-b",
        ] {
            assert!(!is_mailbox(bad), "{bad}");
        }
        assert!(!is_mailbox(&format!("{}@b", "a".repeat(65))));
    }
}
