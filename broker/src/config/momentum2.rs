//! Syntax of Momentum 2 that newer versions of the MTA no longer have: parsed, and refused in scopes that the broker reads.
//!
//! If it were skipped silently, a configured listener would not start.

use super::diagnostic::Problems;
use super::source::Sources;
use super::tree::{Item, Opt, Scope, Value};

/// Reports such items in the scopes that the broker reads.
pub(crate) fn refuse(items: &[Item], sources: &Sources, problems: &mut Problems) {
    within(items, sources, problems, super::is_read);
}

fn within(items: &[Item], sources: &Sources, problems: &mut Problems, read: fn(&str) -> bool) {
    for item in items {
        match item {
            Item::Option(option) => listener(option, sources, problems),
            Item::Scope(scope) if read(sources.text(scope.name)) => {
                attributes(scope, sources, problems);
                within(&scope.items, sources, problems, super::is_read_within);
            }
            Item::Scope(_) => {}
            Item::Include(include) => within(&include.items, sources, problems, read),
        }
    }
}

/// `Esmtp_Listener = ( *:25 )`
fn listener(option: &Opt, sources: &Sources, problems: &mut Problems) {
    let name = sources.text(option.name);
    let Value::Rules { endpoints, .. } = &option.value else {
        if super::is_listener(name) {
            let help =
                format!("write {name} {{ Listen \"ENDPOINT\" {{ }} }}, with one Listen for each endpoint");
            problems.error(option.name, format!("{name} is a scope, not an option"), help);
        }
        return;
    };
    let endpoint = endpoints.first().map_or("ENDPOINT".into(), |first| first.text(sources));
    problems.error(
        option.name,
        format!("{name} = ( … ) is the listener syntax of Momentum 2, which is not supported"),
        format!("write {name} {{ Listen \"{endpoint}\" {{ }} }}, with one Listen for each endpoint"),
    );
}

/// `Binding example <duravip="enabled">`
fn attributes(scope: &Scope, sources: &Sources, problems: &mut Problems) {
    let Some(at) = scope.attributes else { return };
    problems.error(
        at,
        format!(
            "attributes in < > are syntax of Momentum 2, which is not supported in {}",
            sources.text(scope.name)
        ),
        "write it as an option in the scope, such as enable_duravip = true",
    );
}
