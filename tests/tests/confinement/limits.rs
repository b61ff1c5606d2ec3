//! Resource limits that a peer requests for itself: a permit must allow them, and they apply to no other process.

use std::process::{Command, Output};

use portreeve_protocol::FaultCode;
use portreeve_protocol::limit::SetLimit;
use portreeve_tests::broker::SOCKET;
use portreeve_tests::scripted_worker::WorkerSetup;
use portreeve_tests::{Broker, Host, StartupFailure, binaries, isolated, process, sample};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// The capability's bit, see include/uapi/linux/capability.h.
const SYS_RESOURCE: u64 = 1 << 24;

const MORE: &str = r#"
    broker {
        permit limits { limit = ( "nofile=2000" "core=unlimited" ) }
        peer 2 { allow = ( limit ) permit = ( limits ) }
    }"#;

/// Runs the `limit` command, and returns its exit code and its output.
fn limit(host: &Host, before: &[&str], words: &[&str]) -> (Option<i32>, String) {
    let client = host.binary(binaries::CLIENT);
    let own = [client.to_str().unwrap(), "--socket", SOCKET, "limit"];
    let all: Vec<&str> = before.iter().chain(&own).chain(words).copied().collect();
    let Output { status, stdout, stderr } = Command::new(all[0]).args(&all[1..]).output().unwrap();
    (status.code(), String::from_utf8([stdout, stderr].concat()).unwrap())
}

/// Whether the kernel has SO_PEERPIDFD, since Linux 6.5.
fn kernel_pins_peers() -> bool {
    kernel_is_at_least((6, 5))
}

fn kernel_is_at_least(version: (u32, u32)) -> bool {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let mut numbers =
        release.split(|c: char| !c.is_ascii_digit()).map(|number| number.parse::<u32>().unwrap());
    (numbers.next().unwrap(), numbers.next().unwrap()) >= version
}

/// The soft and the hard limit of open files, as /proc shows them.
fn open_files(shown: &str) -> Option<Vec<&str>> {
    let row = shown.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    Some(row.split_whitespace().take(2).collect())
}

#[test]
fn a_command_gets_the_limits_that_a_permit_allows_and_no_others() {
    isolated(|host| {
        let broker = Broker::start(host, &(sample::control("( \"*:25\" )") + MORE));
        let show = ["--", "cat", "/proc/self/limits"];
        let (code, shown) = limit(host, &[], &[&["nofile=256:512"][..], &show].concat());
        if !kernel_pins_peers() {
            assert!(code == Some(1) && shown.contains("Linux 6.5"), "{shown}");
            return;
        }
        assert_eq!((code, open_files(&shown)), (Some(0), Some(vec!["256", "512"])), "{shown}");
        broker.log.wait_for(&["done", "set-limit", "rules=", "portreeve.conf:"]);
        // Within the hard limit the broker needs no capability; beyond it, cap_sys_resource.
        let client = host.binary(binaries::CLIENT);
        let lowered = ["nofile=256:512", "--", client.to_str().unwrap(), "--socket", SOCKET, "limit"];
        let (code, shown) = limit(host, &[], &[&lowered[..], &["nofile=512"], &show].concat());
        assert_eq!((code, open_files(&shown)), (Some(0), Some(vec!["512", "512"])), "{shown}");
        let (code, shown) = limit(host, &[], &[&lowered[..], &["nofile=1024"], &show].concat());
        assert!(code == Some(1) && shown.contains("cap_sys_resource"), "{code:?} {shown}");
        for (asked, code, word) in [
            ("nofile=2001", 77, "nofile=2001"),
            ("nofile=256:unlimited", 77, "nofile=unlimited"),
            ("nproc=5", 77, "nproc=5"),
            ("files=5", 1, "\"files\""),
            ("nofile=600:500", 1, "above the hard limit"),
            ("nofile=much", 64, "\"much\""),
        ] {
            let (exit, printed) = limit(host, &[], &[&[asked][..], &show].concat());
            assert!(exit == Some(code) && printed.contains(word), "{asked}: {exit:?} {printed}");
        }
        let (code, shown) = limit(host, &[], &["nofile", "core=0:unlimited"]);
        assert!(
            code == Some(0) && shown.contains("nofile") && shown.contains("unlimited"),
            "{code:?} {shown}"
        );
        // Without the capability, the limits of another user's process can be neither set nor read.
        let user = ["setpriv", "--reuid=2", "--regid=2", "--clear-groups"];
        let (code, shown) = limit(host, &user, &["nofile=256", "--", "true"]);
        assert!(code == Some(1) && shown.contains("cap_sys_resource"), "{code:?} {shown}");
    });
}

