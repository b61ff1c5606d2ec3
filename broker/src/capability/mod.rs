//! Capabilities as values: sets, the three sets of a process, and the two languages an operator writes them in.
//!
//! Promises: what libcap's `cap_from_text(3)` accepts is accepted here with the same result, what it refuses is
//! refused here with a place and a remedy; nothing in this folder changes the process. Touches: one `prctl(2)` that
//! asks the kernel how many capabilities it has.
#![forbid(unsafe_code)]

mod error;
mod privilege_table;
mod privileges;
mod set;
mod state;
mod table;
mod text;

pub use error::{Problem, TextError};
pub use privileges::{Privilege, Privileges, PrivilegesError};
pub use set::{CapabilitySet, Count, last_cap};
pub use state::State;
pub use text::{parse, parse_with};
