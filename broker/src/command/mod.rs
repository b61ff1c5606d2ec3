//! The commands `check` and `explain`: they examine a configuration, need no root and change nothing.

mod check;
mod explain;
mod output;

pub use check::Check;
pub use explain::{Explain, Question};
pub use output::print;
