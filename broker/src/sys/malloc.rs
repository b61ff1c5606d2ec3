//! Giving memory back to the kernel, which the allocator otherwise keeps for later.

/// Gives back whole pages that are free. See malloc_trim(3); other C libraries than glibc do so on their own or not at all.
#[cfg(target_env = "gnu")]
pub fn give_back() {
    // SAFETY: the call takes no pointer and moves nothing that is in use.
    unsafe { libc::malloc_trim(0) };
}

/// See above.
#[cfg(not(target_env = "gnu"))]
pub fn give_back() {}
