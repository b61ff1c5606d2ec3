//! Errors that prevent the start of a worker. The message names the program, its position in the configuration, and
//! the missing file.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use portreeve_protocol::EventCode;
use portreeve_tests::chroot::Chroot;
use portreeve_tests::startup_failure::exit;
use portreeve_tests::{Broker, Host, StartupFailure, binaries, isolated, sample};

/// The refusal of a broker to start this worker in an almost empty chroot.
fn worker(host: &Host, command: &str) -> StartupFailure {
    let security = "security {\nuser = nobody\ngroup = nogroup\nchroot = /run/host/chroot\n}\n";
    let socket = sample::socket(r#"( "*:2525" )"#);
    StartupFailure::of(host, &format!("{security}{socket}worker {{ command = ( {command} ) }}\n"))
}

#[test]
fn a_missing_worker_program_is_refused() {
    isolated(|host| {
        Chroot::new(host, "chroot");
        worker(host, "/usr/lib/no-such-worker")
            .assert_reports(exit::OS_FILE, &["/usr/lib/no-such-worker", "portreeve.conf"]);
    });
}

#[test]
fn a_worker_that_is_not_executable_is_refused() {
    isolated(|host| {
        Chroot::new(host, "chroot");
        let program = host.path("worker");
        std::fs::copy(host.binary(binaries::SCRIPTED_WORKER), &program).unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o644)).unwrap();
        let words = [program.to_str().unwrap(), "portreeve.conf", "execut"];
        worker(host, program.to_str().unwrap()).assert_reports(exit::OS_FILE, &words);
    });
}

#[test]
fn a_worker_without_its_interpreter_in_the_chroot_is_refused() {
    isolated(|host| {
        Chroot::new(host, "chroot");
        let words = ["/usr/bin/env", "interpreter", "ld-", "portreeve.conf"];
        worker(host, "/usr/bin/env").assert_reports(exit::OS_FILE, &words);
    });
}

#[test]
fn a_worker_without_its_shared_library_in_the_chroot_is_refused() {
    isolated(|host| {
        let chroot = Chroot::new(host, "chroot");
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        let interpreter = maps.split_whitespace().find(|word| word.contains("/ld-linux")).unwrap();
        // The path that programs name may differ from the real path.
        let name = Path::new(interpreter).file_name().unwrap();
        for directory in ["/lib", "/lib64"] {
            let place = Path::new(directory).join(name);
            if place.exists() {
                chroot.copy(&place);
            }
        }
        let refusal = worker(host, "/usr/bin/env");
        refusal.assert_reports(exit::OS_FILE, &["/usr/bin/env", "library", "libc.so.6", "portreeve.conf"]);
    });
}

#[test]
fn a_script_as_the_worker_is_refused() {
    isolated(|host| {
        Chroot::new(host, "chroot");
        let script = host.file("script", "#!/bin/sh\n");
        std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).unwrap();
        worker(host, script.to_str().unwrap())
            .assert_reports(exit::OS_FILE, &["script", "interpreter", "portreeve.conf"]);
    });
}

#[test]
fn a_worker_that_its_confinement_probably_ended_leaves_a_hint_in_log_and_event() {
    isolated(|host| {
        for (script, words) in [
            ("kill -SEGV $$", ["SIGSEGV", "MemoryDenyWriteExecute="]),
            ("kill -SYS $$", ["SIGSYS", "SystemCallFilter="]),
            ("exit 1", ["exited with code 1", "see its own messages"]),
            ("exit 127", ["exited with code 127", "security.chroot"]),
        ] {
            let worker = format!(r#"worker {{ command = ( /bin/sh "-c" "{script}" ) }}"#);
            let broker = Broker::start(host, &format!("{}{worker}", sample::control(r#"( "*:25" )"#)));
            broker.log.wait_for(&[&["the worker has exited"], &words[..]].concat());
            let events = broker.peer().subscribe(true);
            let ended = events.iter().find(|event| event.code == EventCode::WorkerEnded).unwrap();
            assert!(words.iter().all(|word| ended.detail.contains(word)), "{ended:?}");
        }
    });
}
