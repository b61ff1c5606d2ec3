//! The programs of others that the tests need. On a fresh Debian machine, root's test run installs those that are
//! missing; for anyone else, and where a service manager would start what is installed, the test that needs one fails
//! and names its package.

use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::OnceLock;

/// Each program and the package that it is in.
const NEEDED: [(&str, &str); 6] = [
    ("ip", "iproute2"),
    ("lighttpd", "lighttpd"),
    ("nft", "nftables"),
    ("python3", "python3"),
    ("swaks", "swaks"),
    ("unshare", "util-linux"),
];

/// Installs what is missing, once. Runs outside the test's namespaces, which have no network.
pub fn install_missing() {
    static DONE: OnceLock<()> = OnceLock::new();
    DONE.get_or_init(|| {
        let missing: Vec<&str> =
            NEEDED.iter().filter(|(program, _)| !is_there(program)).map(|(_, package)| *package).collect();
        let services_would_start = Path::new("/run/systemd/system").exists();
        let may = rustix::process::geteuid().is_root() && is_there("apt-get") && !services_would_start;
        if missing.is_empty() || !may {
            return;
        }
        println!("installing {}", missing.join(" "));
        apt_get(&["update", "-qq"]);
        let install = ["install", "-y", "-qq", "--no-install-recommends"];
        apt_get(&[&install[..], &missing].concat());
    });
}

/// Other test processes may install at the same time: each waits for its turn. What fails shows where the program is
/// used, with its package.
fn apt_get(arguments: &[&str]) {
    let _ = Command::new("apt-get")
        .args(["-o", "DPkg::Lock::Timeout=300"])
        .args(arguments)
        .env("DEBIAN_FRONTEND", "noninteractive")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .status();
}

fn is_there(program: &str) -> bool {
    ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"]
        .iter()
        .any(|directory| Path::new(directory).join(program).exists())
}
