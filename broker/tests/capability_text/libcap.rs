//! libcap as a shared library, and the comparison with it.
//!
//! Promises: memory that libcap allocates is freed. Touches nothing but its own memory.

use std::ffi::{CStr, CString, c_char, c_int, c_void};

use libloading::{Library, Symbol};
use portreeve_broker::capability::{CapabilitySet, State, parse};

/// libcap's functions, each with its type from `sys/capability.h`.
pub struct Libcap {
    from_text: unsafe extern "C" fn(*const c_char) -> *mut c_void,
    to_text: unsafe extern "C" fn(*mut c_void, *mut isize) -> *mut c_char,
    get_flag: unsafe extern "C" fn(*mut c_void, c_int, c_int, *mut c_int) -> c_int,
    max_bits: unsafe extern "C" fn() -> c_int,
    free: unsafe extern "C" fn(*mut c_void) -> c_int,
    _library: Library,
}

const EFFECTIVE: c_int = 0;
const PERMITTED: c_int = 1;
const INHERITABLE: c_int = 2;

/// Tries to install libcap, which succeeds for root on Debian. Otherwise [`Libcap::load`] fails and names the package.
fn install() {
    let _ = std::process::Command::new("apt-get").args(["install", "-y", "-qq", "libcap2"]).status();
}

impl Libcap {
    /// Loads libcap, or fails and names the package to install.
    pub fn load() -> Self {
        // SAFETY: libcap's initialiser only allocates and calls prctl(2).
        let open = || unsafe { Library::new("libcap.so.2") };
        let library = open()
            .or_else(|_| {
                install();
                open()
            })
            .unwrap_or_else(|error| {
                panic!(
                    "cannot load libcap, the reference of this test: {error}. Install the package libcap2."
                )
            });
        /// # Safety
        /// `T` is the type that sys/capability.h gives the function of that name.
        unsafe fn get<T: Copy>(library: &Library, name: &str) -> T {
            // SAFETY: the type is right, by this function's own condition.
            let symbol: Symbol<T> = unsafe { library.get(name) }.unwrap();
            *symbol
        }
        // SAFETY: each field has the type that sys/capability.h declares.
        unsafe {
            Self {
                from_text: get(&library, "cap_from_text"),
                to_text: get(&library, "cap_to_text"),
                get_flag: get(&library, "cap_get_flag"),
                max_bits: get(&library, "cap_max_bits"),
                free: get(&library, "cap_free"),
                _library: library,
            }
        }
    }

    /// The number of capabilities that libcap believes the kernel has.
    pub fn max_bits(&self) -> c_int {
        // SAFETY: the function takes no argument and returns a number.
        unsafe { (self.max_bits)() }
    }

    /// The three sets and libcap's own text of them; `None` if libcap rejects the text.
    fn read(&self, text: &str) -> Option<(State, String)> {
        let text = CString::new(text).unwrap();
        // SAFETY: a NUL-terminated string that lives through the call.
        let caps = unsafe { (self.from_text)(text.as_ptr()) };
        if caps.is_null() {
            return None;
        }
        let set = |flag| {
            (0..64u8)
                .filter(|number| {
                    let mut value = 0;
                    // SAFETY: `caps` came from cap_from_text and `value` lives through the call.
                    let result = unsafe { (self.get_flag)(caps, c_int::from(*number), flag, &raw mut value) };
                    assert_eq!(result, 0);
                    value == 1
                })
                .collect::<CapabilitySet>()
        };
        let state =
            State { effective: set(EFFECTIVE), permitted: set(PERMITTED), inheritable: set(INHERITABLE) };
        // SAFETY: `caps` came from cap_from_text; a null length is allowed; the text is freed below, after its copy.
        let shown = unsafe {
            let shown = (self.to_text)(caps, std::ptr::null_mut());
            let copy = CStr::from_ptr(shown).to_str().unwrap().to_owned();
            (self.free)(shown.cast());
            (self.free)(caps);
            copy
        };
        Some((state, shown))
    }

    /// Compares libcap with this crate: both must give the same verdict, the same sets and the same output text, and
    /// that text must parse to the same sets.
    pub fn agrees(&self, text: &str) -> Result<bool, String> {
        let ours = parse(text);
        match (self.read(text), &ours) {
            (None, Err(error)) => {
                let in_text = text.get(error.span.clone()).is_some();
                if in_text {
                    Ok(false)
                } else {
                    Err(format!("{text:?}: span {:?} is outside the text", error.span))
                }
            }
            (None, Ok(state)) => Err(format!("{text:?}: libcap rejects, we parse {state:?}")),
            (Some((state, _)), Err(error)) => {
                Err(format!("{text:?}: libcap parses {state:?}, we reject: {error}"))
            }
            (Some((theirs, shown)), Ok(state)) => {
                if theirs != *state {
                    Err(format!("{text:?}: libcap parses {theirs:?}, we parse {state:?}"))
                } else if shown != state.to_text() {
                    Err(format!("{text:?}: libcap writes {shown:?}, we write {:?}", state.to_text()))
                } else if parse(&shown).as_ref() != Ok(state) {
                    Err(format!("{text:?}: {shown:?} does not parse to the same sets"))
                } else {
                    Ok(true)
                }
            }
        }
    }
}
