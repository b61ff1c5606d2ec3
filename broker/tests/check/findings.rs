//! The findings of one run.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use super::{Folder, VALID, text};

#[test]
fn one_run_reports_every_syntax_and_host_error() {
    let folder = Folder::new("");
    let path = |name: &str| folder.path(name).display().to_string();
    folder.file("script", "#!/bin/sh\n", 0o755);
    let config = format!(
        "security {{
  user = no-such-user
  group = no-such-group
  supplemental_groups = ( 4300 no-such-third )
  chroot = {}
  capabilities = \"cap_net_bind_servce+ep\"
  privileges = \"basic,!net_privadr\"
  chrot = /
}}
worker {{
  command = ( {} )
  restart = perhaps
}}
broker {{
  socket = {}
  socket_group = no-such-fourth
  peer no-such-peer {{ allow = status }}
  peer @no-such-fifth {{ allow = status }}
}}
",
        path("nowhere"),
        path("script"),
        path("run/broker.sock")
    );
    folder.file("main.conf", &config, 0o600);
    assert_eq!(
        folder.findings(),
        [
            "2 error: there is no user \"no-such-user\" on this system",
            "3 error: there is no group \"no-such-group\" on this system",
            "4 error: there is no group \"no-such-third\" on this system",
            "5 error: \"nowhere\" cannot be opened: No such file or directory (os error 2)",
            "6 error: no capability is named \"cap_net_bind_servce\"",
            "7 error: \"net_privadr\" is not a privilege",
            "8 error: the scope security has no option \"chrot\"",
            "11 error: \"script\" is a script, which cannot be executed by descriptor",
            "12 error: \"perhaps\" is not a valid value for restart",
            "15 warning: the directory \"run\" of this Unix socket does not exist now",
            "16 error: there is no group \"no-such-fourth\" on this system",
            "17 error: there is no user \"no-such-peer\" on this host",
            "18 error: there is no group \"no-such-fifth\" on this host",
        ]
    );
    let shown = text(&folder.check(&[]).stderr);
    assert!(shown.contains("  capabilities = \"cap_net_bind_servce+ep\"\n"), "{shown}");
    assert!(shown.contains("\n  |                   ^^^^^^^^^^^^^^^^^^^\n"), "{shown}");
    assert!(shown.contains("help: write cap_net_bind_service\n"), "{shown}");
}

#[test]
fn consequences_of_an_error_are_not_reported_as_further_errors() {
    // The misspelt options leave the user, the group and the capabilities at their defaults.
    let text = "security { usr = 65534 grup = 65534 capabilites = \"cap_net_bind_service+ep\" }
        ESMTP_Listener { Listen \":25\" {} }
        broker { permit p { listen = ( :26 ) } }\n";
    let folder = Folder::new(text);
    let findings = folder.findings();
    assert_eq!(findings.len(), 3, "{findings:?}");
    assert!(findings.iter().all(|line| line.contains("has no option")), "{findings:?}");
}

#[test]
fn a_missing_capability_is_an_error_for_a_permit_and_a_warning_for_a_static_listener() {
    let text = "ESMTP_Listener { Listen \":25\" {} }\nbroker { permit p { listen = ( :26 ) limit = ( \"nofile=9\" ) } }\n";
    let folder = Folder::new(&format!("{VALID}{text}"));
    assert_eq!(
        folder.findings(),
        [
            "2 warning: port 25 is bound at start and cannot be started again: the broker does not retain \
             cap_net_bind_service",
            "3 error: port 26 cannot be bound: the broker does not retain cap_net_bind_service",
            "3 warning: the limit nofile=9 can be set only for processes of user 0, and only up to their hard limit: the \
             broker does not retain cap_sys_resource",
        ]
    );
}

#[test]
fn capabilities_that_no_kernel_has_are_rejected() {
    for (capabilities, message) in [
        ("63+ep", "1 error: this kernel has no capability 63"),
        ("64+ep", "1 error: \"64\" is above 63, the highest capability number"),
        ("cap_chown=e", "1 error: cap_chown is effective but not permitted, which the kernel refuses"),
        ("cap_chown+", "1 error: a flag is missing after '+'"),
    ] {
        let folder =
            Folder::new(&format!("security {{ user = 1 group = 1 capabilities = \"{capabilities}\" }}"));
        assert_eq!(folder.findings(), [message]);
    }
}

#[test]
fn privileges_of_another_system_are_noted_with_the_nearest_capabilities() {
    let scope =
        |more: &str| format!("security {{ user = 1 group = 1 privileges = \"basic net_privaddr\" {more} }}");
    for (more, help) in [
        ("", "capabilities has none of them"),
        (
            "capabilities = \"cap_net_bind_service+ep\"",
            "capabilities has the closest ones: cap_net_bind_service",
        ),
    ] {
        let folder = Folder::new(&scope(more));
        assert_eq!(folder.findings(), ["1 note: privileges have no effect on Linux"]);
        let output = folder.check(&[]);
        assert!(output.status.success());
        assert!(text(&output.stderr).contains(help), "{}", text(&output.stderr));
    }
}

#[test]
fn the_scan_of_the_chroot_does_not_follow_links_out_of_it() {
    let folder = Folder::new("");
    fs::create_dir_all(folder.path("chroot/deep/er")).unwrap();
    folder.file("chroot/deep/er/su", "", 0o4755);
    folder.file("chroot/tool", "", 0o2755);
    folder.file("outside/su", "", 0o4755);
    symlink("../../outside", folder.path("chroot/deep/link")).unwrap();
    symlink("/usr/bin", folder.path("chroot/bin")).unwrap();
    let chroot = folder.path("chroot");
    fs::set_permissions(&chroot, PermissionsExt::from_mode(0o755)).unwrap();
    let config = format!("security {{ user = 65533 group = 65533\nchroot = {} }}\n", chroot.display());
    folder.file("main.conf", &config, 0o600);
    let mut findings = folder.findings();
    findings.sort();
    assert_eq!(
        findings,
        [
            "2 warning: \"chroot/deep/er/su\" in the chroot is set-user-id or set-group-id",
            "2 warning: \"chroot/tool\" in the chroot is set-user-id or set-group-id",
        ]
    );
}

#[test]
fn findings_in_the_chroot_are_limited_in_number() {
    let folder = Folder::new("");
    for number in 0..100 {
        folder.file(&format!("chroot/{number}"), "", 0o4755);
    }
    let chroot: &Path = &folder.path("chroot");
    fs::set_permissions(chroot, PermissionsExt::from_mode(0o755)).unwrap();
    let config = format!("security {{ user = 65533 group = 65533 chroot = {} }}\n", chroot.display());
    folder.file("main.conf", &config, 0o600);
    let findings = folder.findings();
    assert_eq!(findings.len(), 33, "{findings:?}");
    assert!(findings.iter().any(|line| line.contains("note: only 32 files of the chroot")), "{findings:?}");
}
