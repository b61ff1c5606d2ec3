//! The configurations that an operator starts from: each is good on a host that has what it names.

use std::fs::{self, DirBuilder};
use std::os::unix::fs::DirBuilderExt as _;
use std::process::Command;

use portreeve_tests::chroot::Chroot;
use portreeve_tests::{Host, binaries, broker, isolated};
use serde_json::Value;

/// Each by its name, with the accounts that it needs besides those of every host.
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
        &["mail-server", "coordinator", "@portreeve"],
    ),
    (
        "services.conf",
        include_str!("../../../deploy/samples/services.conf"),
        &["www", "resolver", "submission", "@portreeve", "@monitoring"],
    ),
];

/// What a sample has below /usr and /var, where a test makes nothing, on paths of this host's own.
fn placed(host: &Host, chroot: &Chroot, text: &str) -> String {
    let program = host.binary(binaries::SCRIPTED_WORKER).display().to_string();
    text.replace("/var/spool/mail-server", &chroot.path.display().to_string())
        .replace("/usr/lib/mail-server/smtpd", &program)
}

fn is_good(host: &Host, sample: &str) {
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
    let told: Value = serde_json::from_slice(&output.stdout).unwrap();
    let told: Vec<&Value> = told["diagnostics"].as_array().unwrap().iter().collect();
    // This host, and not the sample, may lack a capability for whatever is started on it.
    let about_sample = |found: &&&Value| !found["message"].as_str().unwrap().contains("bounding set");
    let wrong: Vec<&&Value> = told.iter().filter(about_sample).collect();
    assert!(output.status.success() && wrong.is_empty(), "{name}: {told:?}");
}

#[test]
fn the_configuration_that_the_package_installs_is_good() {
    isolated(|host| is_good(host, "portreeve.conf"));
}

#[test]
fn the_sample_of_a_mail_server_alone_is_good() {
    isolated(|host| is_good(host, "standalone.conf"));
}

#[test]
fn the_sample_of_a_cluster_node_is_good() {
    isolated(|host| is_good(host, "cluster.conf"));
}

#[test]
fn the_sample_of_several_services_is_good() {
    isolated(|host| is_good(host, "services.conf"));
}

#[test]
fn every_sample_is_among_those_that_are_tested() {
    let directory = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/samples");
    for entry in fs::read_dir(directory).unwrap() {
        let name = entry.unwrap().file_name();
        assert!(SAMPLES.iter().any(|(sample, ..)| name == *sample), "{name:?} is not tested");
    }
}
