//! Random capability texts: valid by the grammar, or mutated.
//!
//! Promises: the same seed always produces the same texts, on every machine. Touches nothing.

/// A fixed generator (xorshift64*), so that a seed always produces the same texts.
pub struct Random(pub u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A number below `end`.
    pub fn below(&mut self, end: usize) -> usize {
        usize::try_from((self.next() >> 33) % u64::try_from(end).unwrap()).unwrap()
    }

    fn one<'a>(&mut self, of: &[&'a str]) -> &'a str {
        of[self.below(of.len())]
    }

    fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }
}

/// A text that follows the grammar, with an occasional invalid piece in any place.
pub fn grammatical(random: &mut Random, names: &[String], text: &mut String) {
    for clause in 0..1 + random.below(3) {
        if clause > 0 || random.chance(5) {
            text.push_str(random.one(&[" ", " ", " ", "  ", "\t", "\n", "\u{b}", "\r", "\u{c}", ""]));
        }
        let items = if random.chance(12) { 0 } else { 1 + random.below(4) };
        for item in 0..items {
            if item > 0 {
                text.push_str(if random.chance(98) { "," } else { random.one(&[", ", ",,", " ,", "", ";"]) });
            }
            match random.below(20) {
                0..12 => {
                    let name = &names[random.below(names.len())];
                    match random.below(4) {
                        0 => text.push_str(&name.to_ascii_uppercase()),
                        1 => text.extend(
                            name.chars().map(|c| if random.chance(50) { c.to_ascii_uppercase() } else { c }),
                        ),
                        _ => text.push_str(name),
                    }
                }
                12 | 13 => text.push_str(random.one(&["all", "ALL", "aLl"])),
                14 => text.push_str(&random.below(70).to_string()),
                15 => text.push_str(&format!("0x{:x}", random.below(70))),
                16 => text.push_str(&format!("0X{:X}", random.below(70))),
                17 => text.push_str(&format!("0{:o}", random.below(70))),
                18 => text.push_str(&random.below(64).to_string()),
                _ if random.chance(60) => text.push_str("all"),
                _ => text.push_str(random.one(&[
                    "cap_",
                    "_",
                    "chown",
                    "al",
                    "alls",
                    "all2",
                    "0x",
                    "09",
                    "99999999999999999999",
                    "é",
                ])),
            }
        }
        for operator in 0..1 + random.below(3) {
            text.push_str(if operator == 0 {
                random.one(&["=", "=", "=", "+", "-", "=+", "=-"])
            } else if random.chance(95) {
                random.one(&["+", "-"])
            } else {
                random.one(&["=", ""])
            });
            // Usually at least one flag: only `=` is valid without one.
            for _ in 0..random.below(4).max(usize::from(random.chance(90))) {
                text.push_str(if random.chance(99) {
                    random.one(&["e", "i", "p"])
                } else {
                    random.one(&["E", "x", "_", "1", "=", "é"])
                });
            }
        }
    }
}

/// Edits one to three single characters at random positions.
pub fn mutate(random: &mut Random, text: &mut String) {
    const PIECES: &[&str] = &[
        "=", "+", "-", ",", " ", "e", "i", "p", "0", "x", "7", "9", "_", "a", "C", "all", "\u{b}", "\u{7f}",
        "é", "/", "~",
    ];
    for _ in 0..1 + random.below(3) {
        let mut at = random.below(text.len() + 1);
        while !text.is_char_boundary(at) {
            at -= 1;
        }
        match random.below(3) {
            0 => text.insert_str(at, random.one(PIECES)),
            1 if at < text.len() => drop(text.remove(at)),
            _ => text.truncate(at),
        }
    }
}
