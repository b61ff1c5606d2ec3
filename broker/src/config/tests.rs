//! Properties of the language: printed items are parsed back unchanged, and any text is either parsed or refused.

use proptest::collection::vec;
use proptest::prelude::*;

use super::diagnostic::Problems;
use super::pace::without_pauses;
use super::parser::parse;
use super::source::Sources;
use super::tree::{Item, Scalar, Value};
use super::{Style, check_syntax_text};

/// An item without its place.
#[derive(Clone, Debug, PartialEq)]
enum PlainItem {
    Option(String, PlainValue),
    Scope(String, Option<String>, Vec<PlainItem>),
    Include(String),
}

#[derive(Clone, Debug, PartialEq)]
enum PlainValue {
    Scalar(String),
    List(Vec<String>),
    Dict(Vec<(String, String)>),
}

fn name() -> impl Strategy<Value = String> {
    "[A-Za-z_][A-Za-z0-9_]{0,8}".prop_filter("the keyword", |name| !name.eq_ignore_ascii_case("include"))
}

/// Any text that a quoted string can hold.
fn word() -> impl Strategy<Value = String> {
    prop_oneof![
        "[a-z0-9/:*.%@+-]{1,12}",
        "[ -~]{0,12}",
        "[a-z]*\\PC{0,4}[\\\\\"]{0,3}",
        Just(String::from("a\nb\t#c /* d */"))
    ]
}

fn value() -> impl Strategy<Value = PlainValue> {
    prop_oneof![
        4 => word().prop_map(PlainValue::Scalar),
        1 => vec(word(), 0..5).prop_map(PlainValue::List),
        1 => vec((word(), word()), 0..4).prop_map(PlainValue::Dict),
    ]
}

fn items() -> impl Strategy<Value = Vec<PlainItem>> {
    let leaf = prop_oneof![
        4 => (name(), value()).prop_map(|(name, value)| PlainItem::Option(name, value)),
        1 => word().prop_map(PlainItem::Include),
    ];
    let item = leaf.prop_recursive(4, 40, 6, |inner| {
        (name(), proptest::option::of(word()), vec(inner, 0..6))
            .prop_map(|(name, instance, items)| PlainItem::Scope(name, instance, items))
    });
    vec(item, 0..8)
}

/// Prints items, choosing among the forms that the language has by the bytes of `choices`.
struct Printer<'c> {
    out: String,
    choices: std::iter::Cycle<std::slice::Iter<'c, u8>>,
}

impl Printer<'_> {
    fn choose<'t>(&mut self, forms: &[&'t str]) -> &'t str {
        let choice = usize::from(*self.choices.next().unwrap());
        forms[choice % forms.len()]
    }

    fn put(&mut self, text: &str) {
        self.out += text;
    }

    /// Adds an optional separator between two tokens.
    fn gap(&mut self) {
        let gap = self.choose(&["", " ", "\n", "\t", " # {\"\n", "/* } */", "\r\n  ", "/**/ "]);
        self.put(gap);
    }

    /// Adds the separator that two words need.
    fn space(&mut self) {
        let space = self.choose(&[" ", "\n", " # '\n", "/* = */", "\t\t"]);
        self.put(space);
    }

    fn word(&mut self, text: &str) {
        let bare = |c: char| c.is_ascii_alphanumeric() || "/:*.%@+-_".contains(c);
        let can_be_bare = !text.is_empty() && text.chars().all(bare) && !text.contains("/*");
        if can_be_bare && self.choose(&["bare", "quoted"]) == "bare" {
            return self.put(text);
        }
        // A backslash before a quote or another backslash, or at the end, needs one itself.
        let escaped = text.replace('\\', "\\\\").replace('"', "\\\"");
        self.put(&format!("\"{escaped}\""));
    }

    fn value(&mut self, value: &PlainValue) {
        match value {
            PlainValue::Scalar(text) => self.word(text),
            PlainValue::List(words) => {
                self.put("(");
                for word in words {
                    self.space();
                    self.word(word);
                    let end = self.choose(&[" ", ", ", ",", "\n"]);
                    self.put(end);
                }
                self.put(" )");
            }
            PlainValue::Dict(entries) => {
                self.put("[");
                for (key, value) in entries {
                    self.space();
                    self.word(key);
                    self.gap();
                    self.put("=");
                    self.space();
                    self.word(value);
                }
                self.put(" ]");
            }
        }
    }

    fn items(&mut self, items: &[PlainItem]) {
        for item in items {
            match item {
                PlainItem::Option(name, value) => {
                    self.put(name);
                    self.space();
                    let bracket = matches!(value, PlainValue::Dict(_));
                    if !bracket || self.choose(&["with", "without"]) == "with" {
                        self.put("= ");
                    }
                    self.value(value);
                }
                PlainItem::Scope(name, instance, items) => {
                    self.put(name);
                    if let Some(instance) = instance {
                        self.space();
                        self.word(instance);
                    }
                    let equals = self.choose(&["", " ", "\n", " ="]);
                    self.put(equals);
                    self.put(" {");
                    self.items(items);
                    self.put("}");
                }
                PlainItem::Include(path) => {
                    let keyword = self.choose(&["include", "Include", "readonly_include"]);
                    self.put(keyword);
                    self.put(" ");
                    self.word(path);
                }
            }
            self.put("\n");
            self.gap();
        }
    }
}

