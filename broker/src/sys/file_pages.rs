//! Releasing the pages of program files that only the start needed.

use std::ffi::c_void;

use libc::{PF_W, PT_LOAD, c_int, dl_phdr_info, size_t};

/// Removes the read-only pages of the program and of its libraries from this process's memory. They stay in the kernel's page
/// cache, which maps each again when it is next used. See madvise(2), MADV_DONTNEED, and dl_iterate_phdr(3).
///
/// # Capabilities
/// None.
pub fn release() {
    // SAFETY: the callback has the expected type and does not keep what it is given.
    unsafe { libc::dl_iterate_phdr(Some(release_object), std::ptr::null_mut()) };
}

/// Releases the read-only segments of one program or library.
unsafe extern "C" fn release_object(info: *mut dl_phdr_info, _: size_t, _: *mut c_void) -> c_int {
    // SAFETY: dl_iterate_phdr passes a valid description with `dlpi_phnum` program headers.
    let (base, headers) = unsafe {
        let info = &*info;
        (info.dlpi_addr, std::slice::from_raw_parts(info.dlpi_phdr, usize::from(info.dlpi_phnum)))
    };
    // SAFETY: the call takes a number.
    let Ok(page) = usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }) else { return 0 };
    for header in headers.iter().filter(|header| header.p_type == PT_LOAD && header.p_flags & PF_W == 0) {
        let (Ok(start), Ok(length)) =
            (usize::try_from(base + header.p_vaddr), usize::try_from(header.p_memsz))
        else {
            continue;
        };
        let first = start - start % page;
        // SAFETY: the segment is mapped from a file and was never written, so its pages have the same content when they are
        // read again.
        unsafe { libc::madvise(first as *mut c_void, start - first + length, libc::MADV_DONTNEED) };
    }
    0
}
