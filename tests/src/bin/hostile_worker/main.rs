//! A compromised worker: it tries every known way to escape its confinement, and prints a line for each attack.
//!
//! `attack NAME blocked DETAIL`: the kernel or the broker blocked it. `attack NAME allowed DETAIL`: the kernel allows it to
//! every process, which SECURITY.md documents. `attack NAME ESCAPED DETAIL`: the attack succeeded. The last line is
//! `attack done`.
//!
//! Its chroot should contain what a careless operator might leave there: /proc, a set-user-ID copy of itself, a copy with
//! file capabilities, a writable directory, and the control socket. Each attack runs in a process of its own.

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
        // Keeps running, so that the test can inspect it.
        std::thread::park();
    }
}