fn plain(items: &[Item], sources: &Sources) -> Vec<PlainItem> {
    let text = |scalar: &Scalar| scalar.text(sources).into_owned();
    let name = |span| sources.text(span).to_owned();
    let value = |value: &Value| match value {
        Value::Scalar(scalar) => PlainValue::Scalar(text(scalar)),
        Value::List { items, .. } => PlainValue::List(items.iter().map(text).collect()),
        Value::Rules { endpoints, .. } => PlainValue::List(endpoints.iter().map(text).collect()),
        Value::Dict { entries, .. } => {
            PlainValue::Dict(entries.iter().map(|(key, value)| (text(key), text(value))).collect())
        }
    };
    let item = |item: &Item| match item {
        Item::Option(option) => PlainItem::Option(name(option.name), value(&option.value)),
        Item::Scope(scope) => {
            let instance = scope.instance.as_ref().map(text);
            PlainItem::Scope(name(scope.name), instance, plain(&scope.items, sources))
        }
        Item::Include(include) => PlainItem::Include(text(&include.path)),
    };
    items.iter().map(item).collect()
}

fn read(text: &str) -> (Vec<PlainItem>, Vec<String>) {
    let (mut sources, mut problems) = (Sources::default(), Problems::default());
    let file = sources.add("t".into(), text.to_owned());
    let items = without_pauses(async |pace| parse(file, sources.whole(file), 0, &mut problems, pace).await);
    let diagnostics = problems.finish(&sources).diagnostics().to_vec();
    (plain(&items, &sources), diagnostics.iter().map(|diagnostic| diagnostic.one_line()).collect())
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn printed_items_are_parsed_back(items in items(), choices in vec(any::<u8>(), 1..64)) {
        let mut printer = Printer { out: String::new(), choices: choices.iter().cycle() };
        printer.items(&items);
        let (read, errors) = read(&printer.out);
        prop_assert_eq!(errors, Vec::<String>::new(), "{}", printer.out);
        prop_assert_eq!(read, items, "{}", printer.out);
    }

    #[test]
    fn any_text_is_parsed_or_refused_with_valid_places(text in "[a-z=(){}\\[\\]\", \n/*#\\\\é'\\PC]{0,200}") {
        if let Err(report) = super::parse_text("t", &text) {
            let lines = text.split('\n').count();
            for diagnostic in report.diagnostics() {
                prop_assert!((1..=lines).contains(&diagnostic.line), "{diagnostic:?}");
                prop_assert!(!diagnostic.message.is_empty() && !diagnostic.help.is_empty());
            }
            prop_assert!(!report.to_string().is_empty());
        }
    }

    #[test]
    fn scopes_with_any_values_are_parsed_or_refused(
        scope in prop_oneof![Just("security"), Just("broker"), Just("worker"), Just("x_listener"), Just("cluster")],
        items in items(),
        choices in vec(any::<u8>(), 1..64),
    ) {
        let mut printer = Printer { out: format!("{scope} {{\n"), choices: choices.iter().cycle() };
        printer.items(&items);
        printer.put("}");
        // Success and errors are both fine: the property is that it returns.
        let _ = super::parse_text("t", &printer.out);
    }
}

#[test]
fn an_offset_in_a_value_is_a_place_in_the_file() {
    let text = "security {\n  capabilities = \"a\\\"b cap_x\"\n}\n";
    let (config, _) = super::parse_text("t", text).unwrap();
    let value = config.security.capabilities.as_ref().unwrap();
    assert_eq!(value.value, "a\"b cap_x");
    let part = config.within(value, 4..9);
    assert_eq!(config.sources().text(part), "cap_x");
    assert_eq!(config.place(part), "t:2:24");
    let end = config.within(value, 9..9);
    assert_eq!(config.place(end), "t:2:29");
}

#[test]
fn an_excerpt_contains_no_terminal_control_characters() {
    let text = (0..=0x9f).filter_map(char::from_u32).filter(|c| *c != '\n').collect::<String>();
    let report = check_syntax_text("c.conf", &format!("a = (\u{e9}{text}")).unwrap_err();
    for line in report.render(Style::Plain).lines() {
        assert!(!line.contains(|c: char| c.is_control()), "{line:?}");
    }
}
