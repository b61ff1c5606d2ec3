//! Requests and replies of the C library, byte for byte, and its robustness against a hostile broker.

use std::process::Command;

use portreeve_tests::isolated;
use portreeve_tests::namespaces::run;

use crate::compiler::{SANITIZERS, compile, compilers};

const TEST: &str = include_str!("../../../worker/c/tests/frames.c");
const FRAMES: &str = include_str!("../../../protocol/tests/golden/frames.txt");

#[test]
fn the_c_library_agrees_with_every_golden_frame_and_survives_all_others() {
    isolated(|host| {
        let frames = host.file("frames.txt", FRAMES);
        // The library without the test is checked for conversions below.
        let options = [&SANITIZERS[..], &["-Wno-conversion"]].concat();
        let program = compile(host, "cc", "frames", TEST, &options);
        let output = run(Command::new(&program).arg(&frames), "gcc");
        assert_eq!(output, "all tests passed\n");
    });
}

/// The example of clients.md, without the code around it.
fn documented_example() -> &'static str {
    let page = include_str!("../../../deploy/docs/clients.md");
    let (_, rest) = page.split_once("\n```c\n").unwrap();
    rest.split_once("\n```\n").unwrap().0
}

#[test]
fn the_example_of_the_page_for_clients_compiles() {
    isolated(|host| {
        compile(host, "cc", "example", documented_example(), &["-c"]);
    });
}

#[test]
fn the_c_library_compiles_without_warnings_as_c99_and_later_with_and_without_optimization() {
    isolated(|host| {
        for compiler in compilers() {
            for options in [["-O0", "-std=c99"], ["-O2", "-std=c11"], ["-O3", "-std=gnu17"]] {
                let options = [&options[..], &["-c", "-Wstrict-prototypes", "-Wcast-qual"]].concat();
                compile(host, compiler, "library", "#include \"portreeve.c\"\n", &options);
            }
        }
    });
}
