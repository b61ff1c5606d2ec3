//! The policy denies everything that no rule permits. Each test covers one case.
#![forbid(unsafe_code)]
#![allow(clippy::panic)] // test helpers may panic

mod endpoints;
mod peers;

use portreeve_broker::config::{Config, PeerName, parse_text};
use portreeve_broker::policy::{Policy, Requester};
use portreeve_protocol::{Endpoint, InetEndpoint, Text};

fn config(text: &str) -> Config {
    match parse_text("p.conf", text) {
        Ok((config, _)) => config,
        Err(report) => panic!("{report}"),
    }
}

/// Users and groups of an imaginary host.
fn ids(name: &PeerName) -> Option<u32> {
    match name {
        PeerName::User(name) => [("root", 0), ("www", 33), ("mail", 8)].into_iter().find(|(n, _)| n == name),
        PeerName::Group(name) => [("www", 33), ("ops", 500)].into_iter().find(|(n, _)| n == name),
    }
    .map(|(_, id)| id)
}

fn policy(text: &str) -> Policy {
    match Policy::new(&config(text), &mut ids) {
        Ok(policy) => policy,
        Err(report) => panic!("{report}"),
    }
}

/// A policy with one permit that has these `listen` patterns.
fn permit(patterns: &str) -> Policy {
    policy(&format!("broker {{ permit p {{ listen = ( {patterns} ) }} }}"))
}

fn allows(policy: &Policy, endpoint: &str) -> bool {
    let Ok(endpoint) = endpoint.parse::<Endpoint>() else {
        panic!("{endpoint} is not an endpoint");
    };
    policy.listen(&Requester::Worker, &endpoint).is_ok()
}

fn check(patterns: &str, allowed: &[&str], refused: &[&str]) {
    let policy = permit(patterns);
    for endpoint in allowed {
        assert!(allows(&policy, endpoint), "{patterns} refuses {endpoint}");
    }
    for endpoint in refused {
        assert!(!allows(&policy, endpoint), "{patterns} allows {endpoint}");
    }
}

fn local(uid: u32, gids: &[u32]) -> Requester {
    Requester::Local { uid, gids: gids.to_vec() }
}

fn tcp(address: &str, port: u16) -> Endpoint {
    match address.parse() {
        Ok(address) => Endpoint::Tcp(InetEndpoint { address, port, scope: Text::default() }),
        Err(error) => panic!("{address}: {error}"),
    }
}
