//! The capability sets of this process. See capabilities(7).

use std::io;

use rustix::thread::{CapabilitySet, capabilities, capability_is_in_bounding_set};

/// Whether capability `number` is in the bounding set; `None` if the kernel does not know it. PR_CAPBSET_READ of prctl(2),
/// Linux 2.6.25.
///
/// # Capabilities
/// None.
pub fn in_bounding_set(number: u8) -> Option<bool> {
    let one = 1_u64.checked_shl(number.into())?;
    capability_is_in_bounding_set(CapabilitySet::from_bits_retain(one)).ok()
}

/// The permitted set, one bit per capability. See capget(2).
///
/// # Capabilities
/// None.
///
/// # Errors
/// Those of capget(2).
pub fn permitted() -> io::Result<u64> {
    Ok(capabilities(None)?.permitted.bits())
}
