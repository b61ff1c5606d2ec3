//! Requests and replies of the C library, byte for byte, and its robustness against a hostile broker.

use std::process::Command;

use portreeve_tests::isolated;
use portreeve_tests::namespaces::run;

use crate::compiler::{compile, compilers};

const TEST: &str = include_str!("../../../worker/c/tests/frames.c");
const FRAMES: &str = include_str!("../../../protocol/tests/golden/frames.txt");

#[test]
fn the_c_library_agrees_with_every_golden_frame_and_survives_all_others() {
    isolated(|host| {
        let frames = host.file("frames.txt", FRAMES);
        for compiler in compilers() {
            // The test checks sizes that its own conversions change.
            let options =
                ["-Wno-conversion", "-g", "-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"];
            let program = compile(host, compiler, "frames", TEST, &options);
            let output = run(Command::new(&program).arg(&frames), "gcc");
            assert_eq!(output, "all tests passed\n");
        }
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
