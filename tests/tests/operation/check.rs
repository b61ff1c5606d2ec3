//! `check` on a host: as an ordinary user, with files in the chroot, for every sample that this project shows, and in
//! agreement with a start.

use std::fs::{self, Permissions};
use std::net::{TcpListener, UdpSocket};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Output};

use portreeve_tests::chroot::{Chroot, WORKER};
use portreeve_tests::namespaces::unused_ids;
use portreeve_tests::sample::{FIRST_SECURITY, SECOND_SECURITY};
use portreeve_tests::{Broker, Host, StartupFailure, binaries, broker, isolated, sample};
use rustix::mount::mount_bind;
use serde_json::Value;

use super::documents::PAGES;

fn check(host: &Host, options: &[&str], config: &Path) -> Output {
    Command::new(host.binary(binaries::BROKER)).arg("check").args(options).arg(config).output().unwrap()
}

/// Every finding as `severity: message; help`.
fn found(output: &Output) -> Vec<String> {
    let document: Value = serde_json::from_slice(&output.stdout).unwrap();
    let line = |found: &Value| {
        let word = |name: &str| found[name].as_str().unwrap().to_owned();
        format!("{}: {}; {}", word("severity"), word("message"), word("help"))
    };
    document["diagnostics"].as_array().unwrap().iter().map(line).collect()
}

fn in_chroot(line: &str) -> String {
    format!("security {{\nuser = nobody\ngroup = nogroup\nchroot = /run/host/chroot\n{line}\n}}\n")
}

#[test]
fn a_device_node_and_a_set_user_id_file_in_the_chroot_are_reported() {
    isolated(|host| {
        let chroot = Chroot::new(host, "chroot");
        fs::create_dir(chroot.path.join("dev")).unwrap();
        for device in ["null", "tty"] {
            let here = chroot.path.join("dev").join(device);
            fs::write(&here, "").unwrap();
            mount_bind(format!("/dev/{device}"), &here).unwrap();
        }
        fs::write(chroot.path.join("su"), "").unwrap();
        fs::set_permissions(chroot.path.join("su"), Permissions::from_mode(0o4755)).unwrap();
        let config = broker::config(host, &in_chroot(""));
        let output = check(host, &["--json"], &config);
        assert!(output.status.success());
        let mut found = found(&output);
        found.sort();
        assert_eq!(found.len(), 3, "{found:?}");
        assert!(
            found[0].starts_with("note: \"/run/host/chroot/dev/null\" in the chroot is a device"),
            "{found:?}"
        );
        assert!(
            found[1].starts_with("warning: \"/run/host/chroot/dev/tty\" in the chroot is a device"),
            "{found:?}"
        );
        assert!(
            found[2].starts_with("warning: \"/run/host/chroot/su\" in the chroot is set-user-id"),
            "{found:?}"
        );
        assert!(found[1].contains("nodev") && found[2].contains("chmod"), "{found:?}");
    });
}

#[test]
fn a_writable_chroot_is_reported_with_every_other_error() {
    isolated(|host| {
        let chroot = Chroot::new(host, "chroot");
        fs::set_permissions(&chroot.path, Permissions::from_mode(0o777)).unwrap();
        let config = broker::config(host, &in_chroot("capabilities = \"cap_net_bind_service+\""));
        let output = check(host, &["--json"], &config);
        assert_eq!(output.status.code(), Some(78));
        let found = found(&output);
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(found[0].contains("writable by the worker") && found[0].contains("chown"), "{found:?}");
        assert!(found[1].contains("a flag is missing after"), "{found:?}");
    });
}

#[test]
fn an_ordinary_user_gets_findings_and_warnings_of_what_only_root_can_check() {
    isolated(|host| {
        let chroot = Chroot::new(host, "chroot");
        let hidden = chroot.path.join("hidden");
        fs::create_dir(&hidden).unwrap();
        fs::set_permissions(&hidden, Permissions::from_mode(0o700)).unwrap();
        fs::copy(host.binary(binaries::SCRIPTED_WORKER), host.path("secret")).unwrap();
        fs::set_permissions(host.path("secret"), Permissions::from_mode(0o700)).unwrap();
        let text = in_chroot("privileges = net_privaddr") + "worker { command = ( /run/host/secret ) }";
        let config = broker::config(host, &text);
        fs::set_permissions(&config, Permissions::from_mode(0o644)).unwrap();
        let as_user = |config: &Path| {
            let mut command = Command::new(host.binary(binaries::BROKER));
            command.args(["check", "--json"]).arg(config).uid(WORKER).gid(WORKER).output().unwrap()
        };
        let output = as_user(&config);
        let findings = found(&output);
        assert!(output.status.success(), "{findings:?}");
        assert_eq!(findings.len(), 3, "{findings:?}");
        assert!(
            findings[0].starts_with("warning: 1 directory in the chroot") && findings[0].contains("root"),
            "{findings:?}"
        );
        assert!(findings[1].starts_with("note: privileges have no effect on Linux"), "{findings:?}");
        assert!(
            findings[2].starts_with("warning: the program \"/run/host/secret\" cannot be examined"),
            "{findings:?}"
        );

        fs::set_permissions(&chroot.path, Permissions::from_mode(0o700)).unwrap();
        let findings = found(&as_user(&config));
        assert!(
            findings[0].starts_with("warning: the chroot \"/run/host/chroot\" cannot be examined"),
            "{findings:?}"
        );
        fs::set_permissions(&config, Permissions::from_mode(0o600)).unwrap();
        assert_eq!(as_user(&config).status.code(), Some(66));
    });
}

