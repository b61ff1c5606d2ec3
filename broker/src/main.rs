//! `portreeved`: everything is in the library, where tests can reach it.

fn main() -> std::process::ExitCode {
    portreeve_broker::cli::main()
}
