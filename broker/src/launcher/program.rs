//! The worker's program: opened on the host, checked for the chroot in which it will run.
//!
//! It is executed by descriptor, so it need not be in the chroot; its interpreter (ld.so) and libraries must be. Missing
//! ones are reported before anything is started.

use std::collections::{HashSet, VecDeque};
use std::fs::File;
use std::io::{self, Read as _, Seek as _};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;

use elf::ElfStream;
use elf::abi;
use elf::endian::AnyEndian;
use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};

/// The default library directories of ld.so(8) and of distributions.
const LIBRARY_DIRECTORIES: [&str; 4] = ["/lib", "/usr/lib", "/lib64", "/usr/lib64"];

/// The place of missing files without a chroot.
const ON_THIS_HOST: &str = "on this host";

/// The files that a program or library needs.
#[derive(Debug, Default)]
struct Needs {
    interpreter: Option<String>,
    libraries: Vec<String>,
    /// DT_RPATH and DT_RUNPATH.
    search: Vec<String>,
    machine: u16,
}

/// Why a program cannot be a worker. Each message continues a sentence that begins with the program's name.
#[derive(Debug, thiserror::Error)]
pub enum Unusable {
    /// open(2) or fstat(2) failed.
    #[error("cannot be opened: {0}")]
    Open(io::Error),
    /// It is not a regular file.
    #[error("is not a regular file")]
    NotAFile,
    /// It has no execute permission bit.
    #[error("is not executable (mode {0:04o})")]
    NotExecutable(u32),
    /// It begins with `#!`: execveat(2) of a close-on-exec descriptor cannot start it.
    #[error("is a script, which cannot be executed by descriptor")]
    Script,
    /// It is not an ELF file.
    #[error("is not an ELF program")]
    NotElf,
    /// It begins like an ELF file but is invalid.
    #[error("is not a valid ELF program: {0}")]
    Malformed(elf::ParseError),
    /// Files that it needs are missing where it will run.
    #[error("cannot run {place}: {} missing", .needs.join(", "))]
    Missing {
        /// In the chroot, or on this host.
        place: &'static str,
        /// The interpreter and libraries.
        needs: Vec<String>,
    },
}

impl Unusable {
    /// What to do about it.
    pub fn remedy(&self) -> &'static str {
        match self {
            Self::Open(_) | Self::NotAFile | Self::NotElf => "write the absolute path of an executable",
            Self::NotExecutable(_) => "chmod a+x it, or write the path of an executable",
            Self::Script => "write its interpreter as the command and the script as the first argument",
            Self::Malformed(_) => "rebuild it",
            Self::Missing { place: ON_THIS_HOST, .. } => "install them, or link the program statically",
            Self::Missing { .. } => "copy or bind-mount them into the chroot, or link the program statically",
        }
    }
}

/// Opens the program at `path` on the host and checks it.
pub fn open(path: &str) -> Result<File, Unusable> {
    // Opening a FIFO must not block.
    let mut options = File::options();
    let mut file = options.read(true).custom_flags(libc::O_NONBLOCK).open(path).map_err(Unusable::Open)?;
    let metadata = file.metadata().map_err(Unusable::Open)?;
    if !metadata.is_file() {
        return Err(Unusable::NotAFile);
    }
    if metadata.mode() & 0o111 == 0 {
        return Err(Unusable::NotExecutable(metadata.mode() & 0o7777));
    }
    let mut magic = [0; 4];
    let length = file.read(&mut magic).map_err(Unusable::Open)?;
    if magic.starts_with(b"#!") {
        return Err(Unusable::Script);
    }
    if length < magic.len() || magic != abi::ELFMAGIC.as_slice() {
        return Err(Unusable::NotElf);
    }
    Ok(file)
}

/// Checks that everything the program needs is below `root`, or on this host without a chroot.
pub fn complete(program: &File, root: Option<BorrowedFd<'_>>) -> Result<(), Unusable> {
    let needs = missing(program, root).map_err(Unusable::Malformed)?;
    let place = if root.is_some() { "in security.chroot" } else { ON_THIS_HOST };
    if needs.is_empty() { Ok(()) } else { Err(Unusable::Missing { place, needs }) }
}

