//! Parses frames in hexadecimal from `golden/frames.txt` and from the examples of WIRE.md. `#` starts a comment.

use std::collections::BTreeMap;

/// The frames of `golden/frames.txt`: each is a line `[name]` and lines of hexadecimal bytes.
#[allow(dead_code, reason = "not every test uses all functions")]
pub fn golden() -> BTreeMap<String, Vec<u8>> {
    let text = include_str!("../golden/frames.txt");
    read(text, |line| line.strip_prefix('[')?.strip_suffix(']'), |_| false)
}

/// The examples of WIRE.md: fenced blocks marked `hex` and the name of a golden frame.
#[allow(dead_code, reason = "not every test uses all functions")]
pub fn documented() -> BTreeMap<String, Vec<u8>> {
    let text = include_str!("../../WIRE.md");
    read(text, |line| line.strip_prefix("```hex "), |line| line == "```")
}

fn read(
    text: &str,
    begins: impl Fn(&str) -> Option<&str>,
    ends: impl Fn(&str) -> bool,
) -> BTreeMap<String, Vec<u8>> {
    let mut frames = BTreeMap::new();
    let mut name: Option<String> = None;
    for line in text.lines() {
        if let Some(begun) = begins(line) {
            assert!(frames.insert(begun.to_owned(), Vec::new()).is_none(), "duplicate frame {begun}");
            name = Some(begun.to_owned());
        } else if ends(line) {
            name = None;
        } else if let Some(name) = &name {
            let hex = line.split('#').next().unwrap_or_default();
            let bytes = hex.split_whitespace().map(|byte| {
                assert_eq!(byte.len(), 2, "{name}: {byte:?} is not a byte");
                u8::from_str_radix(byte, 16).unwrap_or_else(|_| panic!("{name}: {byte:?} is not a byte"))
            });
            frames.get_mut(name).unwrap().extend(bytes);
        }
    }
    frames
}

/// Formats a frame as in `golden/frames.txt`.
#[allow(dead_code, reason = "not every test uses all functions")]
pub fn hex(bytes: &[u8]) -> String {
    let lines = bytes.chunks(16).map(|line| {
        let line: Vec<String> = line.iter().map(|byte| format!("{byte:02x}")).collect();
        line.join(" ")
    });
    lines.collect::<Vec<_>>().join("\n")
}
