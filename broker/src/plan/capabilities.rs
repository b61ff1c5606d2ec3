//! Parses `security.capabilities` and `security.privileges` and checks them against this kernel.

use super::Findings;
use crate::capability::{self, CapabilitySet, Count, Privileges, State};
use crate::config::Config;
use crate::failure::{Exit, Failure};
use crate::sys::capabilities;

const STEP: &str = "security.capabilities";
const START_WITH_IT: &str = "start portreeved with it (a container's or unit's capability list, \
    CapabilityBoundingSet=), or remove it here";

/// Parses security.capabilities and checks that this kernel knows every capability.
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
    let unknown = required(&state).union(state.effective).difference(kernel);
    if !unknown.is_empty() {
        let message = format!("this kernel has no capability {unknown}");
        let help =
            format!("remove it: the highest capability of this kernel is number {}", capability::last_cap());
        return refuse(text.span, message, help);
    }
    let not_permitted = state.effective.difference(state.permitted);
    if !not_permitted.is_empty() {
        let message = format!("{not_permitted} is effective but not permitted, which the kernel refuses");
        return refuse(text.span, message, format!("write {not_permitted}+ep"));
    }
    if let Some(unavailable) =
        Some(required(&state).difference(bounding())).filter(|unavailable| !unavailable.is_empty())
    {
        let message =
            format!("{unavailable} cannot be retained: it is not in the bounding set of this process");
        findings.add(config.warning(text.span, message, START_WITH_IT));
    }
    Some(state)
}

/// Validates security.privileges and names the closest Linux capabilities.
pub(super) fn privileges(config: &Config, retained: Option<&State>, findings: &mut Findings) {
    let Some(text) = &config.security.privileges else {
        return;
    };
    let privileges = match Privileges::parse(&text.value) {
        Ok(privileges) => privileges,
        Err(error) => {
            let span = config.within(text, error.span.clone());
            let message = match error.name.as_str() {
                "" => "a privilege is missing here".to_owned(),
                name => format!("{name:?} is not a privilege"),
            };
            findings.error("security.privileges", Exit::Config, config.error(span, message, error.remedy()));
            return;
        }
    };
    let nearest = privileges.nearest_capabilities();
    let message = "privileges have no effect on Linux";
    let lacking = retained.map(|state| nearest.difference(state.permitted));
    let help = match lacking {
        _ if nearest.is_empty() => "no capability is needed instead".to_owned(),
        Some(CapabilitySet::EMPTY) => format!("capabilities has the closest ones: {nearest}"),
        Some(lacking) if lacking != nearest => {
            format!("the closest capabilities are {nearest}; capabilities lacks {lacking}")
        }
        _ => format!("the closest capabilities are {nearest}; capabilities has none of them"),
    };
    findings.add(config.note(text.span, message, help));
}

/// Fails if this process lacks a capability that the configuration retains.
pub fn check_available(config: &Config, retained: &State) -> Result<(), Failure> {
    let held = capabilities::permitted().map_err(|error| Failure::os(STEP, "capget", error))?;
    let held = CapabilitySet::from_bits(held);
    let place =
        config.security.capabilities.as_ref().map_or_else(String::new, |text| config.place(text.span));
    let unavailable = required(retained).difference(bounding());
    let missing = required(retained).difference(held);
    let (lacking, which) = match () {
        () if !unavailable.is_empty() => (unavailable, "bounding set"),
        () if !missing.is_empty() => (missing, "permitted set"),
        () => return Ok(()),
    };
    Err(Failure::new(
        Exit::NoPermission,
        STEP,
        format_args!("{place}: {lacking} cannot be retained: portreeved's {which} lacks it"),
        START_WITH_IT,
    ))
}

fn required(state: &State) -> CapabilitySet {
    state.permitted.union(state.inheritable)
}

/// This process's bounding set.
fn bounding() -> CapabilitySet {
    (0..=capability::last_cap())
        .filter(|number| capabilities::in_bounding_set(*number) == Some(true))
        .collect()
}
