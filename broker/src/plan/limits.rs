//! `worker.limit`: tries on this process whether the launcher can set each limit.

use super::Findings;
use crate::config::{Config, Limit, Spanned};
use crate::confine::limits::{Unsettable, probe};
use crate::failure::Exit;
use crate::sys::{capabilities, process};

const STEP: &str = "limits";
/// CAP_SYS_RESOURCE, see capabilities(7).
const SYS_RESOURCE: u8 = 24;
/// The descriptors of the worker besides its listeners: standard streams, channel, and some of its own.
const OTHER_DESCRIPTORS: u64 = 8;

/// Adds an error for each limit that a start from this process cannot set.
pub(super) fn check(config: &Config, findings: &mut Findings) {
    let Some(worker) = &config.worker else { return };
    for limit in &worker.limits {
        let name = limit.value.resource.name();
        match probe(&limit.value) {
            Ok(()) => {}
            Err(Unsettable::AboveKernel(most)) => {
                let message =
                    format!("{} is more than fs.nr_open = {most}, which the kernel refuses", limit.value);
                let help = format!("write {name} = {most} at most, or raise the sysctl fs.nr_open");
                findings.error(STEP, Exit::NoPermission, config.error(limit.span, message, help));
            }
            // Root, who starts portreeved, has the capability.
            Err(Unsettable::AboveHard(_)) if process::effective_uid() != 0 && root_can_raise() => {}
            Err(Unsettable::AboveHard(hard)) => {
                let message = format!(
                    "{} is more than the hard limit {hard}, which may not be raised here",
                    limit.value
                );
                let setting = format!("Limit{}=", name.to_ascii_uppercase());
                let help = format!(
                    "lower it, or start portreeved with that hard limit ({setting} in the unit, ulimit -H) or with \
                     cap_sys_resource"
                );
                findings.error(STEP, Exit::NoPermission, config.error(limit.span, message, help));
            }
        }
    }
    room_for_listeners(config, &worker.limits, findings);
}

fn root_can_raise() -> bool {
    capabilities::in_bounding_set(SYS_RESOURCE) == Some(true)
}

/// The worker gets a descriptor for each static listener.
fn room_for_listeners(config: &Config, limits: &[Spanned<Limit>], findings: &mut Findings) {
    let statics = config.listeners.iter().filter(|listener| listener.is_static()).count();
    let needed = u64::try_from(statics).unwrap_or(u64::MAX).saturating_add(OTHER_DESCRIPTORS);
    for limit in limits.iter().filter(|limit| limit.value.resource.name() == "nofile") {
        if limit.value.value.is_some_and(|most| most < needed) {
            let message =
                format!("{} leaves no room for the {statics} static listeners of the worker", limit.value);
            let help = format!("write nofile = {needed} or more");
            findings.error(STEP, Exit::Config, config.error(limit.span, message, help));
        }
    }
}
