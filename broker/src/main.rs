//! portreeved.
fn main() {}