#[test]
fn a_start_fails_with_the_same_message_as_the_check() {
    isolated(|host| {
        Chroot::new(host, "chroot");
        host.file("script", "#!/bin/sh\n");
        fs::set_permissions(host.path("script"), Permissions::from_mode(0o755)).unwrap();
        for (text, code) in [
            (in_chroot("user = mailuser"), 67),
            (in_chroot("supplemental_groups = sslcerts"), 67),
            (in_chroot("capabilities = \"cap_net_bind_servce+ep\""), 78),
            (in_chroot("capabilities = 63+ep"), 78),
            (in_chroot("privileges = net_privadr"), 78),
            (in_chroot("chroot = /run/host/nowhere"), 66),
            (in_chroot("") + "worker { command = ( /run/host/script ) }", 72),
            (in_chroot("") + "worker { command = ( /usr/bin/env ) }", 72),
            (in_chroot("") + "broker { socket = /run/x.sock socket_group = sslcerts }", 67),
            (in_chroot("") + "broker { permit p { listen = ( :25 ) } }", 78),
            (in_chroot("chrot = /"), 78),
        ] {
            let config = broker::config(host, &text);
            let output = check(host, &["--json"], &config);
            let found = found(&output);
            let first = found.iter().find(|line| line.starts_with("error: ")).unwrap();
            assert_eq!(output.status.code(), Some(78), "{found:?}");
            let (message, help) = first.trim_start_matches("error: ").rsplit_once("; ").unwrap();
            StartupFailure::of(host, &text).assert_reports(code, &[message, help]);
        }
        assert!(check(host, &[], &broker::config(host, &in_chroot(""))).status.success());
    });
}

/// The configurations that the pages and the quickstart show.
fn shown() -> Vec<(&'static str, &'static str)> {
    let quickstart = blocks(include_str!("../../../deploy/quickstart"), "<<EOF\nsecurity {", "\nEOF\n");
    assert_eq!(quickstart.len(), 1);
    let of_pages = PAGES.iter().flat_map(|page| page.configurations().map(|text| (page.path, text)));
    of_pages.chain(quickstart.into_iter().map(|text| ("quickstart", text))).collect()
}

/// Each block, from the line that opens the security scope to the end of the block.
fn blocks<'t>(text: &'t str, begins: &str, ends: &str) -> Vec<&'t str> {
    let block = |(start, _): (usize, &str)| {
        let block = text[start..].split_once('\n').unwrap().1;
        block.split_once(ends).unwrap().0
    };
    text.match_indices(begins).map(block).collect()
}

#[test]
fn every_shown_configuration_is_valid_with_existing_paths() {
    isolated(|host| {
        let chroot = Chroot::new(host, "chroot");
        let program = host.binary(binaries::SCRIPTED_WORKER).display().to_string();
        for (account, id) in ["ecuser", "mail-server", "failover", "Debian-exim", "portreeve-coordinator"]
            .into_iter()
            .zip(4321..)
        {
            host.add_user(account, id);
        }
        host.add_group("portreeve", 4330);
        let (first, count) = unused_ids();
        for (name, text) in shown() {
            let real = |line: &str| match line.trim_start() {
                line if line.starts_with("chroot = ") => format!("chroot = {}", chroot.path.display()),
                line if line.starts_with("command = ") => format!("command = ( {program} )"),
                line if line.starts_with("socket = ") => format!("socket = {}", broker::SOCKET),
                line if line.starts_with("user_namespace = ") => {
                    format!("user_namespace = \"{first}:{count}\"")
                }
                line => line.replace("$(id -gn nobody)", "nogroup"),
            };
            let text: Vec<String> = text.lines().map(real).collect();
            let output = check(host, &["--json"], &broker::config(host, &text.join("\n")));
            // This host may lack a capability in its bounding set; the configuration does not cause that.
            let mut wrong = found(&output);
            wrong.retain(|line| !line.contains("bounding set"));
            assert_eq!(wrong, [""; 0], "{name}");
            assert!(output.status.success(), "{name}");
        }
        for text in [FIRST_SECURITY, SECOND_SECURITY] {
            assert!(check(host, &[], &broker::config(host, text)).status.success());
        }
        let whole = sample::worker(&chroot, &format!("( {program} )"), &sample::socket("( :25 )"));
        let output = check(host, &["--json"], &broker::config(host, &whole));
        assert_eq!(found(&output), [""; 0]);
    });
}

