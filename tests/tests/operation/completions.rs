//! Completions in a shell: options, and what only this host and its broker know.

use std::process::Command;

use portreeve_tests::broker::SOCKET;
use portreeve_tests::{Broker, Host, binaries, isolated, lan, sample};

/// The completions that bash shows for the last of these words, as the script of a program gives them.
fn completions(host: &Host, script: &str, function: &str, words: &[&str]) -> Vec<String> {
    let code = format!(
        "{script}\nCOMP_WORDS=(\"$@\"); COMP_CWORD=$(($# - 1)); COMP_TYPE=9
        compopt() {{ :; }}; {function} \"$1\" \"${{!#}}\" \"${{@: -2:1}}\"; printf '%s\\n' \"${{COMPREPLY[@]}}\""
    );
    let path = format!("{}:/usr/bin:/bin", host.path("bin").display());
    let output =
        Command::new("bash").args(["-c", &code, "bash"]).args(words).env("PATH", path).output().unwrap();
    assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().lines().map(|line| line.trim().to_owned()).collect()
}

#[test]
fn the_command_completes_interfaces_addresses_and_listeners() {
    isolated(|host| {
        lan::create(&["far"]);
        let floating = r#"ESMTP_Listener { Listen "10.1.1.40:25" { enable_duravip = true } }"#;
        let broker = Broker::start(host, &sample::addresses(floating));
        let client = host.binary(binaries::CLIENT);
        let run =
            |words: &[&str]| Command::new(&client).args(["--socket", SOCKET]).args(words).output().unwrap();
        assert!(run(&["address", "add", "10.1.1.7", "--probes", "0"]).status.success());
        let mut peer = broker.peer();
        let (id, _socket) = peer.listen("127.0.0.1:25").unwrap();
        let script = String::from_utf8(run(&["completions", "bash"]).stdout).unwrap();
        let complete = |words: &[&str]| {
            let words = [&["portreeve", "--socket", SOCKET], words].concat();
            completions(host, &script, "_clap_complete_portreeve", &words)
        };
        assert!(complete(&["link", "e"]).contains(&"eth1".to_owned()));
        assert_eq!(complete(&["address", "renew", "1"]), ["10.1.1.7", "10.1.1.40"]);
        assert!(complete(&["address", "move", "10.1.1.7", "--to", ""]).contains(&"eth1".to_owned()));
        assert_eq!(complete(&["unlisten", ""])[0], id.0.to_string());
        assert!(complete(&["limit", "no"]).contains(&"nofile".to_owned()));
        // Without a broker there is nothing to complete, and no error.
        drop(broker);
        let none = complete(&["unlisten", ""]);
        assert!(none.iter().all(|word| word.is_empty() || word.starts_with('-')), "{none:?}");
    });
}

#[test]
fn the_broker_completes_every_option_of_its_help() {
    isolated(|host| {
        let output = Command::new(host.binary(binaries::BROKER)).arg("--help").output().unwrap();
        let help = String::from_utf8(output.stdout).unwrap();
        let options: Vec<&str> = help
            .split(|c: char| !(c.is_ascii_alphanumeric() || c == '-'))
            .filter_map(|word| word.strip_prefix("--").filter(|name| !name.is_empty()))
            .collect();
        assert!(options.contains(&"takeover") && options.len() > 8, "{options:?}");
        let scripts = [
            include_str!("../../../deploy/completions/portreeved.bash"),
            include_str!("../../../deploy/completions/portreeved.zsh"),
            include_str!("../../../deploy/completions/portreeved.fish"),
        ];
        for option in options {
            for script in scripts {
                assert!(script.contains(option), "{option} is missing in {script}");
            }
        }
        let complete = |words: &[&str]| completions(host, scripts[0], "_portreeved", words);
        assert_eq!(complete(&["portreeved", ""]), ["check", "explain"]);
        assert_eq!(complete(&["portreeved", "check", "--s"]), ["--strict", "--syntax"]);
        assert_eq!(complete(&["portreeved", "--log-format", "j"]), ["json", "journald"]);
        assert_eq!(complete(&["portreeved", "explain", "a.conf", "l"]), ["listen"]);
        host.file("a.conf", "");
        assert!(complete(&["portreeved", "check", "a"]).contains(&"a.conf".to_owned()));
    });
}
