//! The hostile broker of the tests: built with the feature `hostile` only, and never for release.

fn main() -> std::process::ExitCode {
    portreeve_broker::hostile::main()
}
