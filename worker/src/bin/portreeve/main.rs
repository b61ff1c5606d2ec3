//! portreeve.
fn main() {}
