//! The malicious broker of the tests: built with the feature `hostile` only, never for release.

fn main() -> std::process::ExitCode {
    portreeve_broker::hostile::main()
}
