//! The pages for users: each link leads to an existing target, README.md is short, and tests cover every page.

use std::fs;
use std::path::{Path, PathBuf};

/// A page of the documentation.
#[derive(Debug)]
pub struct Page {
    /// The path in the repository.
    pub path: &'static str,
    pub text: &'static str,
}

macro_rules! pages {
    ($($path:literal),+ $(,)?) => {
        [$(Page { path: $path, text: include_str!(concat!("../../../", $path)) }),+]
    };
}

/// The pages that show configurations and commands.
pub const PAGES: [Page; 15] = pages![
    "README.md",
    "deploy/docs/addresses.md",
    "deploy/docs/clients.md",
    "deploy/docs/cluster.md",
    "deploy/docs/cluster-operations.md",
    "deploy/docs/failover.md",
    "deploy/docs/listeners.md",
    "deploy/docs/operating.md",
    "deploy/docs/performance.md",
    "deploy/docs/reload.md",
    "deploy/docs/replacing-the-broker.md",
    "deploy/docs/run.md",
    "deploy/docs/security-overview.md",
    "deploy/docs/servers.md",
    "deploy/tour.md",
];

/// Other pages with links.
const OTHERS: [Page; 6] = pages![
    "CHANGELOG.md",
    "broker/SECURITY.md",
    "protocol/WIRE.md",
    "worker/c/README.md",
    "worker/go/README.md",
    "worker/python/README.md",
];

/// README.md has fewer lines than this.
const README_LINES: usize = 120;

/// The page at a path.
pub fn page(path: &str) -> &'static Page {
    PAGES.iter().find(|page| page.path == path).unwrap_or_else(|| panic!("{path} is not in PAGES"))
}

impl Page {
    /// The text blocks that are whole configurations: they begin with a security scope.
    pub fn configurations(&self) -> impl Iterator<Item = &'static str> {
        let blocks = self.text.split("\n```text\n").skip(1);
        let blocks = blocks.map(|block| block.split_once("\n```").unwrap().0);
        let path = self.path;
        blocks.filter(move |block| {
            let is_one = block.starts_with("security {");
            let looks_like_one = block.lines().any(|line| line.trim_end().ends_with('{'));
            assert!(
                is_one || !looks_like_one,
                "{path}: this block does not begin with a security scope:\n{block}"
            );
            is_one
        })
    }

    /// The targets of the links, without code blocks.
    fn links(&self) -> Vec<&'static str> {
        let mut in_block = false;
        let prose = self.text.lines().filter(|line| {
            let fence = line.trim_start().starts_with("```");
            in_block ^= fence;
            !in_block && !fence
        });
        prose.flat_map(|line| line.split("](").skip(1)).filter_map(|rest| rest.split(')').next()).collect()
    }
}

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// The anchor of a heading, as a link names it.
fn anchor(heading: &str) -> String {
    let kept = heading.chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c));
    kept.collect::<String>().to_lowercase().replace(' ', "-")
}

fn has_heading(text: &str, wanted: &str) -> bool {
    let headings = text.lines().filter(|line| line.starts_with('#'));
    headings.map(|line| anchor(line.trim_start_matches('#').trim())).any(|heading| heading == wanted)
}

#[test]
fn every_link_of_a_page_leads_to_an_existing_target() {
    let mut followed = 0;
    for page in PAGES.iter().chain(&OTHERS) {
        let file = repository().join(page.path);
        for link in page.links() {
            if link.contains("://") {
                continue;
            }
            let (path, heading) = link.split_once('#').unwrap_or((link, ""));
            let target = match path {
                "" => file.clone(),
                path => file.parent().unwrap().join(path),
            };
            assert!(target.exists(), "{}: {link} leads nowhere", page.path);
            if !heading.is_empty() {
                let text = fs::read_to_string(&target).unwrap();
                assert!(has_heading(&text, heading), "{}: {link} names no heading", page.path);
            }
            followed += 1;
        }
    }
    assert!(followed > 50, "only {followed} links were found");
}

#[test]
fn the_readme_is_short() {
    let lines = page("README.md").text.lines().count();
    assert!(lines < README_LINES, "README.md has {lines} lines: move details to a page of deploy/docs");
}

#[test]
fn every_page_of_the_documentation_is_tested() {
    for entry in fs::read_dir(repository().join("deploy/docs")).unwrap() {
        let path = format!("deploy/docs/{}", entry.unwrap().file_name().into_string().unwrap());
        assert!(PAGES.iter().any(|page| page.path == path), "{path} is not in PAGES");
    }
    let show_one = PAGES.iter().filter(|page| page.configurations().next().is_some()).count();
    assert!(show_one > 5, "{show_one} pages show a configuration");
}
