//! Builds the binaries under test and copies them into a directory, for test runs that cannot call cargo.

use std::path::Path;
use std::process::ExitCode;

use portreeve_tests::binaries;

const HELP: &str = "\
usage: copy_programs DIRECTORY

Builds all binaries that the end-to-end tests run, and copies them into DIRECTORY, which is created if it does not exist.
With PORTREEVE_BIN_DIR=DIRECTORY in the environment, the tests run these binaries and do not call cargo.";

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args_os().skip(1).collect();
    match &arguments[..] {
        [word] if word == "--help" => println!("{HELP}"),
        [directory] => {
            if let Err(error) = binaries::copy_into(Path::new(directory)) {
                eprintln!("copy_programs: cannot copy the binaries into {}: {error}", directory.display());
                return ExitCode::from(73);
            }
        }
        _ => {
            eprintln!("{HELP}");
            return ExitCode::from(64);
        }
    }
    ExitCode::SUCCESS
}
