//! The children of a process. A program of its own: no other test may start children in this process, or wait for a descriptor
//! of it to be closed while a child is started.

use std::process::{Child, Command};

use portreeve_broker::sys::children::Children;

fn found(children: &Children) -> Vec<u32> {
    let mut pids = Vec::new();
    children.for_each(|pid| pids.push(pid.as_raw().cast_unsigned()));
    pids.sort_unstable();
    pids
}

/// More than one read of the kernel's list returns.
#[test]
fn children_are_found_by_the_list_and_without_it_until_they_are_reaped() {
    let both = [Children::open(), Children::without_list()];
    let mut started: Vec<Child> =
        (0..700).map(|_| Command::new("sleep").arg("600").spawn().unwrap()).collect();
    let mut pids: Vec<u32> = started.iter().map(Child::id).collect();
    pids.sort_unstable();
    both.iter().for_each(|children| assert_eq!(found(children), pids));
    started.iter_mut().for_each(|child| child.kill().unwrap());
    both.iter().for_each(|children| assert_eq!(found(children), pids));
    for child in &mut started {
        child.wait().unwrap();
    }
    both.iter().for_each(|children| assert_eq!(found(children), [0; 0]));
}
