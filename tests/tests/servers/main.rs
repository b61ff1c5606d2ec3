//! Unmodified servers whose listeners the broker opens: `portreeve run`.

mod failures;
mod programs;
