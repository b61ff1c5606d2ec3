//! The binaries under test: built once by cargo in the test's own profile, or taken from `PORTREEVE_BIN_DIR`.
//!
//! Workers are linked statically, so that they run in an empty chroot. They have a target directory of their own, because
//! other compiler flags in the same directory would make cargo rebuild everything else.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

/// The broker.
pub const BROKER: &str = "portreeved";
/// The command-line client.
pub const CLIENT: &str = "portreeve";
/// The cluster coordinator.
pub const COORDINATOR: &str = "portreeve-coordinator";
/// The broker with fault injection: it fails, omits confinement steps and performs attacks as a test says.
pub const HOSTILE_BROKER: &str = "portreeved_hostile";
/// The worker that tries to escape its confinement.
pub const HOSTILE_WORKER: &str = "hostile_worker";
/// The program that runs another one with some system calls denied.
pub const DENY_SYSCALLS: &str = "deny_syscalls";
/// The worker that executes a test's commands.
pub const SCRIPTED_WORKER: &str = "scripted_worker";
/// The worker that serves floating listeners.
pub const FLOATING_GREETER: &str = "floating_greeter";
/// The sample mail server.
pub const SMTP_WORKER: &str = "smtp_worker";

/// The Go module's tests with the race detector, its example, and the program of its page, which are static. Only tests that start by
/// [`isolated_with_go`](crate::host::isolated_with_go) have them.
pub const GO_TESTS: &str = "go_tests";
/// See [`GO_TESTS`].
pub const GO_GREETER: &str = "go_greeter";
/// See [`GO_TESTS`].
pub const GO_README: &str = "go_readme";

const DYNAMIC: &[(&str, &[&str])] = &[
    (BROKER, &["-p", "portreeve-broker", "--bin", BROKER]),
    (CLIENT, &["-p", "portreeve-cli", "--bin", CLIENT]),
    (COORDINATOR, &["-p", "portreeve-coordinator", "--bin", COORDINATOR]),
];
// Built separately: cargo enables a feature for every package of a build in which one enables it.
const WITH_FEATURE: &[(&str, &[&str])] =
    &[(HOSTILE_BROKER, &["-p", "portreeve-broker", "--bin", HOSTILE_BROKER, "--features", "hostile"])];
const STATIC: &[(&str, &[&str])] = &[
    (SCRIPTED_WORKER, &["-p", "portreeve-tests", "--bin", SCRIPTED_WORKER]),
    (FLOATING_GREETER, &["--bin", FLOATING_GREETER]),
    (HOSTILE_WORKER, &["--bin", HOSTILE_WORKER]),
    (DENY_SYSCALLS, &["--bin", DENY_SYSCALLS]),
    (SMTP_WORKER, &["-p", "portreeve", "--example", SMTP_WORKER]),
];

fn names() -> impl Iterator<Item = &'static str> {
    DYNAMIC.iter().chain(WITH_FEATURE).chain(STATIC).map(|(name, _)| *name)
}

const GO: &[&str] = &[GO_TESTS, GO_GREETER, GO_README];

fn variable(name: &str) -> String {
    // The shell through which it passes discards variables with other characters.
    format!("PORTREEVE_TEST_{}", name.to_uppercase().replace('-', "_"))
}

/// The path of each binary, as environment variables for the process in the namespaces. Builds them the first time.
pub fn variables() -> impl Iterator<Item = (String, &'static PathBuf)> {
    static PATHS: OnceLock<BTreeMap<&'static str, PathBuf>> = OnceLock::new();
    let paths = PATHS.get_or_init(|| match std::env::var_os("PORTREEVE_BIN_DIR") {
        Some(directory) => names().map(|name| (name, Path::new(&directory).join(name))).collect(),
        None => build(),
    });
    paths.iter().map(|(name, path)| (variable(name), path))
}

/// The same for the programs in Go.
pub fn go_variables() -> impl Iterator<Item = (String, PathBuf)> {
    static DIRECTORY: OnceLock<PathBuf> = OnceLock::new();
    let directory = DIRECTORY.get_or_init(|| match std::env::var_os("PORTREEVE_BIN_DIR") {
        Some(directory) => PathBuf::from(directory),
        None => go_build(),
    });
    GO.iter().map(|name| (variable(name), directory.join(name)))
}

/// Opens the binaries that the parent process has named in the environment.
pub fn given() -> Vec<(&'static str, File)> {
    let open = |name| {
        let path = std::env::var_os(variable(name)).unwrap();
        let file =
            File::open(&path).unwrap_or_else(|error| panic!("cannot open the binary {path:?}: {error}"));
        (name, file)
    };
    let in_go = GO.iter().copied().filter(|name| std::env::var_os(variable(name)).is_some());
    names().chain(in_go).map(open).collect()
}

/// Builds every binary under test and copies it into `directory`, which `PORTREEVE_BIN_DIR` can then name. Where Go is not
/// installed, those in Go are missing.
pub fn copy_into(directory: &Path) -> io::Result<()> {
    fs::create_dir_all(directory)?;
    let in_go = is_go_installed().then(go_build);
    let in_go = in_go.iter().flat_map(|built| GO.iter().map(|name| (*name, built.join(name))));
    for (name, path) in build().into_iter().chain(in_go) {
        let to = directory.join(name);
        // A process may still be running the file of an earlier call, and such a file cannot be written.
        match fs::remove_file(&to) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => fs::copy(&path, &to)?,
        };
    }
    Ok(())
}

