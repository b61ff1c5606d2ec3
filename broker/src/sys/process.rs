//! Facts about this process.

/// The effective user id. See geteuid(2).
///
/// # Capabilities
/// None.
pub fn effective_uid() -> u32 {
    nix::unistd::geteuid().as_raw()
}
