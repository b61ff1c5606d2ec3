//! Compiles C programs in the test's own directory. The sources are part of the test program, because the user of a test may
//! be unable to read those of the build.

use std::path::PathBuf;
use std::process::Command;

use portreeve_tests::Host;
use portreeve_tests::namespaces::run;

/// The library, as a program copies it into its source tree.
pub const LIBRARY: [(&str, &str); 2] = [
    ("portreeve.h", include_str!("../../../worker/c/portreeve.h")),
    ("portreeve.c", include_str!("../../../worker/c/portreeve.c")),
];
/// The sample mail server.
pub const SMTP_GREETER: &str = include_str!("../../../worker/c/examples/smtp_greeter.c");
/// The sample owner of an address.
pub const ADDRESS_HOLDER: &str = include_str!("../../../worker/c/examples/address_holder.c");

/// C99 without extensions, and no warnings.
const STRICT: [&str; 7] =
    ["-std=c99", "-pedantic", "-Wall", "-Wextra", "-Wshadow", "-Wconversion", "-Werror"];

/// Invalid accesses, leaks and undefined behaviour end the program. These options need libasan and libubsan, on which gcc
/// depends.
pub const SANITIZERS: [&str; 4] = ["-g", "-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"];

/// The C compilers of this machine: the default one, and clang if it is installed.
pub fn compilers() -> Vec<&'static str> {
    let has_clang = Command::new("clang").arg("--version").output().is_ok();
    if has_clang { vec!["cc", "clang"] } else { vec!["cc"] }
}

/// Compiles a program from one source file, with further options and files, and returns its path.
#[track_caller]
pub fn compile(host: &Host, compiler: &str, name: &str, source: &str, options: &[&str]) -> PathBuf {
    for (name, text) in LIBRARY {
        host.file(name, text);
    }
    let file = host.file(&format!("{name}.c"), source);
    let program = host.path(format!("{name}-{compiler}"));
    let mut command = Command::new(compiler);
    command.args(STRICT).arg("-I.").arg("-o").arg(&program).arg(file).args(options);
    run(&mut command, "gcc");
    program
}

/// Compiles an example together with the library, linked statically, so that it runs in an empty chroot.
#[track_caller]
pub fn compile_example(host: &Host, name: &str, source: &str) -> PathBuf {
    compile(host, "cc", name, source, &["portreeve.c", "-static"])
}
