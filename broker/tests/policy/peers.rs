//! Which peer is allowed which rule.

use portreeve_broker::config::{Limit, Resource};
use portreeve_broker::policy::{Denied, Policy, Requester};
use portreeve_protocol::FaultCode;

use super::{config, ids, local, policy};

const PEERS: &str = "ESMTP_Listener { Listen \":25\" { } }
broker {
  socket = /run/broker.sock
  permit web { listen = ( \"*:80\" ) }
  permit dns { listen = ( \"*:53/udp\" ) address = ( 10.1.1.0/24 ) interface = eth1 limit = ( \"nofile=1000\" ) }
  permit spare { listen = ( \"*:81\" ) }
  peer www { allow = ( status listen ) permit = ( web ) }
  peer \"@ops\" { allow = ( status listen address link limit ) permit = ( dns ) }
  peer \"@33\" { allow = ( metrics cluster ) permit = ( spare ) }
}
cluster { topology 10.1.1.0/25 { interface = eth1 } topology 10.1.1.0/24 { interface = eth2 cidrmask = 24 } }
";

#[test]
fn a_peer_is_allowed_only_what_its_scopes_allow() {
    let policy = policy(PEERS);
    let (www, ops) = (local(33, &[100]), local(8, &[100, 500]));
    let both = local(33, &[33, 500]);
    let is_allowed =
        |requester: &Requester, endpoint: &str| policy.listen(requester, &endpoint.parse().unwrap()).is_ok();
    assert!(is_allowed(&www, "*:80") && !is_allowed(&www, "*:53/udp"));
    assert!(is_allowed(&ops, "*:53/udp") && !is_allowed(&ops, "*:80"));
    assert!(is_allowed(&both, "*:80") && is_allowed(&both, "*:53/udp"), "scopes add up");
    assert!(
        !is_allowed(&both, "*:81"),
        "the operations of one scope do not extend to the permits of another"
    );
    assert!(!is_allowed(&www, "*:25"), "listener scopes apply to the worker alone");
    for (requester, name, allowed) in [
        (&www, "listen-many", true),
        (&www, "stop", true),
        (&www, "status", true),
        (&www, "hello", true),
        (&www, "metrics", false),
        (&www, "add-address", false),
        (&www, "reload", false),
        (&ops, "add-address", true),
        (&ops, "announce", true),
        (&ops, "set-link", true),
        (&both, "metrics", true),
        (&both, "cluster", true),
        (&ops, "cluster", false),
        (&Requester::Worker, "cluster", true),
        (&local(0, &[]), "cluster", true),
        (&both, "nonsense", false),
    ] {
        assert_eq!(policy.operation(requester, name).is_ok(), allowed, "{requester} {name}");
    }
}

#[test]
fn a_peer_without_a_scope_is_denied_everything() {
    let policy = policy(PEERS);
    for requester in [local(1000, &[1000]), local(500, &[8]), local(u32::MAX, &[])] {
        for name in ["hello", "ping", "status", "listen"] {
            assert!(policy.operation(&requester, name).is_err(), "{requester} {name}");
        }
        assert!(policy.listen(&requester, &"*:80".parse().unwrap()).is_err());
    }
}

#[test]
fn root_is_allowed_only_what_some_rule_permits() {
    let policy = policy(PEERS);
    let root = local(0, &[0]);
    let is_allowed = |endpoint: &str| policy.listen(&root, &endpoint.parse().unwrap()).is_ok();
    assert!(is_allowed("*:25") && is_allowed("*:80") && is_allowed("*:53/udp") && is_allowed("*:81"));
    assert!(!is_allowed("*:82"));
    assert!(policy.operation(&root, "reload").is_ok());
    assert!(policy.operation(&root, "nonsense").is_err());
    assert!(policy.operation(&Requester::Worker, "reload").is_err());
    assert!(policy.operation(&Requester::Worker, "listen").is_ok());
}

#[test]
fn an_address_belongs_to_its_longest_topology_block() {
    let policy = policy(PEERS);
    let ops = local(8, &[500]);
    let address = |requester: &Requester, text: &str| {
        let permit = policy.address(requester, text.parse().unwrap())?;
        Ok::<_, Denied>(permit.place.map(|place| (place.interface.to_string(), place.prefix)))
    };
    assert_eq!(address(&ops, "10.1.1.7"), Ok(Some(("eth1".into(), 32))));
    assert_eq!(address(&ops, "10.1.1.200"), Ok(Some(("eth2".into(), 24))));
    assert!(address(&ops, "10.1.2.1").is_err());
    assert!(address(&local(33, &[]), "10.1.1.7").is_err());
    assert!(policy.interface(&ops, "eth1").is_ok() && policy.interface(&ops, "eth2").is_err());
    let nofile = Resource::named("nofile").unwrap();
    let limit = |value| Limit { resource: nofile, value };
    assert!(policy.limit(&ops, &limit(Some(1000))).is_ok());
    let denied = policy.limit(&ops, &limit(None)).unwrap_err();
    assert_eq!(denied.nearest.as_deref(), Some("p.conf:5: permit \"dns\": limit nofile=1000"));
}

#[test]
fn addresses_that_no_host_can_have_are_always_denied() {
    let policy = policy("broker { permit p { address = ( 0.0.0.0/0 ::/0 ) } }");
    for address in [
        "0.0.0.0",
        "0.1.2.3",
        "127.0.0.1",
        "224.0.0.1",
        "255.255.255.255",
        "::",
        "::1",
        "ff02::1",
        "fe80::1",
        "::ffff:10.0.0.1",
    ] {
        assert!(policy.address(&Requester::Worker, address.parse().unwrap()).is_err(), "{address}");
    }
    assert!(policy.address(&Requester::Worker, "10.0.0.1".parse().unwrap()).is_ok());
}

#[test]
fn the_worker_is_allowed_the_duravip_address_of_any_listener() {
    let policy = policy(
        "cluster { topology 10.1.1.0/24 { interface = eth1 } }
         ESMTP_Listener { Listen \"10.1.1.1:25\" { } Listen \"10.1.1.2:25\" { duravip_follow = out } }
         Binding out { bind_address = 10.1.1.1 enable_duravip = true }",
    );
    let address = |text: &str| policy.address(&Requester::Worker, text.parse().unwrap());
    assert!(address("10.1.1.1").is_ok());
    assert!(address("10.1.1.3").is_err());
    assert_eq!(policy.followers("10.1.1.1".parse().unwrap()).len(), 1);
    let denied = address("10.1.1.2").unwrap_err();
    assert!(denied.remedy.contains("10.1.1.1"), "the remedy names the address to request instead: {denied}");
}

#[test]
fn a_denial_names_the_nearest_of_the_requesters_rules() {
    let policy = policy(PEERS);
    let nearest = |requester: &Requester, endpoint: &str| {
        let denied = policy.listen(requester, &endpoint.parse().unwrap()).unwrap_err();
        assert_eq!(denied.fault().code, FaultCode::Denied);
        denied.nearest
    };
    let rule = |text: &str| Some(text.to_owned());
    let worker = Requester::Worker;
    assert_eq!(nearest(&worker, "[::]:80"), rule("p.conf:4: permit \"web\": listen *:80"));
    assert_eq!(nearest(&worker, "*:53"), rule("p.conf:5: permit \"dns\": listen *:53/udp"));
    assert_eq!(nearest(&worker, "/run/a"), None);
    assert_eq!(nearest(&local(8, &[500]), "*:25"), rule("p.conf:5: permit \"dns\": listen *:53/udp"));
}

#[test]
fn a_remedy_names_only_what_the_peer_lacks() {
    let policy = policy(PEERS);
    let endpoint = "*:82".parse().unwrap();
    for requester in [Requester::Worker, local(0, &[0])] {
        let denials = [
            policy.listen(&requester, &endpoint).unwrap_err(),
            policy.address(&requester, "192.0.2.1".parse().unwrap()).unwrap_err(),
            policy.interface(&requester, "eth9").unwrap_err(),
        ];
        for denied in denials {
            assert!(denied.remedy.contains("a permit"), "{denied}");
            assert!(!denied.remedy.contains("peer scope"), "{requester} needs no peer scope: {denied}");
        }
    }
    let www = local(33, &[]);
    assert!(policy.listen(&www, &endpoint).unwrap_err().remedy.contains("a peer scope of user 33"));
    let remedy =
        |requester: &Requester, operation| policy.operation(requester, operation).unwrap_err().remedy;
    assert_eq!(
        remedy(&www, "add-address"),
        "add address to allow in a peer scope of user 33 or one of its groups"
    );
    assert_eq!(remedy(&www, "takeover"), "run this as user 0");
    assert_eq!(remedy(&Requester::Worker, "reload"), "send the request as user 0 over the control socket");
    assert_eq!(
        remedy(&local(1000, &[]), "hello"),
        "add a peer scope for user 1000 or one of its groups to the broker scope"
    );
}

#[test]
fn an_unknown_peer_is_an_error_with_its_position() {
    let text = "broker {\n  socket = /run/b\n  peer nobody_here { allow = status }\n  peer \"@www\" { }\n  peer \"+33\" { }\n  peer 77 { }\n  peer 4294967295 { }\n}\n";
    let report = Policy::new(&config(text), &mut ids).unwrap_err();
    let lines: Vec<String> = report.one_lines().collect();
    assert_eq!(lines.len(), 3, "{lines:?}");
    assert_eq!(
        lines[0],
        "p.conf:3:8: error: there is no user \"nobody_here\" on this host; add the user, correct its name, or remove this peer scope"
    );
}

#[test]
fn permitted_ports_merge_into_the_fewest_ranges() {
    let policy = policy(
        "X_Listener { Listen \":25\" { } Listen \":24\" { } Listen \"*:53/udp\" { } }
         broker { permit p { listen = ( \"*:1-10\" \"[::]:5-23\" \"10.0.0.0/8:587\" \"*:65535\" \"*:26-30/udp\" ) } }",
    );
    assert_eq!(policy.tcp_ports(), [1..=25, 587..=587, 65535..=65535]);
}

#[test]
fn the_rules_of_a_requester_are_listed_in_configuration_order() {
    let policy = policy(PEERS);
    let rules = |requester: &Requester| -> Vec<String> {
        policy.rules_for(requester).iter().map(|rule| rule.to_string()).collect()
    };
    assert_eq!(rules(&local(33, &[])), ["p.conf:4: permit \"web\": listen *:80"]);
    assert_eq!(rules(&Requester::Worker), rules(&local(0, &[])));
    assert_eq!(rules(&Requester::Worker).len(), 7);
    assert_eq!(rules(&local(1000, &[])), [""; 0]);
    let spare = local(8, &[33]);
    assert_eq!(rules(&spare), [""; 0], "a permit without an allowed operation has no effect");
}
