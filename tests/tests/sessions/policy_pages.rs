//! The part of the policy that each peer can read: its own rules, and the floating addresses.

use std::path::Path;
use std::process::Command;

use portreeve::{Channel, blocking};
use portreeve_protocol::policy::{PolicyPage, PolicyRequest};
use portreeve_tests::broker::SOCKET;
use portreeve_tests::namespaces::run;
use portreeve_tests::{Broker, Peer, binaries, isolated, lan, sample};

const MORE: &str = r#"
    cluster { nodename = mx1 }
    binding out { enable_duravip = true bind_address = 10.1.1.7 duravip_preference = mx2 }
    ESMTP_Listener { Listen "10.1.1.8:25" { duravip_follow = out } }
    broker {
        permit few { listen = ( "127.0.0.1:2500" "127.0.0.1:2600-2699" ) }
        peer nobody { allow = ( policy listen ) permit = ( few ) }
        peer 2 { allow = ( status ) }
    }"#;

fn read_policy(peer: &mut Peer) -> PolicyPage {
    let mut all = peer.request(&PolicyRequest { after: 0 }).unwrap().0;
    let mut rules = all.rules.to_vec();
    while all.next != 0 {
        let next = peer.request(&PolicyRequest { after: all.next }).unwrap().0;
        assert_eq!(next.nodename, all.nodename);
        rules.extend(next.rules.to_vec());
        all.next = next.next;
    }
    // The other lists of these tests fit in one page.
    PolicyPage { rules: portreeve_protocol::List::truncated(rules), ..all }
}

#[test]
fn each_peer_reads_its_own_rules_and_its_floating_addresses() {
    isolated(|host| {
        lan::create(&["far"]);
        let broker = Broker::start(host, &sample::addresses(MORE));
        let root = read_policy(&mut broker.peer());
        assert_eq!((&*root.nodename, root.lease), ("mx1", 10));
        let texts: Vec<String> = root.rules.iter().map(|rule| rule.text.to_string()).collect();
        for rule in ["permit \"any\": address 10.0.0.0/8", "permit \"any\": interface eth1"] {
            assert!(texts.contains(&rule.to_owned()), "no {rule} in {texts:?}");
        }
        assert!(root.rules.iter().all(|rule| rule.place.contains("portreeve.conf:")), "{:?}", root.rules);
        let blocks: Vec<String> = root
            .topology
            .iter()
            .map(|row| format!("{}/{} {}", row.block, row.prefix, row.interface))
            .collect();
        assert!(blocks.contains(&"10.1.1.0/24 eth1".to_owned()), "{blocks:?}");
        let moving: Vec<String> = root
            .floating
            .iter()
            .map(|row| {
                format!(
                    "{} {} {} {:?} {}/{}",
                    row.address, row.name, row.preference, row.follows, row.interface, row.prefix
                )
            })
            .collect();
        assert_eq!(moving.len(), 2, "{moving:?}");
        assert_eq!(moving[0], "10.1.1.7 out mx2 None eth1/32");
        assert!(moving[1].starts_with("10.1.1.8 ") && moving[1].contains("Some(10.1.1.7)"), "{moving:?}");

        let mut nobody = Peer::of_user(65_534, 65_534);
        let own = read_policy(&mut nobody);
        let texts: Vec<String> = own.rules.iter().map(|rule| rule.text.to_string()).collect();
        assert_eq!(
            texts,
            ["permit \"few\": listen 127.0.0.1:2500", "permit \"few\": listen 127.0.0.1:2600-2699"]
        );
        assert!(own.topology.is_empty() && own.floating.is_empty(), "{own:?}");

        let mut other = Peer::of_user(2, 2);
        // Without a grant it reads what it is allowed itself: nothing.
        let own = read_policy(&mut other);
        assert!(own.rules.is_empty() && own.topology.is_empty() && own.floating.is_empty(), "{own:?}");
    });
}

#[test]
fn a_long_policy_is_paged_and_the_command_shows_all_pages() {
    isolated(|host| {
        lan::create(&["far"]);
        let ports: Vec<String> = (1..=150).map(|port| format!("\"127.0.0.1:{port}\"")).collect();
        let more = format!("broker {{ permit many {{ listen = ( {} ) }} }} {MORE}", ports.join(" "));
        let broker = Broker::start(host, &sample::addresses(&more));
        let first = broker.peer().request(&PolicyRequest { after: 0 }).unwrap().0;
        assert_eq!((first.rules.len(), first.next), (64, 64));
        let beyond = broker.peer().request(&PolicyRequest { after: u32::MAX }).unwrap().0;
        assert!(beyond.rules.is_empty() && beyond.next == 0, "{beyond:?}");
        let mut command = Command::new(host.binary(binaries::CLIENT));
        let shown = run(command.args(["--socket", SOCKET, "policy"]), "portreeve");
        for port in [1, 64, 65, 150] {
            assert!(shown.contains(&format!("permit \"many\": listen 127.0.0.1:{port} ")), "{port}: {shown}");
        }
        assert!(shown.contains("operations: hello ping") && shown.contains("10.1.1.8/32"), "{shown}");
        let mut command = Command::new(host.binary(binaries::CLIENT));
        let value = run(command.args(["--socket", SOCKET, "policy", "--json"]), "portreeve");
        let value: serde_json::Value = serde_json::from_str(&value).unwrap();
        assert_eq!(value["floating"][0]["preference"], "mx2");
        let client = blocking::Client::open(Channel::connect(Path::new(SOCKET)).unwrap(), "test").unwrap();
        assert_eq!(client.policy(0).unwrap(), first);
    });
}