/// The interpreter and libraries that the program needs and that are missing below `root`.
fn missing(program: &File, root: Option<BorrowedFd<'_>>) -> Result<Vec<String>, elf::ParseError> {
    let program = needs(program)?;
    let Some(interpreter) = program.interpreter.clone() else {
        return Ok(Vec::new());
    };
    let find = |path: &str| match root {
        Some(root) => find_below(root, path),
        None => File::open(path).ok(),
    };
    let mut missing = Vec::new();
    if find(&interpreter).is_none() {
        missing.push(format!("the interpreter {interpreter}"));
    }
    let directories = directories(program.machine, &find);
    let mut seen = HashSet::new();
    let mut queue = VecDeque::from([program]);
    while let Some(needs) = queue.pop_front() {
        let places: Vec<&String> = needs.search.iter().chain(&directories).collect();
        for library in needs.libraries.iter().filter(|name| !interpreter.ends_with(name.as_str())) {
            if !seen.insert(library.clone()) {
                continue;
            }
            let file = places.iter().find_map(|place| find(&format!("{place}/{library}")));
            match file {
                Some(file) => queue.push_back(self::needs(&file)?),
                None => missing.push(format!("the library {library}")),
            }
        }
    }
    Ok(missing)
}

/// Opens a path as it is resolved after chroot: links and `..` stay inside.
fn find_below(root: impl AsFd, path: &str) -> Option<File> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    openat2(root, Path::new(path), flags, Mode::empty(), ResolveFlags::IN_ROOT).ok().map(File::from)
}

/// The default library directories, those of this architecture first, and the directories of ld.so.conf.
fn directories(machine: u16, find: &impl Fn(&str) -> Option<File>) -> Vec<String> {
    let triplet = match machine {
        abi::EM_X86_64 => "x86_64-linux-gnu",
        abi::EM_AARCH64 => "aarch64-linux-gnu",
        abi::EM_RISCV => "riscv64-linux-gnu",
        _ => ".",
    };
    let of_architecture = ["/lib", "/usr/lib"].map(|base| format!("{base}/{triplet}"));
    let mut configured = String::new();
    if let Some(mut file) = find("/etc/ld.so.conf") {
        let _ = file.read_to_string(&mut configured); // an unreadable file adds nothing
    }
    let configured =
        configured.lines().map(str::trim).filter(|line| line.starts_with('/')).map(str::to_owned);
    of_architecture.into_iter().chain(LIBRARY_DIRECTORIES.map(str::to_owned)).chain(configured).collect()
}

fn needs(file: &File) -> Result<Needs, elf::ParseError> {
    let mut file = file;
    file.rewind()?;
    let mut elf = ElfStream::<AnyEndian, &File>::open_stream(file)?;
    let mut needs = Needs { machine: elf.ehdr.e_machine, ..Needs::default() };
    let segments = elf.segments().clone();
    if let Some(segment) = segments.iter().find(|segment| segment.p_type == abi::PT_INTERP) {
        needs.interpreter = Some(text(elf.segment_data(segment)?, 0));
    }
    let Some(dynamic) = elf.dynamic()? else {
        return Ok(needs);
    };
    let entries: Vec<(i64, u64)> = dynamic.iter().map(|entry| (entry.d_tag, entry.d_val())).collect();
    let strings = entries.iter().find(|entry| entry.0 == abi::DT_STRTAB).map_or(0, |entry| entry.1);
    let holds_strings = |segment: &&elf::segment::ProgramHeader| {
        segment.p_type == abi::PT_LOAD
            && (segment.p_vaddr..segment.p_vaddr.saturating_add(segment.p_filesz)).contains(&strings)
    };
    let Some(segment) = segments.iter().find(holds_strings) else {
        return Ok(needs);
    };
    let data = elf.segment_data(segment)?;
    let string = |offset: u64| text(data, (strings - segment.p_vaddr).saturating_add(offset));
    for (tag, value) in entries {
        match tag {
            abi::DT_NEEDED => needs.libraries.push(string(value)),
            abi::DT_RPATH | abi::DT_RUNPATH => {
                needs
                    .search
                    .extend(string(value).split(':').filter(|path| path.starts_with('/')).map(str::to_owned));
            }
            _ => {}
        }
    }
    Ok(needs)
}

/// The NUL-terminated string at an offset.
fn text(data: &[u8], offset: u64) -> String {
    let rest = usize::try_from(offset).ok().and_then(|offset| data.get(offset..)).unwrap_or_default();
    let end = rest.iter().position(|byte| *byte == 0).unwrap_or(rest.len());
    String::from_utf8_lossy(rest.get(..end).unwrap_or_default()).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dynamic_program_needs_its_interpreter_and_libraries_below_the_root() {
        let program = File::open(std::env::current_exe().unwrap()).unwrap();
        assert_eq!(missing(&program, None).unwrap(), Vec::<String>::new());
        let empty = tempfile::tempdir().unwrap();
        let root = File::open(empty.path()).unwrap();
        let missing = missing(&program, Some(root.as_fd())).unwrap();
        assert!(missing.iter().any(|line| line.starts_with("the interpreter /lib")), "{missing:?}");
        assert!(missing.contains(&"the library libc.so.6".to_owned()), "{missing:?}");
    }
}
