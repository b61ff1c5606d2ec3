//! Hostile peers: whatever they do, no other peer, no worker, no command of root and no other broker is harmed.
//!
//! Each test prints one line for each trick that it plays. See [`portreeve_tests::adversary`].

mod insiders;
mod users;
