//! Names at top level that the broker does not read. Most belong to the MTA; a name that is probably a misspelt scope of the
//! broker is an error, because a reload would otherwise close what that scope configures.

use std::collections::HashMap;

use strsim::osa_distance;

use super::diagnostic::Problems;
use super::nearest::nearest;
use super::source::{Sources, Span, Spanned};
use super::tree::{Item, Scope, Value};

/// The scopes that the broker reads at top level, except listeners.
const READ: [&str; 6] = ["security", "broker", "worker", "cluster", "binding", "binding_group"];

/// Scopes of the broker that belong inside another scope, and that scope.
const WITHIN: [(&str, &str); 6] = [
    ("listen", "ESMTP_Listener"),
    ("topology", "cluster"),
    ("engine", "cluster"),
    ("check", "cluster"),
    ("permit", "broker"),
    ("peer", "broker"),
];

/// How the name of a listener scope ends.
const LISTENER: &str = "listener";

/// Reports the skipped names that are probably mistakes, and returns all of them in the order of the files.
pub(super) fn check(
    items: &[Item],
    skipped: HashMap<String, Span>,
    sources: &Sources,
    problems: &mut Problems,
) -> Vec<Spanned<String>> {
    let mut skipped: Vec<_> = skipped.into_iter().map(|(value, span)| Spanned { value, span }).collect();
    skipped.sort_by_key(|name| name.span);
    let mut reported = Vec::new();
    for name in &skipped {
        if let Some((message, help)) = mistake(&name.value) {
            problems.error(name.span, message, help);
            reported.push(name.span);
        }
    }
    without_effect(items, &reported, sources, problems);
    skipped
}

/// What is wrong with a name that the MTA does not have and that is, or resembles, one of the broker's; and the remedy.
fn mistake(name: &str) -> Option<(String, String)> {
    let is = |other: &str| name.eq_ignore_ascii_case(other);
    if let Some((within, scope)) = WITHIN.iter().find(|(within, _)| is(within)) {
        let message = format!("{name} has no effect at top level");
        return Some((message, format!("move it into a scope: {scope} {{ {within} … }}")));
    }
    if let Some(scope) = READ.into_iter().find(|scope| is(scope)) {
        let help = format!("write {scope} {{ … }}");
        return Some((format!("{scope} is a scope, not an option"), help));
    }
    let meant = listener_meant(name).or_else(|| nearest(name, READ).map(str::to_owned))?;
    let message = format!("{name:?} is neither a scope of the broker nor of the MTA");
    Some((message, format!("did you mean {meant}?")))
}

/// The name of a listener scope that was probably meant: a name that ends almost in `_Listener`.
fn listener_meant(name: &str) -> Option<String> {
    // momentum2 reports an option of this name.
    if super::is_listener(name) {
        return None;
    }
    let word = name.to_ascii_lowercase();
    let tail = |length: usize| {
        let at = word.len().checked_sub(length)?;
        Some((osa_distance(word.get(at..)?, LISTENER), at))
    };
    let (distance, at) = (LISTENER.len() - 2..=LISTENER.len() + 2).filter_map(tail).min()?;
    let kind = name.get(..at)?.trim_end_matches(['_', '-']);
    let kind = if kind.is_empty() { "ESMTP" } else { kind };
    (distance <= 2).then(|| format!("{kind}_Listener"))
}

/// Reports each skipped scope with a `listen` scope in it, or with the listener syntax of Momentum 2: nothing would listen.
fn without_effect(items: &[Item], reported: &[Span], sources: &Sources, problems: &mut Problems) {
    for item in items {
        match item {
            Item::Scope(scope) if super::is_read(sources.text(scope.name)) => {}
            Item::Scope(scope) if !reported.contains(&scope.name) && has_listen(scope, sources) => {
                let name = sources.text(scope.name);
                let message =
                    format!("nothing would listen: {name:?} is no listener scope, but has a Listen in it");
                problems.error(scope.name, message, "write Listen in a scope such as ESMTP_Listener");
            }
            Item::Include(include) => without_effect(&include.items, reported, sources, problems),
            Item::Scope(_) | Item::Option(_) => {}
        }
    }
}

fn has_listen(scope: &Scope, sources: &Sources) -> bool {
    let is_listen = |name: Span| sources.text(name).eq_ignore_ascii_case("listen");
    scope.items.iter().any(|item| match item {
        Item::Scope(inner) => is_listen(inner.name),
        Item::Option(option) => is_listen(option.name) && matches!(option.value, Value::Scalar(_)),
        Item::Include(_) => false,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_misspelt_listener_scope_is_recognized_and_a_scope_of_the_mta_is_not() {
        for (name, meant) in [
            ("ESMTP_Listner", Some("ESMTP_Listener")),
            ("ESMTP_Listeners", Some("ESMTP_Listener")),
            ("ESMTPListener", Some("ESMTP_Listener")),
            ("esmtp-listener", Some("esmtp_Listener")),
            ("ESMTP_Lisetner", Some("ESMTP_Listener")),
            ("Smtp_Listen", Some("Smtp_Listener")),
            ("listener", Some("ESMTP_Listener")),
            ("bounce_logger", None),
            ("eventloop", None),
            ("smpp_logger", None),
            ("url_ripper", None),
            ("alerting", None),
            ("Domain", None),
            ("_", None),
            ("…", None),
        ] {
            assert_eq!(listener_meant(name).as_deref(), meant, "{name}");
        }
    }
}
