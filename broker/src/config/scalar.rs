//! Scalar values: booleans and integers.

/// on/off, true/false, yes/no, enabled/disabled, 1/0.
pub(crate) fn boolean(text: &str) -> Result<bool, String> {
    let is = |words: [&str; 5]| words.iter().any(|word| word.eq_ignore_ascii_case(text));
    if is(["true", "on", "yes", "enabled", "1"]) {
        return Ok(true);
    }
    if is(["false", "off", "no", "disabled", "0"]) {
        return Ok(false);
    }
    Err("write true or false".to_owned())
}

/// Decimal, 0x hexadecimal or 0 octal.
pub(crate) fn integer(text: &str) -> Option<u64> {
    let (digits, radix) = match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        Some(digits) => (digits, 16),
        None if text.len() > 1 && text.starts_with('0') => (text, 8),
        None => (text, 10),
    };
    // from_str_radix would take a sign.
    let number = Some(digits).filter(|digits| digits.bytes().all(|byte| byte.is_ascii_hexdigit()));
    number.and_then(|digits| u64::from_str_radix(digits, radix).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integers_are_decimal_hexadecimal_or_octal() {
        for (text, number) in [
            ("0", Some(0)),
            ("25", Some(25)),
            ("0x1F", Some(31)),
            ("010", Some(8)),
            ("08", None),
            ("+1", None),
            ("-1", None),
            ("", None),
            ("0x", None),
            ("1k", None),
            ("99999999999999999999", None),
        ] {
            assert_eq!(integer(text), number, "{text}");
        }
    }

    #[test]
    fn booleans_have_five_pairs_in_any_case() {
        for (yes, no) in
            [("ON", "off"), ("True", "false"), ("yes", "No"), ("enabled", "DISABLED"), ("1", "0")]
        {
            assert_eq!((boolean(yes), boolean(no)), (Ok(true), Ok(false)));
        }
        assert!(boolean("2").is_err());
    }
}
