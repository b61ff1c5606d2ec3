//! Test support: records which options the code reads.

use std::cell::RefCell;
use std::collections::BTreeSet;

thread_local! {
    static READ: RefCell<BTreeSet<(String, String)>> = RefCell::default();
}

/// Records that an option of a scope is read.
pub(super) fn record(scope: &str, option: &str) {
    READ.with_borrow_mut(|read| read.insert((scope.to_owned(), option.to_owned())));
}

/// The options, each with its scope, that are read while `text` is parsed, with or without errors.
pub(crate) fn options_read(text: &str) -> BTreeSet<(String, String)> {
    READ.take();
    let _ = super::parse_text("text", text); // only the recorded options are of interest
    READ.take()
}
