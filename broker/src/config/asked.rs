//! Which options the code asks for, for tests alone: a reader notes each here as it reads it.

use std::cell::RefCell;
use std::collections::BTreeSet;

thread_local! {
    static ASKED: RefCell<BTreeSet<(String, String)>> = RefCell::default();
}

/// Notes that an option of a scope is asked for.
pub(super) fn note(scope: &str, option: &str) {
    ASKED.with_borrow_mut(|asked| asked.insert((scope.to_owned(), option.to_owned())));
}

/// The options, each with its scope, that reading a text asks for, mistakes in it or not.
pub(crate) fn asked_for(text: &str) -> BTreeSet<(String, String)> {
    ASKED.take();
    let _only_what_it_asked_for_counts = super::parse_text("asked", text);
    ASKED.take()
}
