//! The children of this process.

use std::fs::File;
use std::os::unix::fs::FileExt as _;

use nix::unistd::{Pid, getpid};

use super::wait::is_child;

/// The highest process id on a 64-bit kernel, whatever kernel.pid_max is: PID_MAX_LIMIT, see proc_sys_kernel(5).
const HIGHEST_PID: i32 = 1 << 22;

/// Finds the children of this process, which has one thread, also inside a chroot or an empty root.
#[derive(Debug)]
pub struct Children {
    /// The kernel's list. It is opened before the root is replaced, and the kernel generates it at every read.
    list: Option<File>,
}

impl Children {
    /// Opens the list of this process: /proc/thread-self/children, see proc_pid_task(5), Linux 3.17. Without it, on a kernel
    /// without CONFIG_PROC_CHILDREN or where /proc is that of another namespace of process ids, children are found more
    /// slowly.
    ///
    /// # Capabilities
    /// None.
    pub fn open() -> Self {
        let own = std::fs::read_link("/proc/self").ok();
        let is_of_this_namespace = own.is_some_and(|link| link.as_os_str() == getpid().to_string().as_str());
        let list = is_of_this_namespace.then(|| File::open("/proc/thread-self/children").ok()).flatten();
        Self { list }
    }

    /// Finds children as without the list.
    pub fn without_list() -> Self {
        Self { list: None }
    }

    /// Calls `found` for each child that has not been reaped, as soon as it is found. One that this process gets meanwhile,
    /// or that follows one that ends meanwhile, may be missing.
    ///
    /// # Capabilities
    /// None.
    pub fn for_each(&self, mut found: impl FnMut(Pid)) {
        let mut check = |pid: i32| {
            let pid = Pid::from_raw(pid);
            if pid.as_raw() > 0 && is_child(pid) {
                found(pid);
            }
        };
        if !self.list.as_ref().is_some_and(|list| read(list, &mut check)) {
            // waitid(2) tells a child from any other number: about a second for all of them.
            (1..=HIGHEST_PID).for_each(check);
        }
    }
}

/// Reads a list of decimal numbers, each followed by a space. Returns false if it cannot be read.
fn read(list: &File, found: &mut impl FnMut(i32)) -> bool {
    let mut buffer = [0; 4096];
    let (mut offset, mut number) = (0, 0_i32);
    loop {
        let Ok(length) = list.read_at(&mut buffer, offset) else { return false };
        let Some(bytes) = buffer.get(..length).filter(|bytes| !bytes.is_empty()) else { return true };
        for byte in bytes {
            if byte.is_ascii_digit() {
                number = number.saturating_mul(10).saturating_add(i32::from(byte - b'0'));
            } else {
                found(std::mem::take(&mut number));
            }
        }
        offset += bytes.len() as u64;
    }
}
