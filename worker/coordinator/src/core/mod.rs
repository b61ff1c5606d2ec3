//! The decisions of the coordinator: pure, without clock, input and output.

pub mod check;
pub mod decide;
pub mod news;
pub mod patience;
pub mod placement;
pub mod promise;
pub mod record;
pub mod report;
pub mod rules;
pub mod state;
pub mod time;
pub mod txn;