fn build() -> BTreeMap<&'static str, PathBuf> {
    let profile = profile();
    let mut paths = cargo_build(DYNAMIC, &mut cargo(&profile));
    // Always the dev profile: no other profile can be built with that feature.
    paths.extend(cargo_build(WITH_FEATURE, &mut cargo("dev")));
    let mut command = cargo(&profile);
    // Cargo prefers this variable to RUSTFLAGS.
    command
        .env("CARGO_ENCODED_RUSTFLAGS", "-Ctarget-feature=+crt-static")
        // Link-time optimisation of these test programs would take longer than they run.
        .env("CARGO_PROFILE_RELEASE_LTO", "off")
        .args(["--target", &host_triple(), "--target-dir"])
        .arg(target_directory().join("static"));
    paths.extend(cargo_build(STATIC, &mut command));
    paths
}

fn is_go_installed() -> bool {
    Command::new("go").arg("version").stdout(Stdio::null()).status().is_ok_and(|status| status.success())
}

const GO_MODULE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../worker/go");

/// Builds the programs in Go without the network, and returns their directory.
fn go_build() -> PathBuf {
    let directory = target_directory().join("go");
    let go = |folder: &Path, cgo: &str, arguments: &[&str], name: &str, package: &str| {
        let mut command = Command::new("go");
        command
            .current_dir(folder)
            .env("CGO_ENABLED", cgo)
            .env("GOCACHE", directory.join("cache"))
            .env("GOPATH", directory.join("path"))
            .envs([("GOFLAGS", "-mod=readonly"), ("GOPROXY", "off"), ("GOWORK", "off")])
            .args(arguments)
            .args(["-buildvcs=false", "-o"])
            .arg(directory.join(name))
            .arg(package);
        crate::namespaces::run(&mut command, "golang-go");
    };
    let race: &[&str] =
        if cfg!(any(target_arch = "x86_64", target_arch = "aarch64")) { &["-race"] } else { &[] };
    let module = Path::new(GO_MODULE);
    go(module, "1", &[&["test", "-c"], race].concat(), GO_TESTS, ".");
    go(module, "0", &["build"], GO_GREETER, "./examples/greeter");
    go(&go_readme(&directory), "0", &["build"], GO_README, ".");
    directory
}

/// Writes the module that the Go module's page describes, and returns its directory.
fn go_readme(directory: &Path) -> PathBuf {
    let page = include_str!("../../worker/go/README.md");
    let block = |language: &str| {
        let (_, text) = page.split_once(&format!("```{language}\n")).unwrap();
        text.split_once("```").unwrap().0
    };
    let requirement = block("text").replace("./third_party/portreeve", GO_MODULE);
    let module = directory.join("readme");
    fs::create_dir_all(&module).unwrap();
    fs::write(module.join("go.mod"), format!("module example\n\ngo 1.19\n\n{requirement}")).unwrap();
    fs::write(module.join("main.go"), block("go")).unwrap();
    module
}

fn cargo_program() -> String {
    std::env::var("CARGO").unwrap_or_else(|_| env!("CARGO").to_owned())
}

/// A test's executable is in `<target>/[<triple>/]<profile>/deps/`, a program of this package in the directory above.
fn profile_directory() -> PathBuf {
    let executable = std::env::current_exe().unwrap();
    let directory = executable.parent().unwrap();
    if directory.ends_with("deps") { directory.parent().unwrap().to_owned() } else { directory.to_owned() }
}

/// The directory in which cargo has built this program.
pub fn target_directory() -> PathBuf {
    profile_directory().parent().unwrap().to_owned()
}

fn profile() -> String {
    match profile_directory().file_name().and_then(|name| name.to_str()) {
        Some("debug") | None => "dev".to_owned(),
        Some(other) => other.to_owned(),
    }
}

fn cargo(profile: &str) -> Command {
    let mut command = Command::new(cargo_program());
    command
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .args(["build", "--locked", "--message-format=json-render-diagnostics", "--profile", profile])
        .stdin(Stdio::null());
    command
}

fn host_triple() -> String {
    let version = crate::namespaces::run(Command::new(cargo_program()).arg("-vV"), "cargo");
    let host = version.lines().find_map(|line| line.strip_prefix("host: "));
    host.unwrap().to_owned()
}

fn cargo_build(
    targets: &[(&'static str, &[&str])],
    command: &mut Command,
) -> BTreeMap<&'static str, PathBuf> {
    targets.iter().for_each(|(_, arguments)| {
        command.args(*arguments);
    });
    let output = command.output().unwrap_or_else(|error| {
        panic!(
            "cannot run cargo to build the binaries under test: {error}. \
            Install cargo, or set PORTREEVE_BIN_DIR to a directory that contains them"
        )
    });
    let diagnostics = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?} failed: {}\n{diagnostics}", output.status);
    let messages = String::from_utf8_lossy(&output.stdout);
    let executables: Vec<PathBuf> = messages.lines().filter_map(executable).collect();
    let find = |name: &'static str| {
        let path = executables.iter().find(|path| path.file_name().is_some_and(|file| file == name));
        (name, path.unwrap_or_else(|| panic!("cargo built no {name}")).clone())
    };
    targets.iter().map(|(name, _)| find(name)).collect()
}

fn executable(message: &str) -> Option<PathBuf> {
    let message: serde_json::Value = serde_json::from_str(message).ok()?;
    Some(PathBuf::from(message.get("executable")?.as_str()?))
}
