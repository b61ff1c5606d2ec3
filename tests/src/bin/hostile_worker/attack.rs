//! Running an attack and reporting its outcome.

use std::io::{self, Write as _};

/// An argument of a system call: a number or an address.
pub type Word = libc::c_long;

/// The outcome of an attack, with details.
pub enum Outcome {
    /// The kernel or the broker blocked it.
    Blocked(String),
    /// The kernel allows it to every process.
    Allowed(String),
    /// It succeeded, or it was not tried properly.
    Escaped(String),
}

/// One attack.
pub struct Attack {
    pub name: &'static str,
    pub attempt: fn() -> Outcome,
}

/// Runs an attack in a process of its own and prints its line. If a signal kills the process, the attack was blocked.
pub fn run(attack: &Attack) {
    // SAFETY: this program has one thread, so the child may call any function.
    match unsafe { libc::fork() } {
        0 => {
            let (word, detail) = match (attack.attempt)() {
                Outcome::Blocked(detail) => ("blocked", detail),
                Outcome::Allowed(detail) => ("allowed", detail),
                Outcome::Escaped(detail) => ("ESCAPED", detail),
            };
            say(&format!("attack {} {word} {detail}", attack.name));
            // SAFETY: there is nothing to flush or clean up.
            unsafe { libc::_exit(0) }
        }
        -1 => say(&format!("attack {} ESCAPED not tried: fork failed: {}", attack.name, last_error())),
        child => {
            let mut status = 0;
            // SAFETY: waitpid writes only to the status.
            unsafe { libc::waitpid(child, &raw mut status, 0) };
            if libc::WIFSIGNALED(status) {
                say(&format!("attack {} blocked by signal {}", attack.name, libc::WTERMSIG(status)));
            } else if libc::WEXITSTATUS(status) != 0 {
                say(&format!("attack {} ESCAPED not tried: its process failed", attack.name));
            }
        }
    }
}

fn say(line: &str) {
    // One write for each line: other processes write to the same file.
    let _ = io::stdout().write_all(format!("{line}\n").as_bytes()); // a missing line fails the test
}

fn last_error() -> io::Error {
    io::Error::last_os_error()
}

/// Makes a system call.
pub fn call<const N: usize>(number: Word, arguments: [Word; N]) -> io::Result<Word> {
    let mut words = [0; 6];
    words[..N].copy_from_slice(&arguments);
    let [a, b, c, d, e, f] = words;
    // SAFETY: every address that an attack passes is of a value that outlives the call and is as large as the call
    // expects.
    let result = unsafe { libc::syscall(number, a, b, c, d, e, f) };
    if result == -1 { Err(last_error()) } else { Ok(result) }
}

/// The address of a value.
pub fn address<T: ?Sized>(value: &T) -> Word {
    std::ptr::from_ref(value).cast::<u8>().expose_provenance().cast_signed() as Word
}

/// The address of a value that the call writes to.
pub fn address_mut<T: ?Sized>(value: &mut T) -> Word {
    std::ptr::from_mut(value).cast::<u8>().expose_provenance().cast_signed() as Word
}

/// Blocked if the kernel reports a lack of permission, a missing file or a missing system call. Any other error means that
/// other arguments could have succeeded.
pub fn refused<T>(result: io::Result<T>) -> Outcome {
    match result {
        Ok(_) => Outcome::Escaped("it succeeded".to_owned()),
        Err(error) => match error.raw_os_error() {
            // ENOSPC: user.max_user_namespaces is 0.
            Some(libc::EPERM | libc::EACCES | libc::ENOENT | libc::EROFS | libc::ENOSYS | libc::ENOSPC) => {
                Outcome::Blocked(error.to_string())
            }
            _ => Outcome::Escaped(format!("only the arguments were rejected: {error}")),
        },
    }
}

/// Whether the worker is root of a user namespace.
pub fn is_root_of_a_namespace() -> bool {
    std::env::args().any(|argument| argument == "--root-of-a-namespace")
}

/// The same for what root of a user namespace is allowed: it has an effect inside the namespace only.
pub fn refused_outside_a_namespace<T>(result: io::Result<T>) -> Outcome {
    match result {
        Ok(_) if is_root_of_a_namespace() => Outcome::Allowed("inside its namespace".to_owned()),
        result => refused(result),
    }
}

/// Blocked if all of several attempts are.
pub fn all_refused<T>(attempts: impl IntoIterator<Item = (String, io::Result<T>)>) -> Outcome {
    let mut count = 0;
    for (what, result) in attempts {
        match refused(result) {
            Outcome::Blocked(_) => count += 1,
            Outcome::Escaped(why) | Outcome::Allowed(why) => {
                return Outcome::Escaped(format!("{what}: {why}"));
            }
        }
    }
    Outcome::Blocked(format!("{count} of {count}"))
}
