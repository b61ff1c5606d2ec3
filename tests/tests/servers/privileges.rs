//! What the processes of a server may do, by /proc.

use std::fs;

use portreeve_tests::process::{self, Status};

/// A process and its descendants. One that ends meanwhile is left out.
pub fn processes(first: u32) -> Vec<(u32, Status)> {
    let all = process::descendants(first).into_iter().chain([first]);
    all.filter_map(|pid| Some((pid, Status::parse(&fs::read_to_string(format!("/proc/{pid}/status")).ok()?))))
        .collect()
}

/// A process and its descendants are an ordinary user without a capability, and gain none. Their bounding set has these at most.
#[track_caller]
pub fn assert_unprivileged(first: u32, user: u32, bounding: u64) {
    for (pid, status) in processes(first) {
        let capabilities = (status.permitted, status.effective, status.inheritable);
        assert_eq!((status.uid, capabilities), (vec![user; 4], (0, 0, 0)), "process {pid}");
        assert!(status.no_new_privs && status.bounding & !bounding == 0, "process {pid}");
    }
    assert!(process::is_running(first));
}
