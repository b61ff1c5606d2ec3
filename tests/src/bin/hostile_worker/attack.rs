//! An attack, how it is run, and how what came of it is told.

use std::io::{self, Write as _};

/// A number or the address of something, as a system call takes it.
pub type Word = libc::c_long;

/// What came of an attack.
pub enum Outcome {
    Held(String),
    Allowed(String),
    Escaped(String),
}

/// One attack.
pub struct Attack {
    pub name: &'static str,
    pub attempt: fn() -> Outcome,
}

/// Runs it in a process of its own and prints its line; a process that is killed held too, and says by what.
pub fn run(attack: &Attack) {
    // SAFETY: this program has one thread, so its copy may do anything.
    match unsafe { libc::fork() } {
        0 => {
            let (word, detail) = match (attack.attempt)() {
                Outcome::Held(detail) => ("held", detail),
                Outcome::Allowed(detail) => ("allowed", detail),
                Outcome::Escaped(detail) => ("ESCAPED", detail),
            };
            say(&format!("attack {} {word} {detail}", attack.name));
            // SAFETY: nothing is left to be written or removed.
            unsafe { libc::_exit(0) }
        }
        -1 => say(&format!("attack {} ESCAPED it could not be tried: {}", attack.name, last_error())),
        child => {
            let mut status = 0;
            // SAFETY: waitpid writes to status alone.
            unsafe { libc::waitpid(child, &raw mut status, 0) };
            if libc::WIFSIGNALED(status) {
                say(&format!("attack {} held by signal {}", attack.name, libc::WTERMSIG(status)));
            } else if libc::WEXITSTATUS(status) != 0 {
                say(&format!("attack {} ESCAPED it failed by itself", attack.name));
            }
        }
    }
}

fn say(line: &str) {
    // In one piece, for others write there too.
    let _ = io::stdout().write_all(format!("{line}\n").as_bytes());
}

fn last_error() -> io::Error {
    io::Error::last_os_error()
}

/// Makes a system call.
pub fn call<const N: usize>(number: Word, arguments: [Word; N]) -> io::Result<Word> {
    let mut words = [0; 6];
    words[..N].copy_from_slice(&arguments);
    let [a, b, c, d, e, f] = words;
    // SAFETY: every address that an attack passes is of something that lives until the call returns and is as large
    // as the call takes it for.
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

/// Held where the kernel said that it is not allowed, not there or no call of its own; any other error means that it would have let it.
pub fn refused<T>(result: io::Result<T>) -> Outcome {
    match result {
        Ok(_) => Outcome::Escaped("it succeeded".to_owned()),
        Err(error) => match error.raw_os_error() {
            Some(libc::EPERM | libc::EACCES | libc::ENOENT | libc::EROFS | libc::ENOSYS) => {
                Outcome::Held(error.to_string())
            }
            _ => Outcome::Escaped(format!("only its arguments were wrong: {error}")),
        },
    }
}

/// Held where every one of several attempts is.
pub fn all_refused<T>(attempts: impl IntoIterator<Item = (String, io::Result<T>)>) -> Outcome {
    let mut count = 0;
    for (what, result) in attempts {
        match refused(result) {
            Outcome::Held(_) => count += 1,
            Outcome::Escaped(why) | Outcome::Allowed(why) => {
                return Outcome::Escaped(format!("{what}: {why}"));
            }
        }
    }
    Outcome::Held(format!("{count} of {count}"))
}
