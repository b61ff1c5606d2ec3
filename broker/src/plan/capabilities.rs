//! `security.capabilities` and `security.privileges`: what the texts mean, and whether this kernel has it.

use super::Findings;
use crate::capability::{self, CapabilitySet, Count, Privileges, State};
use crate::config::Config;
use crate::failure::{Exit, Failure};

const STEP: &str = "security.capabilities";
const START_WITH_IT: &str = "start portreeved with it (a container's or unit's capability list, \
    CapabilityBoundingSet=), or remove it here";

/// What security.capabilities says, of which this kernel knows every bit.
pub(super) fn retained(config: &Config, findings: &mut Findings) -> Option<State> {
    let Some(text) = &config.security.capabilities else {
        return Some(State::default());
    };
    let mut refuse = |span, message: String, help: String| {
        findings.error(STEP, Exit::Config, config.error(span, message, help));
        None
    };
    let state = match capability::parse(&text.value) {
        Ok(state) => state,
        Err(error) => {
            let span = config.within(text, error.span.clone());
            return refuse(span, error.problem.to_string(), error.remedy());
        }
    };
    let kernel = Count::of_kernel().all();
    let unknown = wanted(&state).union(state.effective).difference(kernel);
    if !unknown.is_empty() {
        let message = format!("this kernel has no capability {unknown}");
        let help = format!("remove it: the last one here is number {}", capability::last_cap());
        return refuse(text.span, message, help);
    }
    let loose = state.effective.difference(state.permitted);
    if !loose.is_empty() {
        let message = format!("{loose} would be effective and not permitted, which the kernel refuses");
        return refuse(text.span, message, format!("write {loose}+ep"));
    }
    if let Some(beyond) = Some(wanted(&state).difference(bounding())).filter(|beyond| !beyond.is_empty()) {
        let message =
            format!("{beyond} cannot be retained by what is started from here: the bounding set lacks it");
        findings.tell(config.warning(text.span, message, START_WITH_IT));
    }
    Some(state)
}

/// Validates security.privileges and says what comes nearest on Linux.
pub(super) fn privileges(config: &Config, retained: Option<&State>, findings: &mut Findings) {
    let Some(text) = &config.security.privileges else {
        return;
    };
    let privileges = match Privileges::parse(&text.value) {
        Ok(privileges) => privileges,
        Err(error) => {
            let span = config.within(text, error.span.clone());
            let message = match error.name.as_str() {
                "" => "no privilege follows here".to_owned(),
                name => format!("{name:?} is not a privilege"),
            };
            findings.error("security.privileges", Exit::Config, config.error(span, message, error.remedy()));
            return;
        }
    };
    let nearest = privileges.nearest_capabilities();
    let message = "Linux has no such privileges: they are validated and not used";
    let lacking = retained.map(|state| nearest.difference(state.permitted));
    let help = match lacking {
        _ if nearest.is_empty() => "no capability is needed for them".to_owned(),
        Some(CapabilitySet::EMPTY) => format!("capabilities has what comes nearest: {nearest}"),
        Some(lacking) if lacking != nearest => {
            format!("the capabilities that come nearest are {nearest}; capabilities lacks {lacking}")
        }
        _ => format!("the capabilities that come nearest are {nearest}; capabilities has none of them"),
    };
    findings.tell(config.note(text.span, message, help));
}

/// Fails when this process cannot keep what the configuration retains: another process may have to be asked.
pub fn available(config: &Config, retained: &State) -> Result<(), Failure> {
    let held = rustix::thread::capabilities(None).map_err(|error| Failure::os(STEP, "capget", error))?;
    let held = CapabilitySet::from_bits(held.permitted.bits());
    let place =
        config.security.capabilities.as_ref().map_or_else(String::new, |text| config.place(text.span));
    let beyond = wanted(retained).difference(bounding());
    let missing = wanted(retained).difference(held);
    let (lacking, which) = match () {
        () if !beyond.is_empty() => (beyond, "bounding set"),
        () if !missing.is_empty() => (missing, "permitted set"),
        () => return Ok(()),
    };
    Err(Failure::new(
        Exit::NoPermission,
        STEP,
        format_args!("{place}: {lacking} cannot be retained, because portreeved's {which} lacks it"),
        START_WITH_IT,
    ))
}

fn wanted(state: &State) -> CapabilitySet {
    state.permitted.union(state.inheritable)
}

/// This process's bounding set.
fn bounding() -> CapabilitySet {
    (0..=capability::last_cap())
        .filter(|number| {
            let bit = rustix::thread::CapabilitySet::from_bits_retain(1 << number);
            matches!(rustix::thread::capability_is_in_bounding_set(bit), Ok(true))
        })
        .collect()
}
