//! Unmodified servers whose listeners the broker opens: `portreeve run`.

mod binds;
mod failures;
mod programs;
mod supervisor;
