//! The value of security.capabilities: parsing any text returns, and printed sets parse as the same sets.
#![no_main]

use libfuzzer_sys::fuzz_target;
use portreeve_broker::capability::{Count, Privileges, parse, parse_with};

fuzz_target!(|text: &str| {
    for count in [1, 41, 63].map(Count::new) {
        match parse_with(text, count) {
            Ok(state) => {
                let printed = state.to_text_with(count);
                assert_eq!(parse_with(&printed, count), Ok(state), "{text:?} is printed as {printed:?}");
            }
            Err(error) => assert!(!error.to_string().contains(|c: char| c.is_control()), "{error}"),
        }
    }
    let _ = parse(text);
    let _ = Privileges::parse(text);
});
