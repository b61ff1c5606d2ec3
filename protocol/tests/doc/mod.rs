//! A codec that is driven by the tables of WIRE.md and shares nothing with the crate's.

use std::collections::BTreeMap;

/// The tables of the document, by the heading that each stands under, without their head.
pub struct Doc(BTreeMap<String, Vec<Vec<String>>>);

/// Which bounded value of a message is filled, and how far; all others are empty.
pub struct Sample {
    /// How many bounded values are still passed by.
    left: Option<usize>,
    extra: usize,
    reached: bool,
    everything: bool,
    variant: usize,
}

impl Sample {
    /// Nothing is filled. Of each choice it is this variant, or the last.
    pub fn empty(variant: usize) -> Self {
        Self { left: None, extra: 0, reached: false, everything: false, variant }
    }

    /// Every bounded value is as long as its bound: the longest message.
    pub fn longest(variant: usize) -> Self {
        Self { everything: true, ..Self::empty(variant) }
    }

    /// The bounded value at this place is as long as its bound.
    pub fn full(variant: usize, at: usize) -> Self {
        Self { left: Some(at), ..Self::empty(variant) }
    }

    /// It is longer by one.
    pub fn overfull(variant: usize, at: usize) -> Self {
        Self { extra: 1, ..Self::full(variant, at) }
    }

    /// Whether there was such a place.
    pub fn reached(&self) -> bool {
        self.reached
    }

    fn length(&mut self, bound: usize) -> usize {
        match self.left {
            _ if self.everything => bound,
            Some(0) => {
                self.left = None;
                self.reached = true;
                bound + self.extra
            }
            Some(left) => {
                self.left = Some(left - 1);
                0
            }
            None => 0,
        }
    }
}

enum Type<'d> {
    Integer(usize),
    Bool,
    Text(usize),
    Option(&'d str),
    List(&'d str, usize),
    Array(&'d str, usize),
    Structure(Vec<&'d str>),
    Choice(Vec<(u32, &'d str)>),
}

impl Doc {
    pub fn read(text: &str) -> Self {
        let mut tables: BTreeMap<String, Vec<Vec<String>>> = BTreeMap::new();
        let (mut heading, mut in_table) = (String::new(), false);
        for line in text.lines() {
            if line.starts_with('#') {
                heading = line.trim_start_matches('#').trim().to_owned();
            }
            let Some(cells) = line.strip_prefix("| ").and_then(|line| line.strip_suffix(" |")) else {
                in_table &= line.starts_with("|---");
                continue;
            };
            if in_table {
                let cells = cells.split(" | ").map(|cell| cell.trim_matches('`').to_owned());
                tables.get_mut(&heading).unwrap().push(cells.collect());
            } else {
                tables.entry(heading.clone()).or_default();
                in_table = true;
            }
        }
        Self(tables)
    }

    pub fn rows(&self, heading: &str) -> &[Vec<String>] {
        self.0.get(heading).unwrap_or_else(|| panic!("WIRE.md has no table under {heading:?}"))
    }

    fn type_of<'d>(&'d self, name: &'d str) -> Type<'d> {
        let bounded = |inner: &'d str| {
            let (of, bound) = inner.rsplit_once(", ").unwrap();
            (of, bound.parse().unwrap())
        };
        let within = |word: &str| name.strip_prefix(word)?.strip_prefix('(')?.strip_suffix(')');
        match name {
            "u8" => Type::Integer(1),
            "u16" => Type::Integer(2),
            "u32" => Type::Integer(4),
            "u64" => Type::Integer(8),
            "bool" => Type::Bool,
            _ => {
                if let Some(bound) = within("text") {
                    return Type::Text(bound.parse().unwrap());
                }
                if let Some(of) = within("option") {
                    return Type::Option(of);
                }
                if let Some((of, bound)) = within("list").map(bounded) {
                    return Type::List(of, bound);
                }
                if let Some((of, count)) = within("array").map(bounded) {
                    return Type::Array(of, count);
                }
                let rows = self.rows(name);
                match rows.first().map(|row| row[0].parse::<u32>()) {
                    Some(Ok(_)) => {
                        let variants = rows.iter().map(|row| (row[0].parse().unwrap(), row[1].as_str()));
                        Type::Choice(variants.collect())
                    }
                    _ => Type::Structure(rows.iter().map(|row| row[1].as_str()).collect()),
                }
            }
        }
    }

    /// Takes one value off the front, or panics where the tables do not allow it.
    pub fn decode(&self, name: &str, bytes: &mut &[u8]) {
        match self.type_of(name) {
            Type::Integer(size) => _ = take(bytes, size),
            Type::Bool => assert!(take(bytes, 1)[0] <= 1, "no bool"),
            Type::Text(bound) => {
                let length = integer(bytes, 8);
                assert!(length <= bound, "text({bound}) of {length}");
                std::str::from_utf8(take(bytes, length)).unwrap();
            }
            Type::Option(of) => match integer(bytes, 1) {
                0 => {}
                1 => self.decode(of, bytes),
                other => panic!("{other} is no option"),
            },
            Type::List(of, bound) => {
                let count = integer(bytes, 8);
                assert!(count <= bound, "list of {count}, {bound} fit");
                (0..count).for_each(|_| self.decode(of, bytes));
            }
            Type::Array(of, count) => (0..count).for_each(|_| self.decode(of, bytes)),
            Type::Structure(fields) => fields.into_iter().for_each(|field| self.decode(field, bytes)),
            Type::Choice(variants) => {
                let tag = u32::try_from(integer(bytes, 4)).unwrap();
                let (_, carries) = variants.iter().find(|row| row.0 == tag).expect("no such tag");
                self.decode(carries, bytes);
            }
        }
    }

    /// A message whose integers are 0, whose options are absent, and whose texts and lists are empty but for what the
    /// sample fills.
    pub fn encode(&self, name: &str, sample: &mut Sample) -> Vec<u8> {
        match self.type_of(name) {
            Type::Integer(size) => vec![0; size],
            Type::Bool => vec![0],
            Type::Option(of) if sample.everything => [vec![1], self.encode(of, sample)].concat(),
            Type::Option(_) => vec![0],
            Type::Text(bound) => {
                let length = sample.length(bound);
                let mut bytes = (length as u64).to_le_bytes().to_vec();
                bytes.resize(8 + length, b'x');
                bytes
            }
            Type::List(of, bound) => {
                let length = sample.length(bound);
                // One item, while a place further inside is looked for.
                let length = if length == 0 && sample.left.is_some() { 1 } else { length };
                let items = (0..length).flat_map(|_| self.encode(of, sample));
                (length as u64).to_le_bytes().into_iter().chain(items).collect()
            }
            Type::Array(of, count) => (0..count).flat_map(|_| self.encode(of, sample)).collect(),
            Type::Structure(fields) => fields.into_iter().flat_map(|of| self.encode(of, sample)).collect(),
            Type::Choice(variants) => {
                let (tag, carries) = variants[sample.variant.min(variants.len() - 1)];
                tag.to_le_bytes().into_iter().chain(self.encode(carries, sample)).collect()
            }
        }
    }
}

fn take<'b>(bytes: &mut &'b [u8], count: usize) -> &'b [u8] {
    let (taken, rest) = bytes.split_at_checked(count).expect("the body is too short");
    *bytes = rest;
    taken
}

fn integer(bytes: &mut &[u8], size: usize) -> usize {
    let value = take(bytes, size).iter().rev().fold(0_u64, |value, byte| value << 8 | u64::from(*byte));
    usize::try_from(value).unwrap()
}
