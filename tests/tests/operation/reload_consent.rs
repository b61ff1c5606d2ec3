//! A reload that would close every listener of a scope needs consent.

use std::net::TcpStream;
use std::process::Command;

use portreeve_protocol::reload::Reload;
use portreeve_protocol::{FaultCode, Trailing};
use portreeve_tests::broker::SOCKET;
use portreeve_tests::kernel::landlock_abi;
use portreeve_tests::reload::rows;
use portreeve_tests::{Broker, Host, binaries, broker, eventually, isolated, sample};
use rustix::process::Signal;

const SMTP: &str = r#"ESMTP_Listener { Listen "127.0.0.1:2525" {} Listen "127.0.0.1:2526" {} }"#;
const CONTROL: &str = r#"Control_Listener { Listen "127.0.0.1:2527" {} }"#;
const FORCE: Reload = Reload { last: false, force: Trailing(Some(true)) };

fn text(listeners: &[&str]) -> String {
    sample::control(r#"( "127.0.0.9:9" )"#) + &listeners.concat()
}

fn refusal(host: &Host, running: &Broker, listeners: &[&str]) -> String {
    broker::config(host, &text(listeners));
    let fault = running.peer().request(&Reload::default()).unwrap_err();
    assert_eq!(fault.code, FaultCode::Invalid, "{fault}");
    assert!(fault.remedy.contains("portreeve reload --force"), "{fault}");
    fault.message.to_string()
}

fn listens(port: u16) -> bool {
    TcpStream::connect(("127.0.0.1", port)).is_ok()
}

#[test]
fn a_reload_that_closes_every_listener_of_a_scope_is_refused_unless_it_is_forced() {
    isolated(|host| {
        let running = Broker::start(host, &text(&[SMTP, CONTROL]));
        let message = refusal(host, &running, &[CONTROL]);
        assert!(
            message.contains("every listener of ESMTP_Listener: 127.0.0.1:2525, 127.0.0.1:2526"),
            "{message}"
        );
        let message = refusal(host, &running, &[]);
        assert!(message.contains("every listener of") && message.contains("and 1 more"), "{message}");
        assert!(listens(2525) && listens(2526) && listens(2527));
        // One listener of the scope remains, or another takes its place.
        let other = r#"ESMTP_Listener { Listen "127.0.0.1:2525" {} }"#;
        broker::config(host, &text(&[other, CONTROL]));
        let (reloaded, _) = running.peer().request(&Reload::default()).unwrap();
        assert_eq!(rows(&reloaded, "closed"), ["listener 127.0.0.1:2526"], "{reloaded:?}");
        broker::config(host, &text(&[CONTROL]));
        let (reloaded, _) = running.peer().request(&FORCE).unwrap();
        assert_eq!(rows(&reloaded, "closed"), ["listener 127.0.0.1:2525"], "{reloaded:?}");
        eventually("the listener to close", || (!listens(2525)).then_some(()));
        assert!(listens(2527));
    });
}

#[test]
fn the_last_static_listener_may_change_its_scope_or_address_but_not_vanish() {
    isolated(|host| {
        let security = r#"security { user = nobody group = nogroup capabilities = "cap_net_bind_service,cap_net_admin,cap_net_raw+ep" }"#;
        let text =
            |listeners: &str| format!("{security}{}{listeners}", sample::socket(r#"( "127.0.0.9:9" )"#));
        let running = Broker::start(host, &text(CONTROL));
        let refusal = |listeners: &str| {
            broker::config(host, &text(listeners));
            running.peer().request(&Reload::default()).unwrap_err().message.to_string()
        };
        let renamed = r#"ECStream_Listener { Listen "127.0.0.1:2527" {} }"#;
        let moved = r#"ECStream_Listener { Listen "127.0.0.2:2527" {} }"#;
        for listeners in [renamed, moved] {
            broker::config(host, &text(listeners));
            running.peer().request(&Reload::default()).unwrap();
        }
        let floats = r#"ECStream_Listener { Listen "10.1.1.7:2527" { enable_duravip = true } }
            cluster { topology "10.1.1.0/24" { interface = lo } }"#;
        let message = refusal(floats);
        assert!(message.contains("every static listener: 127.0.0.2:2527"), "{message}");
        if landlock_abi() >= 4 {
            // Another port needs a restart, so nothing would replace the listener now.
            let message = refusal(r#"ECStream_Listener { Listen "127.0.0.2:2528" {} }"#);
            assert!(message.contains("every listener of ECStream_Listener: 127.0.0.2:2527"), "{message}");
        }
        // Nothing closes at this reload.
        broker::config(host, &text("broker { on_narrow = keep }"));
        running.peer().request(&Reload::default()).unwrap();
        assert!(TcpStream::connect("127.0.0.2:2527").is_ok());
    });
}

#[test]
fn portreeve_reload_exits_with_78_and_names_the_option_that_consents() {
    isolated(|host| {
        let running = Broker::start(host, &text(&[SMTP]));
        broker::config(host, &text(&["ESMTP_Listner { Listen \"127.0.0.1:2525\" {} }"]));
        let reload = |options: &[&str]| {
            let mut command = Command::new(host.binary(binaries::CLIENT));
            command.args(["--socket", SOCKET, "reload"]).args(options).output().unwrap()
        };
        for options in [&[][..], &["--force"]] {
            let output = reload(options);
            let told = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(78), "{told}");
            assert!(told.contains("did you mean ESMTP_Listener?"), "{told}");
        }
        broker::config(host, &text(&[]));
        let output = reload(&[]);
        let told = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(78), "{told}");
        assert!(told.contains("portreeve reload --force"), "{told}");
        running.signal(Signal::HUP);
        running.log.wait_for(&["SIGHUP", "reload refused"]);
        assert!(listens(2525) && listens(2526));
        assert!(reload(&["--force"]).status.success());
        eventually("the listeners to close", || (!listens(2525) && !listens(2526)).then_some(()));
    });
}