#[test]
fn with_strict_a_warning_is_an_error_and_a_note_is_not() {
    isolated(|host| {
        let security = "security { user = nobody group = nogroup }\n";
        let warns =
            format!("{security}ESMTP_Listener {{ Listen \"127.0.0.1:2525\" {{ Enabled = true }} }}\n");
        for (text, status) in [(security, 0), (&warns, 78)] {
            let config = broker::config(host, text);
            assert!(check(host, &[], &config).status.success(), "{text}");
            let output = check(host, &["--strict"], &config);
            assert_eq!(output.status.code(), Some(status), "{text}");
            let told = String::from_utf8_lossy(&output.stdout).into_owned();
            assert_eq!(told.contains("--strict treats warnings as errors"), status == 78, "{told}");
            let json = check(host, &["--strict", "--json"], &config);
            let document: Value = serde_json::from_slice(&json.stdout).unwrap();
            assert_eq!((document["ok"].as_bool(), json.status.code()), (Some(status == 0), Some(status)));
        }
    });
}

#[test]
fn check_and_explain_examine_the_file_of_the_service_unless_they_get_another() {
    isolated(|host| {
        let run = |words: &[&str]| {
            let output = Command::new(host.binary(binaries::BROKER)).args(words).output().unwrap();
            let told = [&*output.stdout, &*output.stderr].concat();
            (output.status.code().unwrap(), String::from_utf8_lossy(&told).into_owned())
        };
        let other = broker::config(host, "security { user = nobody group = nogroup }").display().to_string();
        let default = "/etc/portreeve/portreeve.conf";
        for words in [&["check"][..], &["explain"], &["explain", "listen", "*:25"]] {
            let (status, told) = run(words);
            // The host may have that file.
            assert!(status != 64 && (status != 66 || told.contains(default)), "{words:?}: {told}");
            let with_option = [words, &["--config", &other]].concat();
            let (status, told) = run(&with_option);
            assert!([0, 1].contains(&status) && !told.contains(default), "{with_option:?}: {told}");
        }
        for words in [&["check", &other][..], &["explain", &other], &["explain", &other, "listen", "*:25"]] {
            assert!([0, 1].contains(&run(words).0), "{words:?}: {}", run(words).1);
            let both = [words, &["--config", &other]].concat();
            assert_eq!(run(&both).0, 64, "{both:?}");
        }
        assert_eq!(run(&["check", &other, &other]).0, 64);
    });
}

#[test]
fn two_static_endpoints_are_valid_exactly_if_both_can_be_bound() {
    isolated(|host| {
        let conflict = |first: &str, second: &str, udp: bool| {
            let bind = |endpoint: &str| {
                let address = endpoint.trim_end_matches("/udp").replace('*', "0.0.0.0");
                match udp {
                    true => UdpSocket::bind(address).map(OwnedFd::from),
                    false => TcpListener::bind(address).map(OwnedFd::from),
                }
            };
            let _first = bind(first).unwrap();
            bind(second).is_err()
        };
        let text = |first: &str, second: &str| {
            format!(
                "security {{ user = nobody group = nogroup }} A_Listener {{ Listen {first:?} {{}} }} B_Listener {{ Listen {second:?} {{}} }}"
            )
        };
        for (first, second) in [
            ("*:2525", "127.0.0.1:2525"),
            ("127.0.0.1:2525", "*:2525"),
            ("[::]:2525", "[::1]:2525"),
            ("*:2525/udp", "127.0.0.1:2525/udp"),
            ("127.0.0.1:2525", "127.0.0.2:2525"),
            ("127.0.0.1:2525", "[::1]:2525"),
            ("*:2525", "127.0.0.1:2526"),
            ("*:2525", "127.0.0.1:2525/udp"),
        ] {
            let (tcp, udp) = (!first.ends_with("/udp"), second.ends_with("/udp"));
            let refused = tcp != udp && conflict(first, second, udp);
            let config = broker::config(host, &text(first, second));
            let output = check(host, &["--json"], &config);
            let status = if refused { 78 } else { 0 };
            assert_eq!(output.status.code(), Some(status), "{first} {second}: {:?}", found(&output));
            if refused {
                StartupFailure::of(host, &text(first, second))
                    .assert_reports(78, &["while the wildcard address", "is"]);
            }
        }
        // An IPv6 wildcard of the configuration does not include IPv4.
        Broker::start(host, &text("*:2525", "[::]:2525"));
    });
}
