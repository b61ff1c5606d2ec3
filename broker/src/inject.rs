//! Named steps of the start, for tests that make one fail or leave a lock out.
//!
//! Promises: without the cargo feature `hostile`, which no release has, every function here is empty and compiles to
//! nothing. With it they do what the test's command line says; see `hostile`.

#[cfg(not(feature = "hostile"))]
mod nothing {
    use crate::failure::Failure;

    /// A step that can fail begins here.
    #[inline(always)]
    pub fn point(_name: &'static str) -> Result<(), Failure> {
        Ok(())
    }

    /// Whether this lock is put on: always.
    #[inline(always)]
    pub fn lock(_name: &'static str) -> Result<bool, Failure> {
        Ok(true)
    }

    /// The broker is confined and about to serve.
    #[inline(always)]
    pub fn confined() {}
}

#[cfg(not(feature = "hostile"))]
pub use nothing::{confined, lock, point};

#[cfg(feature = "hostile")]
pub use crate::hostile::{confined, lock, point};
