//! Restrictions common to broker, launcher and worker: capability sets, bounding set, ambient set, securebits and
//! no_new_privs. Each is set exactly and read back by [`super::verify`]. See capabilities(7).

use caps::CapSet;
use rustix::thread::{
    CapabilitiesSecureBits, CapabilitySet as Bits, CapabilitySets, capabilities_secure_bits,
    capability_is_in_bounding_set, set_capabilities, set_capabilities_secure_bits, set_no_new_privs,
};

use crate::capability::{CapabilitySet, State, last_cap};
use crate::failure::Failure;

const STEP: &str = "capabilities";

/// All securebits, locked: uid 0 grants no capabilities, a change of uid changes no set, the ambient set cannot be
/// raised, and none of this can be undone.
pub const SECUREBITS: CapabilitiesSecureBits = CapabilitiesSecureBits::NO_ROOT
    .union(CapabilitiesSecureBits::NO_ROOT_LOCKED)
    .union(CapabilitiesSecureBits::NO_SETUID_FIXUP)
    .union(CapabilitiesSecureBits::NO_SETUID_FIXUP_LOCKED)
    .union(CapabilitiesSecureBits::KEEP_CAPS_LOCKED)
    .union(CapabilitiesSecureBits::NO_CAP_AMBIENT_RAISE)
    .union(CapabilitiesSecureBits::NO_CAP_AMBIENT_RAISE_LOCKED);

/// The names of the securebits, as in setpriv(1).
pub fn securebits_names() -> Vec<String> {
    SECUREBITS.iter_names().map(|(name, _)| name.to_lowercase().replace("no_root", "noroot")).collect()
}

/// Sets and locks the securebits and reads them back. Needs CAP_SETPCAP, so it runs before the sets are reduced.
pub fn securebits() -> Result<(), Failure> {
    set_capabilities_secure_bits(SECUREBITS).map_err(|e| Failure::os(STEP, "prctl PR_SET_SECUREBITS", e))?;
    match capabilities_secure_bits() {
        Ok(SECUREBITS) => Ok(()),
        other => Err(Failure::os(STEP, "reading the securebits back", format_args!("they are {other:?}"))),
    }
}

/// Drops from the bounding set everything that is not in `keep`, up to the kernel's highest capability. Needs CAP_SETPCAP.
pub fn bounding(keep: CapabilitySet) -> Result<(), Failure> {
    for number in 0..=last_cap() {
        let bit = Bits::from_bits_retain(1 << number);
        if keep.contains(number) || matches!(capability_is_in_bounding_set(bit), Ok(false)) {
            continue;
        }
        rustix::thread::remove_capability_from_bounding_set(bit)
            .map_err(|e| Failure::os(STEP, &format!("prctl PR_CAPBSET_DROP {number}"), e))?;
    }
    Ok(())
}

/// Clears the ambient set and sets the other three in one call.
pub fn sets(state: &State) -> Result<(), Failure> {
    caps::clear(None, CapSet::Ambient).map_err(|e| Failure::os(STEP, "prctl PR_CAP_AMBIENT_CLEAR_ALL", e))?;
    let bits = |set: CapabilitySet| Bits::from_bits_retain(set.bits());
    let sets = CapabilitySets {
        effective: bits(state.effective),
        permitted: bits(state.permitted),
        inheritable: bits(state.inheritable),
    };
    set_capabilities(None, sets).map_err(|e| Failure::os(STEP, "capset", e))
}

/// Programs that this process executes gain nothing from set-user-id bits or file capabilities.
pub fn no_new_privs() -> Result<(), Failure> {
    set_no_new_privs(true).map_err(|e| Failure::os(STEP, "prctl PR_SET_NO_NEW_PRIVS", e))
}
