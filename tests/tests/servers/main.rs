//! Unmodified servers whose listeners the broker opens: `portreeve run`, and workers with `bind = brokered`.

mod binds;
mod brokered;
mod by_bind;
mod by_descriptor;
mod clients;
mod failures;
mod kernels;
mod packages;
mod privileges;
mod programs;
mod supervisor;
mod user_namespace;
