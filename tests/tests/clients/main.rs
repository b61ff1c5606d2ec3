//! Clients in other languages, with the real broker.

mod go;
mod program;
mod python;
