//! What `portreeved` does beside running: answers about a configuration, without root and without changing anything.

mod check;
mod explain;
mod output;

pub use check::Check;
pub use explain::{Explain, Question};
pub use output::print;
