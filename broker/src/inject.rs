//! Fault injection at named steps of the start, for tests.
//!
//! Promises: without the cargo feature `hostile`, which no release has, every function here compiles to nothing. With it,
//! the test's command line decides which step fails or which restriction is omitted; see `hostile`.

#[cfg(not(feature = "hostile"))]
mod nothing {
    use crate::failure::Failure;

    /// Marks the beginning of a step that can be made to fail.
    #[inline(always)]
    pub fn point(_name: &'static str) -> Result<(), Failure> {
        Ok(())
    }

    /// Whether this restriction is applied: always, without the feature.
    #[inline(always)]
    pub fn lock(_name: &'static str) -> Result<bool, Failure> {
        Ok(true)
    }

    /// Whether the kernel has seccomp if /proc/self/status says so: always, without the feature.
    #[inline(always)]
    pub fn kernel_has_seccomp() -> bool {
        true
    }

    /// Called when the broker is confined and about to serve.
    #[inline(always)]
    pub fn confined() {}
}

#[cfg(not(feature = "hostile"))]
pub use nothing::{confined, kernel_has_seccomp, lock, point};

#[cfg(feature = "hostile")]
pub use crate::hostile::{confined, kernel_has_seccomp, lock, point};
