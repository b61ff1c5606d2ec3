//! A `check` scope of `cluster`: a command that decides whether this node may hold addresses.

use std::path::Path;
use std::time::Duration;

use portreeve_protocol::cluster::{MAX_CHECK_NAME, MAX_CHECKS, MAX_COMMAND_WORD, MAX_COMMAND_WORDS};

use super::coordinator::name;
use super::reader::Reader;
use super::source::Spanned;

/// One `check` scope.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HealthCheck {
    /// The check's name, case-sensitive; no other check has it.
    pub name: Spanned<String>,
    /// The program's absolute path and its arguments; never empty.
    pub command: Vec<Spanned<String>>,
    /// The time from one run to the next.
    pub interval: Duration,
    /// After how many failed runs in a row the check fails.
    pub fall: u32,
    /// After how many successful runs in a row a failed check succeeds again.
    pub rise: u32,
}

impl HealthCheck {
    /// Reads every `check` scope.
    pub(crate) fn read_all(outer: &mut Reader<'_, '_>) -> Vec<Self> {
        let checks: Vec<HealthCheck> = outer
            .scopes("check")
            .filter_map(|section| HealthCheck::read(Reader::new(section, outer.sources, outer.problems)))
            .collect();
        if let Some(surplus) = checks.get(MAX_CHECKS) {
            let message = format!("a node has at most {MAX_CHECKS} checks");
            outer.error(surplus.name.span, message, "let one command test several things");
        }
        checks
    }

    fn read(mut reader: Reader<'_, '_>) -> Option<Self> {
        let command = command(&mut reader);
        let interval = reader.seconds("interval", 1..=3_600).unwrap_or(Duration::from_secs(5));
        let fall = reader.number("fall", 1..=100).unwrap_or(3);
        let rise = reader.number("rise", 1..=100).unwrap_or(2);
        reader.no_other_options();
        reader.no_other_scopes();
        let text = reader.instance("NAME")?;
        if let Err(help) = name(&text.value, MAX_CHECK_NAME) {
            reader.error(text.span, format!("{:?} is not a valid name for a check", text.value), help);
            return None;
        }
        // Merging two checks would drop a command without a word.
        if let Some(second) = reader.section.again {
            let help =
                format!("give it another name; the other is at {}", reader.sources.file_line(text.span));
            reader.error(second, format!("there is already a check {:?}", text.value), help);
        }
        Some(HealthCheck { name: text, command: command?, interval, fall, rise })
    }
}

fn command(reader: &mut Reader<'_, '_>) -> Option<Vec<Spanned<String>>> {
    let list = reader.list("command");
    // A mistake in the list has been reported already.
    if list.is_none() && reader.section.option("command").is_some() {
        return None;
    }
    let command = list.unwrap_or_default();
    let Some(program) = command.first() else {
        let place = reader.section.option("command");
        let place = place.map_or(reader.section.name, |option| option.value.span());
        let help = "add command = ( /PATH/OF/PROGRAM \"ARGUMENT\" ) to it, or remove the scope";
        reader.error(place, "the check has no command", help);
        return None;
    };
    if !Path::new(&program.value).is_absolute() {
        let message = format!("the program {:?} is not an absolute path", program.value);
        reader.error(program.span, message, "write its absolute path");
        return None;
    }
    if let Some(surplus) = command.get(MAX_COMMAND_WORDS) {
        let message = format!("the command of a check has at most {MAX_COMMAND_WORDS} words");
        reader.error(surplus.span, message, "write a script that runs it, and name the script");
        return None;
    }
    if let Some(long) = command.iter().find(|word| word.value.len() > MAX_COMMAND_WORD) {
        let message = format!("a word of a check's command has at most {MAX_COMMAND_WORD} bytes");
        reader.error(long.span, message, "write a script that runs it, and name the script");
        return None;
    }
    Some(command)
}
