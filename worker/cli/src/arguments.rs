//! Arguments that several commands take.

use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::str::FromStr;

/// Parses a time of an option in whole seconds: 10, 10s, 2m or 1h.
pub fn seconds(
    option: &'static str,
    range: RangeInclusive<u32>,
) -> impl Fn(&str) -> Result<u32, String> + Clone + Send + Sync + 'static {
    move |text| {
        let (digits, unit) = match text.char_indices().next_back() {
            Some((at, 's')) => (text.get(..at), 1),
            Some((at, 'm')) => (text.get(..at), 60),
            Some((at, 'h')) => (text.get(..at), 3_600),
            _ => (Some(text), 1),
        };
        let digits = digits.filter(|digits| digits.bytes().all(|byte| byte.is_ascii_digit()));
        let number: Option<u32> = digits.and_then(|digits| digits.parse().ok());
        match number.and_then(|number| number.checked_mul(unit)) {
            None => Err(format!("{option} takes whole seconds, such as 10, 10s or 2m")),
            Some(seconds) if !range.contains(&seconds) => {
                Err(format!("{option} must be {} to {} s", range.start(), range.end()))
            }
            Some(seconds) => Ok(seconds),
        }
    }
}

/// Parses a whole number of an option or argument.
pub fn number<T: FromStr>(
    option: &'static str,
) -> impl Fn(&str) -> Result<T, String> + Clone + Send + Sync + 'static {
    move |text| {
        let digits = Some(text).filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()));
        let number = digits.and_then(|digits| digits.parse().ok());
        number.ok_or_else(|| format!("{option} takes a whole number of at most {} bits", size_of::<T>() * 8))
    }
}

/// Parses an address.
pub fn address(text: &str) -> Result<IpAddr, String> {
    text.parse().map_err(|_| "write an IP address, such as 10.1.1.7 or 2001:db8::7".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_in_whole_seconds_with_or_without_a_unit() {
        let parse = seconds("--lease", 1..=86_400);
        for (text, number) in [("10", 10), ("10s", 10), ("2m", 120), ("1h", 3_600), ("24h", 86_400)] {
            assert_eq!(parse(text), Ok(number), "{text}");
        }
        for text in ["", "s", "1.5", "-1", "+1", "10 s", "1d", "ten", "9999999999", "4294967295h", "1µ"] {
            assert_eq!(
                parse(text).unwrap_err(),
                "--lease takes whole seconds, such as 10, 10s or 2m",
                "{text}"
            );
        }
        for text in ["0", "25h"] {
            assert_eq!(parse(text).unwrap_err(), "--lease must be 1 to 86400 s", "{text}");
        }
    }
}
