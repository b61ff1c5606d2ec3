//! Hostile peers: each performs a random trick in each step. They have permits and user ids of their own, and no other peer may
//! notice them.

use std::path::PathBuf;
use std::sync::PoisonError;
use std::time::Duration;

use super::actor::Actor;
use super::mail_clients::PORTS;
use super::model::Model;
use crate::Host;
use crate::adversary::attacker::{Shared, Targets, as_user};
use crate::adversary::{Attacker, TRICKS, Who};
use crate::broker::SOCKET;
use crate::random::Random;

/// The number of hostile peers.
pub const HOSTILE: u32 = 3;
/// The directory of their Unix listeners.
const DIRECTORY: &str = "hostile";
/// The first of their TCP ports.
const PORT: u16 = 20_000;

/// The permit of the hostile peers, and their peer scopes, for the broker's scope.
pub fn permits(host: &Host) -> String {
    let peer = |number: u32| {
        let user = Who::User(number).uid();
        format!(
            "peer {user} {{ allow = ( status listen address limit policy cluster metrics subscribe ) permit = ( hostile ) }}\n"
        )
    };
    let peers: String = (0..HOSTILE).map(peer).collect();
    format!(
        r#"permit "hostile" {{
            listen = (
                "127.0.0.0/8:{PORT}-29999" "127.0.0.0/8:{PORT}-29999/udp" "{directory}/*"
            )
            address = ( "10.3.0.0/16" )
            limit = ( "nofile=4096" )
        }}
        {peers}"#,
        directory = host.path(DIRECTORY).display(),
    )
}

/// Creates the directory of the permit.
pub fn create_directory(host: &Host) {
    std::fs::create_dir(host.path(DIRECTORY)).unwrap();
}

/// See the module.
pub struct HostilePeer {
    random: Random,
    who: Who,
    targets: Targets,
}

impl HostilePeer {
    /// The hostile peer with this number.
    pub fn new(host: &Host, random: Random, number: u32) -> Self {
        let targets = Targets {
            control: PathBuf::from(SOCKET),
            other_control: None,
            // Endpoints and addresses that they may never have.
            endpoints: PORTS
                .iter()
                .flat_map(|port| [format!("127.0.0.1:{port}"), format!("*:{port}")])
                .collect(),
            addresses: ["10.2.1.1", "10.2.1.2", "10.2.2.1"].map(str::to_owned).to_vec(),
            directory: host.path(DIRECTORY),
            ports: PORT,
            broker: 0,
        };
        Self { random, who: Who::User(number), targets }
    }
}

impl Actor for HostilePeer {
    fn step(&mut self, model: &Model) {
        let rows: Vec<_> = TRICKS.iter().filter(|row| row.trick.suits(self.who)).collect();
        let Some(row) = self.random.pick(&rows) else { return };
        let time = Duration::from_millis(50 + self.random.below(300));
        let (shared, random) = (Shared::default(), Random::new(self.random.below(u64::MAX)));
        let mut attacker = Attacker::new(self.who, &self.targets, &shared, random, None);
        as_user(self.who.uid(), &[], || attacker.perform(row.name, row.trick, Some(time)));
        let harms = shared.harms.lock().unwrap_or_else(PoisonError::into_inner);
        harms.iter().for_each(|harm| model.violation(harm));
        model.count("hostile: tricks");
        model.add("hostile: rounds", shared.rounds.load(std::sync::atomic::Ordering::Relaxed));
    }

    fn release(&mut self, _: &Model) {}

    fn pause(&mut self) -> Duration {
        Duration::from_millis(20 + self.random.below(100))
    }
}

/// Whether an address is one of theirs, which the model does not know.
pub fn is_address_of_hostile_peer(address: &std::net::IpAddr) -> bool {
    matches!(address, std::net::IpAddr::V4(address) if address.octets()[..2] == [10, 3])
}
