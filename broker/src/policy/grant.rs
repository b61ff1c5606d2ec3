//! A grant: a set of rules that is looked up as a whole. A single resource is found by hashing, a pattern by trying
//! each.

use std::collections::{BTreeMap, HashMap};

use super::resource::{Kind, Pattern, Resource};
use super::rule::RuleId;

/// What a peer is allowed to have.
#[derive(Clone, Debug, Default)]
pub(super) struct Grant {
    tables: BTreeMap<Kind, Table>,
}

/// The rules about one kind of resource.
#[derive(Clone, Debug, Default)]
struct Table {
    single: HashMap<Resource<'static>, RuleId>,
    patterns: Vec<(Pattern, RuleId)>,
}

/// The resources of one rule of a grant.
#[derive(Clone, Copy, Debug)]
pub(super) enum Entry<'g> {
    Single(&'g Resource<'static>),
    Pattern(&'g Pattern),
}

impl Grant {
    /// Allows one resource. A later rule for the same one replaces an earlier one.
    pub fn allow(&mut self, resource: Resource<'static>, rule: RuleId) {
        self.tables.entry(resource.kind()).or_default().single.insert(resource, rule);
    }

    /// Allows all resources of a pattern.
    pub fn allow_pattern(&mut self, pattern: Pattern, rule: RuleId) {
        let table = self.tables.entry(pattern.kind()).or_default();
        let resources = pattern.single_resources();
        if resources.is_empty() {
            table.patterns.push((pattern, rule));
        }
        table.single.extend(resources.into_iter().map(|resource| (resource, rule)));
    }

    /// Adds the rules of another grant.
    pub fn join(&mut self, other: &Grant) {
        for (kind, table) in &other.tables {
            let Table { single, patterns } = self.tables.entry(*kind).or_default();
            single.extend(table.single.iter().map(|(resource, rule)| (resource.clone(), *rule)));
            patterns.extend_from_slice(&table.patterns);
        }
    }

    /// The rule that allows a resource.
    pub fn find(&self, resource: &Resource<'_>) -> Option<RuleId> {
        let table = self.tables.get(&resource.kind())?;
        let single = table.single.get(resource).copied();
        single.or_else(|| {
            let pattern = table.patterns.iter().find(|(pattern, _)| pattern.covers(resource));
            pattern.map(|(_, rule)| *rule)
        })
    }

    /// Every rule about a kind of resource, patterns first.
    pub fn entries(&self, kind: Kind) -> impl Iterator<Item = (Entry<'_>, RuleId)> {
        self.tables.get(&kind).into_iter().flat_map(|table| {
            let patterns = table.patterns.iter().map(|(pattern, rule)| (Entry::Pattern(pattern), *rule));
            let single = table.single.iter().map(|(resource, rule)| (Entry::Single(resource), *rule));
            patterns.chain(single)
        })
    }

    /// The kinds of resources that it allows.
    pub fn kinds(&self) -> impl Iterator<Item = Kind> {
        self.tables.keys().copied()
    }
}
