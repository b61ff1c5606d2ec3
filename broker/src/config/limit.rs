//! Resource limits by the names that setrlimit(2) gives them, in lower case and without `RLIMIT_`.

use std::fmt;

/// A resource that getrlimit(2) describes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Resource(usize);

/// The names, in the order of the kernel's numbers (include/uapi/asm-generic/resource.h).
const NAMES: [&str; 16] = [
    "cpu",
    "fsize",
    "data",
    "stack",
    "core",
    "rss",
    "nproc",
    "nofile",
    "memlock",
    "as",
    "locks",
    "sigpending",
    "msgqueue",
    "nice",
    "rtprio",
    "rttime",
];

impl Resource {
    /// Finds a resource by its name, ignoring case.
    pub fn named(name: &str) -> Option<Self> {
        let position = NAMES.iter().position(|known| known.eq_ignore_ascii_case(name));
        position.map(Resource)
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        NAMES.get(self.0).copied().unwrap_or_default()
    }

    /// Its number on every architecture that Rust's tier 1 Linux targets have.
    pub fn number(self) -> u32 {
        u32::try_from(self.0).unwrap_or(u32::MAX)
    }

    /// All names.
    pub fn names() -> impl Iterator<Item = &'static str> {
        NAMES.into_iter()
    }
}

/// A set of resources.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Resources(u16);

impl Resources {
    /// Every resource.
    pub const ALL: Self = Self(u16::MAX);
    /// No resource.
    pub const NONE: Self = Self(0);

    /// Whether it has a resource.
    pub fn contains(self, resource: Resource) -> bool {
        self.has_number(resource.number())
    }

    /// Whether it has the resource of this number.
    pub fn has_number(self, number: u32) -> bool {
        1_u16.checked_shl(number).is_some_and(|bit| self.0 & bit != 0)
    }

    /// The names of its resources that another set lacks.
    pub fn names_not_in(self, other: Self) -> impl Iterator<Item = &'static str> {
        (0..NAMES.len())
            .map(Resource)
            .filter(move |it| self.contains(*it) && !other.contains(*it))
            .map(Resource::name)
    }
}

impl FromIterator<Resource> for Resources {
    fn from_iter<I: IntoIterator<Item = Resource>>(resources: I) -> Self {
        let bits = resources.into_iter().filter_map(|resource| 1_u16.checked_shl(resource.number()));
        Self(bits.fold(0, |set, bit| set | bit))
    }
}

/// A resource and its limit, in the resource's own unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Limit {
    /// The resource.
    pub resource: Resource,
    /// The limit; `None`: unlimited.
    pub value: Option<u64>,
}

impl Limit {
    /// Parses a limit from a resource's name and a value; the error is the remedy.
    pub(crate) fn parse(resource: &str, value: &str) -> Result<Self, String> {
        let Some(resource) = Resource::named(resource) else {
            return Err(match super::nearest::nearest(resource, Resource::names()) {
                Some(meant) => format!("did you mean {meant}?"),
                None => format!("known resources: {}", NAMES.join(", ")),
            });
        };
        if value.eq_ignore_ascii_case("unlimited") {
            return Ok(Limit { resource, value: None });
        }
        // The highest number is RLIM_INFINITY, which is written `unlimited`.
        match super::scalar::integer(value).filter(|value| *value < u64::MAX) {
            Some(value) => Ok(Limit { resource, value: Some(value) }),
            None => Err(format!("write {} with a whole number or unlimited", resource.name())),
        }
    }

    /// Whether another limit is for the same resource and not higher than this one.
    pub fn covers(&self, other: &Limit) -> bool {
        let value_of = |limit: &Limit| limit.value.unwrap_or(u64::MAX);
        self.resource == other.resource && value_of(other) <= value_of(self)
    }
}

impl fmt::Display for Limit {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.value {
            Some(value) => write!(out, "{}={value}", self.resource.name()),
            None => write!(out, "{}=unlimited", self.resource.name()),
        }
    }
}
