//! Names and numbers of capabilities, as the `caps` crate lists them.
//!
//! Promises: a name in any case gives its number, a number below the table's end gives its lower-case name, and a
//! misspelt name gives the most similar one. Touches nothing.

use std::sync::OnceLock;

use caps::Capability;

use crate::config::nearest::nearest;

/// Names by number; `None` for an unused number, of which Linux has none so far.
fn names() -> &'static [Option<String>] {
    static NAMES: OnceLock<Vec<Option<String>>> = OnceLock::new();
    NAMES.get_or_init(|| {
        let known = caps::all();
        let end = known.iter().map(Capability::index).max().map_or(0, |last| usize::from(last) + 1);
        let mut names = vec![None; end];
        for capability in known {
            if let Some(slot) = names.get_mut(usize::from(capability.index())) {
                *slot = Some(capability.to_string().to_ascii_lowercase());
            }
        }
        names
    })
}

/// The name of `number`, such as `cap_chown` for 0; `None` for a capability newer than the table.
pub(super) fn name(number: u8) -> Option<&'static str> {
    names().get(usize::from(number))?.as_deref()
}

/// The number of the capability named `name`, in any case.
pub(super) fn number(name: &str) -> Option<u8> {
    name.to_ascii_uppercase().parse::<Capability>().ok().map(|capability| capability.index())
}

/// The known capability name that is most similar to `wrong`, if one is similar enough.
pub(super) fn nearest_capability(wrong: &str) -> Option<&'static str> {
    let wrong = wrong.to_ascii_lowercase();
    // `net_admin` for `cap_net_admin` and `cap_net_bind` for `cap_net_bind_service` are the most common mistakes, but
    // their edit distance is as large as that of unrelated names.
    let prefixed = format!("cap_{wrong}");
    let all = || names().iter().flatten().map(String::as_str);
    let only_with_prefix = |prefix: &str| {
        let mut matches = all().filter(|name| name.starts_with(prefix));
        matches.next().filter(|_| matches.next().is_none())
    };
    all()
        .find(|name| *name == prefixed)
        .or_else(|| only_with_prefix(&wrong))
        .or_else(|| only_with_prefix(&prefixed))
        .or_else(|| nearest(&wrong, all()))
        .or_else(|| nearest(&prefixed, all()))
}
