//! `explain` gives the same answer about an endpoint or an address as the broker.

use std::path::Path;
use std::process::{Command, Output};

use portreeve_tests::chroot::WORKER;
use portreeve_tests::scripted_worker::WorkerSetup;
use portreeve_tests::{Broker, Host, Peer, binaries, broker, isolated, sample};
use serde_json::Value;

fn explain(host: &Host, config: &Path, words: &[&str]) -> Output {
    Command::new(host.binary(binaries::BROKER)).arg("explain").arg(config).args(words).output().unwrap()
}

#[test]
fn explain_agrees_with_the_broker() {
    isolated(|host| {
        let setup = WorkerSetup::new(host, "chroot");
        let rest = "ESMTP_Listener { Listen \"127.0.0.1:25\" { enable = false } }
            broker { socket = /run/host/broker.sock socket_mode = 0666
              permit few { listen = ( \"127.0.0.1:1000-1009\" \"/run/host/sockets/*\" ) }
              permit others { listen = ( \"127.0.0.2:1000\" ) }
              peer nobody { allow = ( listen ) permit = ( few ) } }";
        std::fs::create_dir(host.path("sockets")).unwrap();
        let text = sample::worker(&setup.chroot, "( /run/host/bin/scripted_worker )", rest);
        let config = broker::config(host, &text);
        let broker = Broker::start(host, &text);
        let (_scripted, mut worker) = setup.accept();
        worker.hello();
        let mut nobody = Peer::of_user(WORKER, WORKER);
        let mut root = broker.peer();
        let mut answers = [0, 0];
        for endpoint in [
            "127.0.0.1:25",
            "127.0.0.1:1009",
            "127.0.0.1:1010",
            "127.0.0.2:1000",
            "[::1]:1000",
            "127.0.0.1:1000/udp",
            "*:1000",
            "/run/host/sockets/a",
            "/run/host/sockets/a/b",
        ] {
            for (by, peer) in [("worker", &mut worker), ("nobody", &mut nobody), ("root", &mut root)] {
                let output = explain(host, &config, &["listen", endpoint, "--as", by, "--json"]);
                let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
                let does =
                    peer.listen(endpoint).map(|(id, _socket)| assert!(peer.stop(&[id]).unknown.is_empty()));
                assert_eq!(answer["allowed"], does.is_ok(), "{by} {endpoint}: {answer}\n{does:?}");
                assert_eq!(output.status.code(), Some(i32::from(does.is_err())));
                match does {
                    Ok(()) => assert!(
                        answer["rule"]["place"].as_str().unwrap().starts_with(config.to_str().unwrap())
                    ),
                    Err(fault) => assert_eq!(answer["message"], *fault.message),
                }
                answers[usize::from(answer["allowed"].as_bool().unwrap())] += 1;
            }
        }
        assert!(answers.iter().all(|count| *count > 5), "{answers:?}");
    });
}

#[test]
fn explain_names_the_rule_and_the_interface_of_an_address() {
    isolated(|host| {
        let text =
            "security { user = nobody group = nogroup capabilities = \"cap_net_admin,cap_net_raw+ep\" }
            cluster { topology \"10.1.1.0/24\" { interface = eth1 cidrmask = 24 } }
            broker { socket = /run/host/broker.sock
              permit moving {
                address = ( 10.1.1.0/24 )
              }
              peer nobody { allow = ( status ) permit = ( moving ) } }
            worker { command = ( /run/host/bin/scripted_worker ) }";
        let config = broker::config(host, text);
        let explain_text = |words: &[&str]| {
            let output = explain(host, &config, words);
            (output.status.code(), String::from_utf8_lossy(&output.stdout).into_owned())
        };
        let (code, printed) = explain_text(&["address", "10.1.1.7"]);
        assert_eq!(code, Some(0), "{printed}");
        assert!(
            printed.starts_with("yes: the worker") && printed.contains("portreeve.conf:5: permit \"moving\""),
            "{printed}"
        );
        assert!(printed.contains("eth1") && printed.contains("24"), "{printed}");
        for question in [
            &["address", "10.1.2.7"][..],
            &["address", "127.0.0.1"],
            &["address", "10.1.1.7", "--as", "nobody"],
            &["listen", "*:25"],
        ] {
            let (code, printed) = explain_text(question);
            assert_eq!(code, Some(1), "{question:?}: {printed}");
            assert!(printed.starts_with("no: ") && printed.lines().count() > 1, "{printed}");
        }
        for wrong in [&["address", "10.1.1"][..], &["listen", "25"], &["reach", "x"], &["listen"]] {
            assert_eq!(explain_text(wrong).0, Some(64), "{wrong:?}");
        }
        assert_eq!(explain_text(&["listen", "*:25", "--as", "no-such-user"]), (Some(67), String::new()));
        let (code, printed) = explain_text(&["listen", "*:25", "--as", "no-such-user", "--json"]);
        let printed: Value = serde_json::from_str(&printed).unwrap();
        assert_eq!((code, &printed["ok"]), (Some(67), &Value::Bool(false)));
        assert!(printed["diagnostics"][0]["message"].as_str().unwrap().contains("no-such-user"), "{printed}");
    });
}
