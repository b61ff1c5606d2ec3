//! Unmodified servers whose listeners the broker opens: `portreeve run`.

mod binds;
mod by_descriptor;
mod failures;
mod packages;
mod programs;
mod supervisor;
