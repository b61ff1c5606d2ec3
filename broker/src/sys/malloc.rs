//! Returning free memory from the allocator to the kernel.

/// Returns whole free pages to the kernel. See malloc_trim(3). Allocators of other C libraries than glibc return them by
/// themselves or have no such call.
///
/// # Capabilities
/// None.
#[cfg(target_env = "gnu")]
pub fn trim() {
    // SAFETY: the call takes no pointer and moves no memory that is in use.
    unsafe { libc::malloc_trim(0) };
}

/// Does nothing with this C library.
///
/// # Capabilities
/// None.
#[cfg(not(target_env = "gnu"))]
pub fn trim() {}
