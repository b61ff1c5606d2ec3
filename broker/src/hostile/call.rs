//! Raw system calls for attacks, without a library in between.

use nix::errno::Errno;

/// An argument of a system call: a number or an address.
pub type Word = libc::c_long;

/// Makes a system call. The kernel ignores surplus arguments.
pub fn call<const N: usize>(number: Word, arguments: [Word; N]) -> nix::Result<i64> {
    let mut words = [0; 6];
    for (word, argument) in words.iter_mut().zip(arguments) {
        *word = argument;
    }
    let [a, b, c, d, e, f] = words;
    // SAFETY: every address that an attack passes points to a value that lives until the call returns and is at least
    // as large as the call assumes.
    Errno::result(unsafe { libc::syscall(number, a, b, c, d, e, f) })
}

/// The address of a value.
pub fn address<T: ?Sized>(value: &T) -> Word {
    std::ptr::from_ref(value).cast::<u8>().expose_provenance().cast_signed() as Word
}

/// The address of a value that the call writes to.
pub fn address_mut<T: ?Sized>(value: &mut T) -> Word {
    std::ptr::from_mut(value).cast::<u8>().expose_provenance().cast_signed() as Word
}

/// A small number as an argument.
pub fn word(value: i32) -> Word {
    Word::from(value)
}

/// The parent process, which runs as root with all capabilities, unconfined.
pub fn victim() -> Word {
    word(nix::unistd::getppid().as_raw())
}
