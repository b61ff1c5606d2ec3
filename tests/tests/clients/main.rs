//! Clients in other languages, with the real broker.

mod python;
