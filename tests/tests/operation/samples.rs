//! The configurations that an operator starts from: each is valid on a host that has what it names.

use std::fs::{self, DirBuilder};
use std::os::unix::fs::DirBuilderExt as _;
use std::process::Command;

use portreeve_tests::chroot::Chroot;
use portreeve_tests::{Host, binaries, broker, isolated};
use serde_json::Value;

/// Each sample with its name and the accounts that it needs beyond those of every host.
const SAMPLES: [(&str, &str, &[&str]); 4] = [
    ("portreeve.conf", include_str!("../../../deploy/portreeve.conf"), &["@portreeve"]),
    (
        "standalone.conf",
        include_str!("../../../deploy/samples/standalone.conf"),
        &["mail-server", "@portreeve", "@ssl-cert"],
    ),
    (
        "cluster.conf",
        include_str!("../../../deploy/samples/cluster.conf"),
        &["mail-server", "portreeve-coordinator", "@portreeve"],
    ),
    (
        "services.conf",
        include_str!("../../../deploy/samples/services.conf"),
        &["www", "resolver", "submission", "@portreeve", "@monitoring"],
    ),
];

/// The sample with its paths below /usr and /var, where a test creates nothing, replaced by paths of the test host, and with a
/// limit of open files that any host allows.
fn placed(host: &Host, chroot: &Chroot, text: &str) -> String {
    let program = host.binary(binaries::SCRIPTED_WORKER).display().to_string();
    text.replace("/var/spool/mail-server", &chroot.path.display().to_string())
        .replace("/usr/lib/mail-server/smtpd", &program)
        .replace("nofile = 80000", "nofile = 500")
}

fn is_valid(host: &Host, sample: &str) {
    let (name, text, accounts) = *SAMPLES.iter().find(|(name, ..)| *name == sample).unwrap();
    for (account, id) in accounts.iter().zip(5000..) {
        match account.strip_prefix('@') {
            Some(group) => host.add_group(group, id),
            None => host.add_user(account, id),
        }
    }
    for directory in ["/run/portreeve", "/run/submission"] {
        DirBuilder::new().mode(0o755).create(directory).unwrap();
    }
    let chroot = Chroot::new(host, "chroot");
    let config = broker::config(host, &placed(host, &chroot, text));
    let output =
        Command::new(host.binary(binaries::BROKER)).args(["check", "--json"]).arg(config).output().unwrap();
    let findings: Value = serde_json::from_slice(&output.stdout).unwrap();
    let findings: Vec<&Value> = findings["diagnostics"].as_array().unwrap().iter().collect();
    // This host may lack a capability in its bounding set; the sample does not cause that.
    let about_sample = |found: &&&Value| !found["message"].as_str().unwrap().contains("bounding set");
    let wrong: Vec<&&Value> = findings.iter().filter(about_sample).collect();
    assert!(output.status.success() && wrong.is_empty(), "{name}: {findings:?}");
}

#[test]
fn the_packaged_configuration_is_valid() {
    isolated(|host| is_valid(host, "portreeve.conf"));
}

#[test]
fn the_sample_of_a_standalone_mail_server_is_valid() {
    isolated(|host| is_valid(host, "standalone.conf"));
}

#[test]
fn the_sample_of_a_cluster_node_is_valid() {
    isolated(|host| is_valid(host, "cluster.conf"));
}

#[test]
fn the_sample_of_several_services_is_valid() {
    isolated(|host| is_valid(host, "services.conf"));
}

#[test]
fn every_sample_is_tested() {
    let directory = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/samples");
    for entry in fs::read_dir(directory).unwrap() {
        let name = entry.unwrap().file_name();
        assert!(SAMPLES.iter().any(|(sample, ..)| name == *sample), "{name:?} is not tested");
    }
}
