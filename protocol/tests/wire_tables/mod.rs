//! A codec that interprets the tables of WIRE.md and shares no code with the crate.

use std::collections::BTreeMap;

/// The tables of WIRE.md, without their header rows, by the heading above each.
pub struct WireTables(BTreeMap<String, Vec<Vec<String>>>);

/// Which texts and lists of a generated message are filled, and up to which length. All others are empty.
pub struct Sample {
    /// The number of bounded values to skip before the one to fill.
    to_skip: Option<usize>,
    /// The length beyond the bound.
    extra: usize,
    /// The value to fill was found.
    reached: bool,
    /// Fill all bounded values.
    all: bool,
    /// The tag of every choice, or its last tag if it has fewer.
    variant: usize,
}

impl Sample {
    /// A message without filled values. Each choice has this variant, or its last one.
    pub fn empty(variant: usize) -> Self {
        Self { to_skip: None, extra: 0, reached: false, all: false, variant }
    }

    /// The longest message: every bounded value is as long as its bound.
    pub fn longest(variant: usize) -> Self {
        Self { all: true, ..Self::empty(variant) }
    }

    /// A message in which bounded value number `at` has the maximum length.
    pub fn full(variant: usize, at: usize) -> Self {
        Self { to_skip: Some(at), ..Self::empty(variant) }
    }

    /// A message in which bounded value number `at` exceeds the maximum length by one.
    pub fn overfull(variant: usize, at: usize) -> Self {
        Self { extra: 1, ..Self::full(variant, at) }
    }

    /// Whether the message has a bounded value number `at`.
    pub fn reached(&self) -> bool {
        self.reached
    }

    fn length(&mut self, bound: usize) -> usize {
        match self.to_skip {
            _ if self.all => bound,
            Some(0) => {
                self.to_skip = None;
                self.reached = true;
                bound + self.extra
            }
            Some(to_skip) => {
                self.to_skip = Some(to_skip - 1);
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
    Trailing(&'d str),
    List(&'d str, usize),
    Array(&'d str, usize),
    Structure(Vec<&'d str>),
    Choice(Vec<(u32, &'d str)>),
}

impl WireTables {
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
                if let Some(of) = within("trailing") {
                    return Type::Trailing(of);
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

    /// Removes one value of type `name` from the front of `bytes`. Panics if the tables do not allow the bytes.
    pub fn decode(&self, name: &str, bytes: &mut &[u8]) {
        match self.type_of(name) {
            Type::Integer(size) => _ = take(bytes, size),
            Type::Bool => assert!(take(bytes, 1)[0] <= 1, "not a bool"),
            Type::Text(bound) => {
                let length = integer(bytes, 8);
                assert!(length <= bound, "text({bound}) of {length}");
                std::str::from_utf8(take(bytes, length)).unwrap();
            }
            Type::Option(of) => match integer(bytes, 1) {
                0 => {}
                1 => self.decode(of, bytes),
                other => panic!("{other} is not the tag of an option"),
            },
            Type::Trailing(_) if bytes.is_empty() => {}
            Type::Trailing(of) => {
                assert_eq!(integer(bytes, 1), 1, "not the tag of a trailing field");
                self.decode(of, bytes);
            }
            Type::List(of, bound) => {
                let count = integer(bytes, 8);
                assert!(count <= bound, "list({bound}) of {count}");
                (0..count).for_each(|_| self.decode(of, bytes));
            }
            Type::Array(of, count) => (0..count).for_each(|_| self.decode(of, bytes)),
            Type::Structure(fields) => fields.into_iter().for_each(|field| self.decode(field, bytes)),
            Type::Choice(variants) => {
                let tag = u32::try_from(integer(bytes, 4)).unwrap();
                let (_, carries) = variants.iter().find(|row| row.0 == tag).expect("unknown tag");
                self.decode(carries, bytes);
            }
        }
    }

    /// Encodes a message of type `name`. Integers are 0, options are absent, and texts and lists are empty unless
    /// `sample` fills them.
    pub fn encode(&self, name: &str, sample: &mut Sample) -> Vec<u8> {
        match self.type_of(name) {
            Type::Integer(size) => vec![0; size],
            Type::Bool => vec![0],
            Type::Option(of) if sample.all => [vec![1], self.encode(of, sample)].concat(),
            Type::Option(_) => vec![0],
            // Present if a bounded value in it may be the one to fill.
            Type::Trailing(of) if sample.all || sample.to_skip.is_some() => {
                [vec![1], self.encode(of, sample)].concat()
            }
            Type::Trailing(_) => Vec::new(),
            Type::Text(bound) => {
                let length = sample.length(bound);
                let mut bytes = (length as u64).to_le_bytes().to_vec();
                bytes.resize(8 + length, b'x');
                bytes
            }
            Type::List(of, bound) => {
                let length = sample.length(bound);
                // One item, because the value to fill can be inside it.
                let length = if length == 0 && sample.to_skip.is_some() { 1 } else { length };
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
