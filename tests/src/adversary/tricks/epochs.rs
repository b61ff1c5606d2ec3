//! Requests with an epoch, about addresses that the peer does not hold.

use std::net::{IpAddr, Ipv4Addr};

use portreeve_protocol::address::{Announce, MoveAddress, RemoveAddress, RenewAddress};
use portreeve_protocol::message::Outcome;
use portreeve_protocol::{Fault, FaultCode, List, Text};

use crate::adversary::session::{Failure, Session};
use crate::adversary::{Attacker, Trick, Who};
use crate::peer::one_address;

/// How many addresses one request names.
const BATCH: u32 = 256;

/// Requests with the highest, the lowest and a newer epoch, about addresses of others. A reply that depends on the epoch
/// tells a peer the epoch of others.
pub struct ForeignEpochs;

impl Trick for ForeignEpochs {
    fn attack(&self, attacker: &mut Attacker<'_>) {
        let mut open = None;
        while attacker.next_round() {
            let Some(mut session) = open.take().or_else(|| attacker.session()) else { continue };
            for address in &attacker.targets.addresses {
                for epoch in [0, 8, u64::MAX] {
                    let faults = all_requests(&mut session, address, epoch);
                    faults.iter().flatten().for_each(|fault| check(attacker, address, epoch, fault.as_ref()));
                }
            }
            open = Some(session);
        }
    }

    fn suits(&self, who: Who) -> bool {
        // Root is allowed to remove each address.
        who != Who::Root
    }
}

fn check(attacker: &Attacker<'_>, address: &str, epoch: u64, fault: Option<&Fault>) {
    match fault {
        None => attacker.harm(format_args!("a request about {address} with epoch {epoch} succeeded")),
        Some(fault) if fault.code == FaultCode::Expired => {
            attacker.harm(format_args!("the epoch of {address} is told: {fault}"));
        }
        Some(_) => {}
    }
}

/// The fault of each request, `Some(None)` if it succeeded, and `None` if there is no reply.
pub fn all_requests(session: &mut Session, address: &str, epoch: u64) -> [Option<Option<Fault>>; 4] {
    let interface = Text::truncated("eth1");
    let remove = RemoveAddress { addresses: one_address(address), epoch };
    let renew = RenewAddress { addresses: one_address(address), epoch, ..RenewAddress::default() };
    let announce = Announce { addresses: one_address(address), epoch };
    let moved = MoveAddress { addresses: one_address(address), epoch, interface, announce: false };
    [
        fault(session.ask(&remove).map(|(reply, _)| reply.results)),
        fault(session.ask(&renew).map(|(reply, _)| reply.results)),
        fault(session.ask(&announce).map(|(reply, _)| reply.results)),
        fault(session.ask(&moved).map(|(reply, _)| reply.results)),
    ]
}

fn fault<T, const MAX: usize>(reply: Result<List<Outcome<T>, MAX>, Failure>) -> Option<Option<Fault>> {
    match reply {
        Ok(results) => Some(results.first().and_then(|result| result.fault().cloned())),
        Err(Failure::Fault(fault)) => Some(Some(fault)),
        Err(Failure::Lost(_)) => None,
    }
}

/// Names so many addresses that the epochs of others would be forgotten.
pub struct ManyEpochs;

impl Trick for ManyEpochs {
    fn attack(&self, attacker: &mut Attacker<'_>) {
        let mut next = attacker.who.number() << 24 | 0x1000_0000;
        while attacker.next_round() {
            // The broker holds back a session after a refusal, but a new one is served at once.
            let Some(mut session) = attacker.session() else { continue };
            for _ in 0..2 {
                let addresses = (next..next + BATCH).map(|bits| IpAddr::from(Ipv4Addr::from_bits(bits)));
                session.send(&RemoveAddress { addresses: List::truncated(addresses), epoch: u64::MAX });
                next += BATCH;
            }
            session.drain(1);
        }
    }
}
