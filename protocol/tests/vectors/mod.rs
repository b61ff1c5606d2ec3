//! Reads frames written down in hex, from the golden file and from WIRE.md. What follows a `#` is a comment.

use std::collections::BTreeMap;

/// The golden file: `[name]`, then lines of hex.
#[allow(dead_code, reason = "each test binary reads what it needs")]
pub fn golden() -> BTreeMap<String, Vec<u8>> {
    let text = include_str!("../golden/frames.txt");
    read(text, |line| line.strip_prefix('[')?.strip_suffix(']'), |_| false)
}

/// The fenced blocks of WIRE.md that are marked `hex` and a frame's name.
#[allow(dead_code, reason = "each test binary reads what it needs")]
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
            assert!(frames.insert(begun.to_owned(), Vec::new()).is_none(), "{begun} is there twice");
            name = Some(begun.to_owned());
        } else if ends(line) {
            name = None;
        } else if let Some(name) = &name {
            let hex = line.split('#').next().unwrap_or_default();
            let bytes = hex.split_whitespace().map(|byte| {
                assert_eq!(byte.len(), 2, "{name}: {byte:?} is no byte");
                u8::from_str_radix(byte, 16).unwrap_or_else(|_| panic!("{name}: {byte:?} is no byte"))
            });
            frames.get_mut(name).unwrap().extend(bytes);
        }
    }
    frames
}

/// A frame as the golden file writes it.
#[allow(dead_code, reason = "each test binary reads what it needs")]
pub fn hex(bytes: &[u8]) -> String {
    let lines = bytes.chunks(16).map(|line| {
        let line: Vec<String> = line.iter().map(|byte| format!("{byte:02x}")).collect();
        line.join(" ")
    });
    lines.collect::<Vec<_>>().join("\n")
}
