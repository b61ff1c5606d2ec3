//! Errors that prevent a start: one line names the value, its position and the remedy, the exit code is one of
//! sysexits(3), and nothing keeps running or listening.

use std::fs::{self, Permissions};
use std::net::TcpListener;
use std::os::unix::fs::{PermissionsExt as _, chown, lchown, symlink};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use portreeve_protocol::reload::Reload;
use portreeve_tests::broker::{self, SOCKET};
use portreeve_tests::chroot::{Chroot, WORKER};
use portreeve_tests::startup_failure::exit;
use portreeve_tests::{Broker, Host, StartupFailure, binaries, isolated, sample};

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
        let mode = |mode| fs::set_permissions(&chroot.path, Permissions::from_mode(mode)).unwrap();
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
        fs::set_permissions(&config, Permissions::from_mode(0o666)).unwrap();
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

/// A directory of the test with this owner and mode.
fn directory(host: &Host, name: &str, owner: u32, mode: u32) -> PathBuf {
    let path = host.path(name);
    fs::create_dir_all(&path).unwrap();
    fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
    chown(&path, Some(owner), None).unwrap();
    path
}

/// Writes a configuration below a directory.
fn config_in(directory: &Path) -> PathBuf {
    let path = directory.join("portreeve.conf");
    fs::write(&path, security("")).unwrap();
    fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
    path
}

#[test]
fn a_configuration_that_others_can_replace_by_its_path_is_refused() {
    isolated(|host| {
        fs::set_permissions("/tmp", Permissions::from_mode(0o1777)).unwrap();
        let sound = config_in(&directory(host, "sound", 0, 0o755));
        let foreign = directory(host, "foreign", WORKER, 0o755);
        let writable = directory(host, "writable", 0, 0o775);
        let below = directory(host, "writable/below", 0, 0o755);
        let in_sticky = directory(host, "/tmp/foreign", WORKER, 0o755);
        let links = directory(host, "links", 0, 0o755);
        symlink(&foreign, links.join("to-foreign")).unwrap();
        symlink("../writable/below/portreeve.conf", links.join("to-file")).unwrap();
        let sticky_link = Path::new("/tmp/link.conf");
        symlink(&sound, sticky_link).unwrap();
        lchown(sticky_link, Some(WORKER), None).unwrap();
        let including = host.file("including.conf", &format!("include {:?}\n{}", foreign, security("")));
        fs::set_permissions(&including, Permissions::from_mode(0o600)).unwrap();
        config_in(&foreign);
        for (file, words) in [
            (
                foreign.join("portreeve.conf"),
                ["/run/host/foreign", "owner 65534", "chown root /run/host/foreign"],
            ),
            (config_in(&writable), ["/run/host/writable", "0775", "chmod go-w /run/host/writable"]),
            (config_in(&below), ["/run/host/writable", "0775", "chmod go-w /run/host/writable"]),
            (config_in(&in_sticky), ["/tmp/foreign", "65534", "chown -h root /tmp/foreign"]),
            (links.join("to-foreign/portreeve.conf"), ["/run/host/foreign", "owner 65534", "chown root"]),
            (links.join("to-file"), ["/run/host/links/../writable", "0775", "chmod go-w"]),
            (sticky_link.to_owned(), ["/tmp/link.conf", "65534", "chown -h root /tmp/link.conf"]),
            (
                PathBuf::from("/run/host/foreign/../sound/portreeve.conf"),
                ["/run/host/foreign", "65534", "chown"],
            ),
            (including, ["foreign", "65534", "chown root"]),
        ] {
            let refusal = StartupFailure::of_command(broker::command(host, &file));
            refusal.assert_reports(refusal.code.unwrap(), &words);
            // The check by root finds the same.
            let check = Command::new(host.binary(binaries::BROKER)).arg("check").arg(&file).output().unwrap();
            assert_eq!(check.status.code(), refusal.code, "{file:?}");
            assert!(String::from_utf8_lossy(&check.stderr).contains(words[1]), "{file:?} {check:?}");
        }
        // A relative path is below every directory above the working directory.
        let mut relative = broker::command(host, Path::new("portreeve.conf"));
        relative.current_dir(&below);
        let words = ["/run/host/writable", "0775", "chmod go-w /run/host/writable"];
        StartupFailure::of_command(relative).assert_reports(exit::CONFIG, &words);
        let mut check = Command::new(host.binary(binaries::BROKER));
        let check = check.args(["check", "portreeve.conf"]).current_dir(&below).output().unwrap();
        assert_eq!(check.status.code(), Some(exit::CONFIG));
        assert!(String::from_utf8_lossy(&check.stderr).contains("\"..\""), "{check:?}");
    });
}

#[test]
fn a_configuration_below_sticky_directories_and_links_of_root_is_accepted() {
    isolated(|host| {
        let sound = config_in(&directory(host, "/tmp/sound", 0, 0o755));
        symlink("/tmp/sound", host.path("link")).unwrap();
        symlink("link/portreeve.conf", host.path("chain.conf")).unwrap();
        for file in [sound, host.path("chain.conf"), host.path("../host/./link/portreeve.conf")] {
            drop(Broker::start_command(host, broker::command(host, &file)));
        }
        let broker = Broker::start_command(host, broker::command(host, &host.path("chain.conf")));
        // The reader process checks the path again.
        broker.peer().request(&Reload::default()).unwrap();
        fs::set_permissions("/tmp/sound", Permissions::from_mode(0o777)).unwrap();
        let fault = broker.peer().request(&Reload::default()).unwrap_err();
        assert!(fault.message.contains("sound") && fault.message.contains("0777"), "{fault}");
    });
}

#[test]
fn a_user_checks_their_own_configuration_in_their_own_directory() {
    isolated(|host| {
        let own = config_in(&directory(host, "home", WORKER, 0o775));
        chown(&own, Some(WORKER), None).unwrap();
        let mut check = Command::new(host.binary(binaries::BROKER));
        let output = check.arg("check").arg(&own).uid(WORKER).gid(WORKER).output().unwrap();
        assert!(output.status.success(), "{output:?}");
    });
}
