//! A worker that was taken over: it tries every way out that its authors know of, and prints a line for each.
//!
//! `NAME held DETAIL`: the kernel or the broker stopped it. `NAME allowed DETAIL`: the kernel lets any process do it and
//! SECURITY.md says so. `NAME ESCAPED DETAIL`: it got what it must not have. `done` is the last line.
//!
//! It expects in its chroot what a careless operator might leave there: /proc, a set-user-id copy of itself, one with
//! file capabilities, a directory that it can write to, the control socket. Each attack runs in a process of its own.

mod attack;
mod channel;
mod identity;
mod kernel;
mod namespaces;
mod network;
mod payload;
mod processes;

use attack::Attack;

fn main() {
    let mut arguments = std::env::args().skip(1);
    if arguments.next().as_deref() == Some("--as-program") {
        return payload::run(&arguments.next().unwrap_or_default());
    }
    let tables: [&[Attack]; 6] = [
        identity::ATTACKS,
        namespaces::ATTACKS,
        processes::ATTACKS,
        kernel::ATTACKS,
        network::ATTACKS,
        channel::ATTACKS,
    ];
    tables.into_iter().flatten().for_each(attack::run);
    println!("attack done");
    loop {
        // A worker that stays, so that the test can look at it.
        std::thread::park();
    }
}
