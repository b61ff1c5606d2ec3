//! Merges all scopes of the same kind and name into one section; of a repeated option the last value counts.

use std::collections::HashMap;

use super::pace::Pace;
use super::source::{Sources, Span};
use super::tree::{Item, Opt, Scalar, Scope};

/// A merged scope. Names of options are in lower case; names of scopes keep their case.
#[derive(Debug)]
pub(crate) struct Section<'t> {
    /// The first place of the scope.
    pub name: Span,
    /// Its second place, if the configuration has the scope again.
    pub again: Option<Span>,
    pub instance: Option<Scalar>,
    options: HashMap<String, &'t Opt>,
    scopes: Vec<Section<'t>>,
    index: HashMap<(String, String), usize>,
}

impl<'t> Section<'t> {
    fn empty(scope: &Scope) -> Self {
        Section {
            name: scope.name,
            again: None,
            instance: scope.instance,
            options: HashMap::new(),
            scopes: Vec::new(),
            index: HashMap::new(),
        }
    }

    async fn add(&mut self, items: &'t [Item], sources: &Sources, pace: &Pace) {
        for item in items {
            match item {
                Item::Option(option) => {
                    let name = sources.text(option.name).to_ascii_lowercase();
                    self.options.insert(name, option);
                }
                Item::Scope(scope) => {
                    merge(&mut self.scopes, &mut self.index, scope, sources, pace).await;
                }
                Item::Include(include) => Box::pin(self.add(&include.items, sources, pace)).await,
            }
            pace.pause().await;
        }
    }

    /// Finds an option by its name in lower case.
    pub fn option(&self, name: &str) -> Option<&'t Opt> {
        self.options.get(name).copied()
    }

    /// Every option that is set.
    pub fn options(&self) -> impl Iterator<Item = (&str, &'t Opt)> {
        self.options.iter().map(|(name, option)| (name.as_str(), *option))
    }

    /// The scopes inside this one, in the order of their first places.
    pub fn scopes(&self) -> &[Section<'t>] {
        &self.scopes
    }

    /// Whether this is a scope of the kind `name`, in lower case.
    pub fn is(&self, name: &str, sources: &Sources) -> bool {
        sources.text(self.name).eq_ignore_ascii_case(name)
    }
}

async fn merge<'t>(
    sections: &mut Vec<Section<'t>>,
    index: &mut HashMap<(String, String), usize>,
    scope: &'t Scope,
    sources: &Sources,
    pace: &Pace,
) {
    let name = sources.text(scope.name).to_ascii_lowercase();
    // Of the MTA's own scopes only the name is used.
    let entered = super::is_read(&name) || super::is_read_within(&name);
    // A scope that exists once is merged whatever name it has.
    let instance = scope.instance.filter(|_| !super::is_single(&name));
    let instance = instance.map(|scalar| scalar.text(sources).into_owned());
    let at = *index.entry((name, instance.unwrap_or_default())).or_insert(sections.len());
    match sections.get_mut(at) {
        None => sections.push(Section::empty(scope)),
        Some(section) => section.again = section.again.or(Some(scope.name)),
    }
    if let Some(section) = sections.get_mut(at).filter(|_| entered) {
        Box::pin(section.add(&scope.items, sources, pace)).await;
    }
}

/// The top level: the merged scopes that the broker reads, and the names of everything else.
#[derive(Debug, Default)]
pub(crate) struct Top<'t> {
    sections: Vec<Section<'t>>,
    index: HashMap<(String, String), usize>,
    /// Scopes and options of the MTA, each with its first place.
    skipped: HashMap<String, Span>,
}

impl<'t> Top<'t> {
    /// Merges the items of the main file.
    pub async fn add(&mut self, items: &'t [Item], sources: &Sources, pace: &Pace) {
        for item in items {
            match item {
                Item::Option(option) => self.skip(option.name, sources),
                Item::Scope(scope) if super::is_read(sources.text(scope.name)) => {
                    merge(&mut self.sections, &mut self.index, scope, sources, pace).await;
                }
                Item::Scope(scope) => self.skip(scope.name, sources),
                Item::Include(include) => Box::pin(self.add(&include.items, sources, pace)).await,
            }
            pace.pause().await;
        }
    }

    fn skip(&mut self, name: Span, sources: &Sources) {
        let text = sources.text(name);
        if !self.skipped.contains_key(text) {
            self.skipped.insert(text.to_owned(), name);
        }
    }

    /// The merged sections in the order of their first places, and the names of everything else, each with its first place.
    pub fn into_parts(self) -> (Vec<Section<'t>>, HashMap<String, Span>) {
        (self.sections, self.skipped)
    }
}
