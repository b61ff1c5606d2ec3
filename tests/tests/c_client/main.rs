//! The client library in C, its examples, and the smallest client of WIRE.md: compiled here, and run against the broker.

mod addresses;
mod compiler;
mod frames;
mod greeter;
mod session;
mod wire_document;
