//! Errors that prevent a start: one line names the value, its position and the remedy, the exit code is one of
//! sysexits(3), and nothing keeps running or listening.

use std::net::TcpListener;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;

use portreeve_tests::broker::{self, SOCKET};
use portreeve_tests::chroot::{Chroot, WORKER};
use portreeve_tests::startup_failure::exit;
use portreeve_tests::{StartupFailure, binaries, isolated, sample};

/// A security scope with one extra line after the usual ones.
fn security(line: &str) -> String {
    format!("security {{\nuser = nobody\ngroup = nogroup\n{line}\n}}\n{}", sample::socket(r#"( "*:2525" )"#))
}

#[test]
fn a_start_without_root_is_refused() {
    isolated(|host| {
        let mut command = broker::command(host, &broker::config(host, &security("")));
        command.uid(WORKER).gid(WORKER);
        StartupFailure::of_command(command).assert_reports(exit::NO_PERMISSION, &["root", "65534"]);
    });
}

#[test]
fn an_unknown_user_is_refused() {
    isolated(|host| {
        let refusal = StartupFailure::of(host, &security("user = mailuser"));
        refusal.assert_reports(exit::NO_USER, &["user", "mailuser", "portreeve.conf:4", "useradd"]);
    });
}

#[test]
fn an_unknown_group_is_refused() {
    isolated(|host| {
        let refusal = StartupFailure::of(host, &security("group = mailgroup"));
        refusal.assert_reports(exit::NO_USER, &["group", "mailgroup", "portreeve.conf:4", "groupadd"]);
    });
}

#[test]
fn an_unknown_supplemental_group_is_refused() {
    isolated(|host| {
        let refusal = StartupFailure::of(host, &security("supplemental_groups = ( nogroup sslcerts )"));
        refusal.assert_reports(exit::NO_USER, &["group", "sslcerts", "portreeve.conf:4", "groupadd"]);
    });
}

#[test]
fn a_missing_chroot_is_refused() {
    isolated(|host| {
        let refusal = StartupFailure::of(host, &security("chroot = /run/host/nowhere"));
        refusal
            .assert_reports(exit::NO_INPUT, &["chroot", "/run/host/nowhere", "portreeve.conf:4", "create"]);
    });
}

#[test]
fn a_chroot_that_is_not_a_directory_is_refused() {
    isolated(|host| {
        host.file("nowhere", "");
        let refusal = StartupFailure::of(host, &security("chroot = /run/host/nowhere"));
        refusal.assert_reports(exit::NO_INPUT, &["chroot", "/run/host/nowhere", "portreeve.conf:4"]);
    });
}

#[test]
fn a_chroot_that_the_worker_can_write_to_is_refused() {
    isolated(|host| {
        let chroot = Chroot::new(host, "chroot");
        let mode =
            |mode| std::fs::set_permissions(&chroot.path, std::fs::Permissions::from_mode(mode)).unwrap();
        let check = || {
            let refusal = StartupFailure::of(host, &security("chroot = /run/host/chroot"));
            refusal
                .assert_reports(exit::CONFIG, &["/run/host/chroot", "writable", "portreeve.conf:4", "chown"]);
        };
        mode(0o777);
        check();
        chown(&chroot.path, None, Some(WORKER)).unwrap();
        mode(0o770);
        check();
        chown(&chroot.path, Some(WORKER), None).unwrap();
        mode(0o755);
        check();
        // The owner of a directory can give itself write permission.
        mode(0o555);
        check();
    });
}

#[test]
fn a_missing_configuration_is_refused() {
    isolated(|host| {
        let refusal = StartupFailure::of_command(broker::command(host, Path::new("/run/host/none.conf")));
        refusal.assert_reports(exit::NO_INPUT, &["/run/host/none.conf"]);
    });
}

#[test]
fn a_configuration_that_others_can_write_to_is_refused() {
    isolated(|host| {
        let config = broker::config(host, &security(""));
        std::fs::set_permissions(&config, std::fs::Permissions::from_mode(0o666)).unwrap();
        StartupFailure::of_command(broker::command(host, &config))
            .assert_reports(exit::CONFIG, &["portreeve.conf", "writ", "chmod"]);
    });
}

#[test]
fn a_configuration_with_an_error_is_refused() {
    isolated(|host| {
        let refusal = StartupFailure::of(host, &security("chrot = /var"));
        refusal.assert_reports(exit::CONFIG, &["portreeve.conf:4:1", "chrot", "chroot"]);
    });
}

#[test]
fn an_unknown_capability_is_refused() {
    isolated(|host| {
        let refusal = StartupFailure::of(host, &security("capabilities = \"cap_net_bind_servce+ep\""));
        refusal.assert_reports(exit::CONFIG, &["cap_net_bind_servce", "portreeve.conf:4"]);
    });
}

#[test]
fn a_capability_outside_the_bounding_set_is_refused() {
    isolated(|host| {
        let config = broker::config(host, &security("capabilities = \"cap_net_raw+ep\""));
        let mut command = Command::new("setpriv");
        command.args(["--bounding-set", "-net_raw", "--"]);
        command.arg(host.binary(binaries::BROKER)).arg("--config").arg(config);
        let words = ["cap_net_raw", "bounding set", "portreeve.conf:4", "CapabilityBoundingSet"];
        StartupFailure::of_command(command).assert_reports(exit::NO_PERMISSION, &words);
    });
}

#[test]
fn a_listen_permit_without_its_capability_is_refused() {
    isolated(|host| {
        let text = security("").replace("*:2525", "*:25");
        StartupFailure::of(host, &text)
            .assert_reports(exit::CONFIG, &["cap_net_bind_service", "25", "portreeve.conf"]);
    });
}

#[test]
fn an_address_permit_without_its_capabilities_is_refused() {
    isolated(|host| {
        for (kept, lacks, what) in [
            ("cap_net_raw", "cap_net_admin", "cannot be added to an interface"),
            ("cap_net_admin", "cap_net_raw", "cannot be announced"),
        ] {
            let text = security(&format!("capabilities = \"{kept}+ep\""))
                + "broker { permit \"vip\" { address = ( \"10.1.1.0/24\" ) } }\n";
            StartupFailure::of(host, &text).assert_reports(exit::CONFIG, &[lacks, what, "portreeve.conf:"]);
        }
    });
}

#[test]
fn a_listener_on_an_endpoint_in_use_is_refused() {
    isolated(|host| {
        let taken = TcpListener::bind("127.0.0.1:2525").unwrap();
        let refusal =
            StartupFailure::of(host, &(security("") + "ESMTP_Listener {\nListen \"127.0.0.1:2525\" {}\n}\n"));
        drop(taken);
        refusal.assert_reports(exit::UNAVAILABLE, &["127.0.0.1:2525", "portreeve.conf:", "in use"]);
    });
}

#[test]
fn a_control_socket_without_its_directory_is_refused() {
    isolated(|host| {
        let text = security("").replace(SOCKET, "/run/host/none/broker.sock");
        StartupFailure::of(host, &text)
            .assert_reports(exit::CANNOT_CREATE, &["/run/host/none", "portreeve.conf:", "create"]);
    });
}
