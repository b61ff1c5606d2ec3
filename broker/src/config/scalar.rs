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

/// A number with at most three digits after the point, in thousandths. Without a point it is as for [`integer`].
pub(crate) fn thousandths(text: &str) -> Option<u32> {
    let Some((whole, fraction)) = text.split_once('.') else {
        return u32::try_from(integer(text)?.checked_mul(1_000)?).ok();
    };
    let digits = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    let decimal = whole == "0" || !whole.starts_with('0');
    if !digits(whole) || !decimal || !digits(fraction) || fraction.len() > 3 {
        return None;
    }
    format!("{whole}{fraction:0<3}").parse().ok()
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
    fn a_number_with_a_point_is_read_in_thousandths() {
        for (text, number) in [
            ("1", Some(1_000)),
            ("0x10", Some(16_000)),
            ("0.5", Some(500)),
            ("2.25", Some(2_250)),
            ("0.001", Some(1)),
            ("10.000", Some(10_000)),
            ("0.0001", None),
            (".5", None),
            ("1.", None),
            ("00.5", None),
            ("-0.5", None),
            ("1e3", None),
            ("1.5.0", None),
            ("4294968", None),
            ("18446744073709551615", None),
        ] {
            assert_eq!(thousandths(text), number, "{text}");
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
