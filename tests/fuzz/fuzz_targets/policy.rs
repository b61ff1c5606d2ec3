//! The policy of a generated configuration decides about generated endpoints and peers: a rule allows every
//! request that a peer is allowed, and root is allowed it too.
#![no_main]

use std::net::IpAddr;

use arbitrary::{Arbitrary, Result, Unstructured};
use libfuzzer_sys::fuzz_target;
use portreeve_broker::config::{PeerName, parse_text};
use portreeve_broker::policy::{Policy, Requester};
use portreeve_protocol::{Endpoint, InetEndpoint, Text};

/// The parts of patterns and endpoints: few, so that they often match.
const ADDRESSES: [&str; 12] = [
    "*",
    "0.0.0.0",
    "127.0.0.1",
    "192.0.2.7",
    "10.0.0.0/8",
    "0.0.0.0/0",
    "[::]",
    "[::1]",
    "[fe80::1%eth0]",
    "[2001:db8::/32]",
    "[::/0]",
    "[::ffff:10.1.1.1]",
];
const PORTS: [&str; 8] = ["0", "1", "25", "24-26", "1-65535", "65535", "1024-1023", "53"];
const SUFFIXES: [&str; 3] = ["", "/udp", "/tcp"];
const PATHS: [&str; 7] = ["/run/a", "/run/*", "/run/a/../b", "/*", "/run//a", "seqpacket:/run/a", "/"];
const WORDS: [&str; 6] = ["listen", "listen-many", "stop", "status", "address", "ping"];

#[derive(Debug)]
struct Case {
    text: String,
    endpoints: Vec<Endpoint>,
    peer: Requester,
}

impl<'a> Arbitrary<'a> for Case {
    fn arbitrary(u: &mut Unstructured<'a>) -> Result<Self> {
        let mut text = String::new();
        for scope in 0..u.int_in_range(0..=3)? {
            let enable = u.choose(&["", " Enable = no", " Free_Bind = yes"])?;
            text += &format!("L{scope}_Listener {{ Listen \"{}\" {{{enable} }} }}\n", pattern(u)?);
        }
        text += "broker { socket = /run/s\n";
        for permit in 0..4 {
            text += &format!("permit p{permit} {{ listen = (");
            for _ in 0..u.int_in_range(0..=4)? {
                text += &format!(" \"{}\"", pattern(u)?);
            }
            text += " ) }\n";
        }
        for peer in ["1", "@2", "3", "@4"] {
            let (word, permit) = (u.choose(&WORDS)?, u.int_in_range(0..=3)?);
            text += &format!("peer \"{peer}\" {{ allow = ( {word} ) permit = ( p{permit} ) }}\n");
        }
        text += "}\n";
        let endpoints = (0..u.int_in_range(1..=8)?).map(|_| endpoint(u)).collect::<Result<_>>()?;
        let gids = (0..u.int_in_range(0..=3)?).map(|_| u.int_in_range(0..=5)).collect::<Result<_>>()?;
        Ok(Case { text, endpoints, peer: Requester::Local { uid: u.int_in_range(0..=5)?, gids } })
    }
}

fn pattern(u: &mut Unstructured<'_>) -> Result<String> {
    Ok(match u.ratio(1, 4)? {
        true => (*u.choose(&PATHS)?).to_owned(),
        false => format!("{}:{}{}", u.choose(&ADDRESSES)?, u.choose(&PORTS)?, u.choose(&SUFFIXES)?),
    })
}

fn endpoint(u: &mut Unstructured<'_>) -> Result<Endpoint> {
    if let (true, Ok(endpoint)) = (u.arbitrary()?, pattern(u)?.parse()) {
        return Ok(endpoint);
    }
    let scope = Text::truncated(u.choose(&["", "eth0", "a b", "\n"])?);
    let inet = InetEndpoint { address: u.arbitrary::<IpAddr>()?, port: u.arbitrary()?, scope };
    let path = Text::truncated(u.arbitrary::<&str>()?);
    Ok(match u.int_in_range(0..=3)? {
        0 => Endpoint::Tcp(inet),
        1 => Endpoint::Udp(inet),
        2 => Endpoint::UnixStream(path),
        _ => Endpoint::UnixSeqpacket(path),
    })
}

fn number(name: &PeerName) -> Option<u32> {
    match name {
        PeerName::User(name) | PeerName::Group(name) => name.parse().ok(),
    }
}

fuzz_target!(|case: Case| {
    let Ok((config, _)) = parse_text("fuzz.conf", &case.text) else { return };
    let policy = Policy::new(&config, &mut number).expect("every name is a number");
    let nothing = Policy::default();
    let root = Requester::Local { uid: 0, gids: Vec::new() };
    let stranger = Requester::Local { uid: 99, gids: vec![99] };
    for endpoint in &case.endpoints {
        let theirs = policy.listen(&case.peer, endpoint);
        let all = policy.listen(&root, endpoint);
        assert_eq!(all.is_ok(), policy.listen(&Requester::Worker, endpoint).is_ok());
        assert!(theirs.is_err() || all.is_ok(), "{endpoint}: allowed to {}, but not to root", case.peer);
        assert!(policy.listen(&stranger, endpoint).is_err(), "{endpoint}: allowed to an unknown user");
        assert!(nothing.listen(&root, endpoint).is_err(), "{endpoint}: allowed by an empty policy");
        if all.is_ok() {
            permitted(&policy, endpoint);
        }
        for denied in [theirs.err(), all.err()].into_iter().flatten() {
            let fault = denied.fault();
            assert!(!fault.to_string().contains(|c: char| c.is_control()), "{fault:?}");
        }
    }
});

/// Checks an allowed endpoint: some must never be allowed, and the Landlock rules must cover the others.
fn permitted(policy: &Policy, endpoint: &Endpoint) {
    match endpoint {
        Endpoint::Tcp(inet) | Endpoint::Udp(inet) => {
            assert_ne!(inet.port, 0, "{endpoint}");
            let mapped = matches!(inet.address, IpAddr::V6(six) if six.to_ipv4_mapped().is_some());
            assert!(!mapped, "{endpoint}");
        }
        Endpoint::UnixStream(path) | Endpoint::UnixSeqpacket(path) => {
            assert!(path.starts_with('/') && !path.contains('\0'), "{endpoint}");
            assert!(!path.split('/').any(|part| part == ".."), "{endpoint}");
        }
    }
    if let Endpoint::Tcp(inet) = endpoint {
        assert!(policy.tcp_ports().iter().any(|ports| ports.contains(&inet.port)), "{endpoint}");
    }
}