#[test]
fn with_cap_sys_resource_limits_are_raised_for_any_user_and_without_it_the_start_fails() {
    isolated(|host| {
        let (soft, hard) = open_files_of_this_process();
        let more = MORE.replace("nofile=2000", "nofile=unlimited");
        let text = (sample::control("( \"*:25\" )") + &more)
            .replace("cap_net_bind_service+ep", "cap_net_bind_service,cap_sys_resource+ep");
        if process::threads(std::process::id())[0].bounding & SYS_RESOURCE == 0 {
            StartupFailure::of(host, &text).assert_reports(77, &["cap_sys_resource", "bounding set"]);
            return;
        }
        let _broker = Broker::start(host, &text);
        let show = ["--", "cat", "/proc/self/limits"];
        let user = ["setpriv", "--reuid=2", "--regid=2", "--clear-groups"];
        for who in [&[][..], &user] {
            let (code, shown) = limit(host, who, &[&["nofile=256:512"][..], &show].concat());
            if !kernel_pins_peers() {
                assert!(code == Some(1) && shown.contains("Linux 6.5"), "{shown}");
                return;
            }
            if who.len() > 1 && !kernel_tells_users() {
                assert!(code == Some(1) && shown.contains("cannot lower the limit"), "{code:?} {shown}");
                continue;
            }
            assert_eq!((code, open_files(&shown)), (Some(0), Some(vec!["256", "512"])), "{shown}");
        }
        // Beyond the hard limit the kernel requires the capability in the initial user namespace.
        let beyond = hard + 1;
        let may = raise(soft, beyond);
        let (code, shown) = limit(host, &[], &[&[&*format!("nofile={}", beyond + 1)][..], &show].concat());
        match may {
            true => assert_eq!(open_files(&shown).unwrap()[1], (beyond + 1).to_string(), "{shown}"),
            false => assert!(code == Some(1) && shown.contains("cap_sys_resource"), "{code:?} {shown}"),
        }
    });
}

fn open_files_of_this_process() -> (Option<u64>, u64) {
    let limit = getrlimit(Resource::Nofile);
    (limit.current, limit.maximum.unwrap())
}

/// Tries to raise the hard limit of this process. That fails in a user namespace, and without the capability.
fn raise(soft: Option<u64>, hard: u64) -> bool {
    setrlimit(Resource::Nofile, Rlimit { current: soft, maximum: Some(hard) }).is_ok()
}

#[test]
fn a_worker_gets_a_limit_beyond_the_hard_one_if_the_broker_can_raise_it() {
    isolated(|host| {
        let (soft, hard) = open_files_of_this_process();
        let setup = WorkerSetup::new(host, "chroot");
        let rest = format!("worker {{ limit = [ nofile = {} ] }}", hard + 2);
        let text = sample::worker(&setup.chroot, "( /run/host/bin/scripted_worker )", &rest);
        if !raise(soft, hard + 1) {
            StartupFailure::of(host, &text).assert_reports(77, &["nofile=", "hard limit"]);
            return;
        }
        let broker = Broker::start(host, &text);
        let shown = std::fs::read_to_string(format!("/proc/{}/limits", broker.worker())).unwrap();
        assert_eq!(open_files(&shown).unwrap(), [(hard + 2).to_string(), (hard + 2).to_string()], "{shown}");
    });
}

#[test]
fn a_process_of_the_worker_gets_the_limits_that_a_permit_allows_and_nobody_else_on_its_channel() {
    isolated(|host| {
        let setup = WorkerSetup::new(host, "chroot");
        let text = sample::worker(&setup.chroot, "( /run/host/bin/scripted_worker )", MORE)
            .replace("cap_net_bind_service+ep", "cap_net_bind_service,cap_sys_resource+ep");
        if process::threads(std::process::id())[0].bounding & SYS_RESOURCE == 0 {
            StartupFailure::of(host, &text).assert_reports(77, &["cap_sys_resource", "bounding set"]);
            return;
        }
        let broker = Broker::start(host, &text);
        let (mut scripted, mut peer) = setup.accept();
        let of = |pid: u32| std::fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
        let before = of(broker.worker());
        let told = scripted.run("limit nofile 300");
        match (kernel_pins_peers(), kernel_tells_users()) {
            (true, true) => {
                assert_eq!(told, "300 300");
                assert_eq!(open_files(&of(broker.worker())), Some(vec!["300", "300"]));
            }
            (true, false) => assert!(told.contains("cannot lower the limit"), "{told}"),
            (false, _) => assert!(told.contains("Linux 6.5"), "{told}"),
        }
        assert_eq!(open_files(&of(broker.launcher())), open_files(&before));
        let told = scripted.run("limit nofile 3000");
        assert!(told.contains("nofile=3000") && told.contains("not allowed"), "{told}");
        // This process has the channel too, and is another user's.
        let ask = SetLimit {
            resource: portreeve_protocol::Text::new("nofile").unwrap(),
            soft: Some(200),
            hard: None,
        };
        let fault = peer.request(&ask).unwrap_err();
        let code = if kernel_pins_peers() { FaultCode::Denied } else { FaultCode::Unsupported };
        assert_eq!(fault.code, code, "{fault}");
    });
}

#[test]
fn a_process_that_runs_as_another_user_than_the_one_that_connected_gets_no_limit() {
    isolated(|host| {
        let _broker = Broker::start(host, &(sample::control("( \"*:25\" )") + MORE));
        let show = ["--", "cat", "/proc/self/limits"];
        // As a process that connects and then executes a set-user-id program: the effective user is the one that connected,
        // and the real one is root.
        let user = ["setpriv", "--ruid=0", "--euid=2", "--clear-groups"];
        let (code, shown) = limit(host, &user, &[&["nofile=256:512"][..], &show].concat());
        let refusal = match (kernel_tells_users(), kernel_pins_peers()) {
            (true, _) => "does not run as the user",
            (false, true) => "cannot lower the limit",
            (false, false) => "Linux 6.5",
        };
        assert!(code != Some(0) && shown.contains(refusal), "{code:?} {shown}");
    });
}

/// Whether the kernel has PIDFD_GET_INFO, since Linux 6.13.
fn kernel_tells_users() -> bool {
    kernel_is_at_least((6, 13))
}
