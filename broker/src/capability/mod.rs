//! Capabilities: sets, the three sets of a process, and the two text formats in which operators write them.
//!
//! Promises: what libcap's `cap_from_text(3)` accepts is accepted here with the same result, what it refuses is
//! refused here with a position and a remedy; nothing in this module changes the process. Touches: one `prctl(2)` to find
//! out how many capabilities the kernel has.
#![forbid(unsafe_code)]

mod error;
mod privilege_table;
mod privileges;
mod set;
mod state;
mod table;
mod text;

pub use caps::Capability;
pub use error::{Problem, TextError};
pub use privileges::{Privilege, Privileges, PrivilegesError};
pub use set::{CapabilitySet, Count, last_cap};
pub use state::State;
pub use text::{parse, parse_with};
