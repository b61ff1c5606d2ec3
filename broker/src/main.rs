//! `portreeved`: a thin wrapper; the code is in the library.

fn main() -> std::process::ExitCode {
    portreeve_broker::cli::main()
}
