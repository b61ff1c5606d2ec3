//! Epochs of one peer and the leases of others: whose requests an epoch counts for, and what a peer learns of it.

use portreeve_protocol::address::{
    AddAddress, Announce, Leases, MAX_ADDRESSES, MoveAddress, RemoveAddress, RenewAddress,
};
use portreeve_protocol::message::Outcome;
use portreeve_protocol::{EventCode, Fault, FaultCode, List, Text};
use portreeve_tests::peer::one_address;
use portreeve_tests::scripted_worker::{ScriptedWorker, WorkerSetup};
use portreeve_tests::{Broker, Host, Peer, isolated, lan, sample};

const OWNER: u32 = 1001;
const RIVAL: u32 = 1002;
const STRANGER: u32 = 1003;
const GROUP: u32 = 2001;
/// Greater than any epoch of the owner.
const LAST: u64 = u64::MAX;

/// A broker with a worker, two users with the same permits, a group with them, and a user with none. `10.1.1.9` follows
/// `10.1.1.8`.
fn configuration(setup: &WorkerSetup) -> String {
    let rest = sample::addresses(&format!(
        r#"
        binding "out" {{ bind_address = 10.1.1.8 enable_duravip = true }}
        ESMTP_Listener {{ Listen "10.1.1.9:25" {{ duravip_follow = "out" }} }}
        broker {{
            permit "none" {{ listen = ( "127.0.0.1:9" ) }}
            peer {OWNER} {{ allow = ( address subscribe ) permit = ( any ) }}
            peer {RIVAL} {{ allow = ( address ) permit = ( any ) }}
            peer {STRANGER} {{ allow = ( address ) permit = ( none ) }}
            peer "@{GROUP}" {{ allow = ( address ) permit = ( any ) }}
        }}"#
    ));
    sample::worker(&setup.chroot, "( /run/host/bin/scripted_worker )", &rest)
}

fn renew(peer: &mut Peer, address: &str, epoch: u64) -> Vec<Outcome<portreeve_protocol::address::Lease>> {
    let renew =
        RenewAddress { addresses: one_address(address), lease: None, epoch, ..RenewAddress::default() };
    peer.request(&renew).unwrap().0.results.into_vec()
}

#[track_caller]
fn remove(peer: &mut Peer, address: &str, epoch: u64) {
    let removed = peer.request(&RemoveAddress { addresses: one_address(address), epoch }).unwrap().0;
    assert!(removed.results.iter().all(|result| matches!(result, Outcome::Done(_))), "{removed:?}");
}

fn add(peer: &mut Peer, address: &str, epoch: u64) -> Result<(), Fault> {
    peer.add_address(address, |add| (add.lease, add.epoch) = (Some(600), epoch)).map(drop)
}

/// What a peer gets for each kind of request about one address with this epoch.
fn every_request(peer: &mut Peer, address: &str, epoch: u64) -> Vec<Fault> {
    fn only<T: std::fmt::Debug, const MAX: usize>(results: List<Outcome<T>, MAX>) -> Fault {
        match &results[..] {
            [Outcome::Fault(fault)] => fault.clone(),
            other => panic!("not refused, or with the results of other addresses: {other:?}"),
        }
    }
    let addresses = || one_address(address);
    let interface = Text::new("eth1").unwrap();
    let add = AddAddress { addresses: addresses(), lease: Some(900), epoch, ..AddAddress::default() };
    let renew = RenewAddress { addresses: addresses(), lease: Some(900), epoch, ..RenewAddress::default() };
    let announce = Announce { addresses: addresses(), epoch };
    let go = MoveAddress { addresses: addresses(), interface, epoch, announce: false };
    let of = |reply: Result<(Leases, Vec<_>), Fault>| reply.unwrap().0.results;
    // The result of an addition has one for each follower, which is not another's.
    let added = of(peer.request(&add)).into_vec().swap_remove(0);
    let remove = peer.request(&RemoveAddress { addresses: addresses(), epoch }).unwrap().0;
    vec![
        only(List::<_, MAX_ADDRESSES>::truncated([added])),
        only(of(peer.request(&renew))),
        only(of(peer.request(&announce))),
        only(of(peer.request(&go))),
        only(remove.results),
    ]
}

/// Lets the rival, a stranger, a group peer and the worker send every request with other epochs about the owner's address.
fn interfere(address: &str, worker: &mut Peer) {
    let mut peers = [
        ("a user with the same permits", Peer::of_user(RIVAL, RIVAL)),
        ("a user without a permit", Peer::of_user(STRANGER, STRANGER)),
        ("a group peer", Peer::of_user(1004, GROUP)),
    ];
    let peers = peers.iter_mut().map(|(who, peer)| (*who, peer)).chain([("the worker", worker)]);
    for (who, peer) in peers {
        for epoch in [0, 7, 8, LAST] {
            let faults = every_request(peer, address, epoch);
            let codes: Vec<FaultCode> = faults.iter().map(|fault| fault.code).collect();
            use FaultCode::{Denied, InUse, NotFound};
            let expected = match who {
                "a user without a permit" => [Denied, Denied, Denied, Denied, NotFound],
                _ => [InUse, NotFound, NotFound, NotFound, NotFound],
            };
            assert_eq!(codes, expected, "{who}, epoch {epoch}: {faults:?}");
            for fault in faults {
                assert!(!fault.to_string().contains("epoch"), "{who} learns of the epoch: {fault}");
                assert_eq!(fault.code == InUse, &*fault.subject == "user 1001", "{who}: {fault:?}");
            }
        }
    }
}

/// The worker of the broker that serves now, and the channel that it shares with the test.
fn greeted(setup: &WorkerSetup) -> (ScriptedWorker, Peer) {
    let (scripted, mut peer) = setup.accept();
    peer.hello();
    (scripted, peer)
}

fn start(host: &Host) -> (String, WorkerSetup, Broker) {
    lan::create(&["far"]);
    let setup = WorkerSetup::new(host, "chroot");
    let text = configuration(&setup);
    let broker = Broker::start(host, &text);
    (text, setup, broker)
}

#[test]
fn no_other_peer_changes_or_learns_the_epoch_of_a_lease() {
    isolated(|host| {
        let (text, setup, mut broker) = start(host);
        let mut worker = greeted(&setup);
        let mut owner = Peer::of_user(OWNER, OWNER);
        add(&mut owner, "10.1.1.7", 7).unwrap();
        for takeover in [false, true] {
            if takeover {
                broker.replace(host, &text);
                worker = greeted(&setup);
                owner = Peer::of_user(OWNER, OWNER);
            }
            interfere("10.1.1.7", &mut worker.1);
            // Root's client does not hold it either; it may remove it, but not with an older epoch.
            let mut root = broker.peer();
            let faults = every_request(&mut root, "10.1.1.7", 6);
            let last = faults.last().unwrap();
            assert_eq!((last.code, &*last.subject), (FaultCode::Expired, "7"), "{last}");
            assert_eq!(faults.iter().filter(|fault| fault.code == FaultCode::NotFound).count(), 3);
            assert!(matches!(&renew(&mut root, "10.1.1.7", LAST)[..], [Outcome::Fault(_)]));
            let renewed = renew(&mut owner, "10.1.1.7", 7);
            assert!(matches!(&renewed[..], [Outcome::Done(lease)] if lease.epoch == 7), "{renewed:?}");
        }
        remove(&mut owner, "10.1.1.7", 7);
        interfere_with_removed(&mut worker.1);
        assert_eq!(add(&mut owner, "10.1.1.7", 6).unwrap_err().code, FaultCode::Expired);
        add(&mut owner, "10.1.1.7", 7).unwrap();
    });
}

/// Others request the address after its removal, and have it for a while.
fn interfere_with_removed(worker: &mut Peer) {
    let mut stranger = Peer::of_user(STRANGER, STRANGER);
    let faults = every_request(&mut stranger, "10.1.1.7", LAST);
    assert!(faults.iter().all(|fault| !fault.to_string().contains("epoch")), "{faults:?}");
    for peer in [&mut Peer::of_user(RIVAL, RIVAL), &mut Peer::of_user(1004, GROUP), worker] {
        let answer = renew(peer, "10.1.1.7", 0);
        assert!(
            matches!(&answer[..], [Outcome::Fault(fault)] if fault.code == FaultCode::NotFound),
            "{answer:?}"
        );
        add(peer, "10.1.1.7", LAST).unwrap();
        remove(peer, "10.1.1.7", LAST);
        assert_eq!(add(peer, "10.1.1.7", 8).unwrap_err().code, FaultCode::Expired, "its own epoch counts");
    }
}

#[test]
fn the_epoch_with_which_root_removes_an_address_counts_for_every_owner() {
    isolated(|host| {
        let (text, setup, mut broker) = start(host);
        let mut worker = greeted(&setup);
        let mut owner = Peer::of_user(OWNER, OWNER);
        add(&mut owner, "10.1.1.7", 7).unwrap();
        remove(&mut broker.peer(), "10.1.1.7", 9);
        for takeover in [false, true] {
            if takeover {
                broker.replace(host, &text);
                worker = greeted(&setup);
                owner = Peer::of_user(OWNER, OWNER);
            }
            for peer in [&mut owner, &mut worker.1, &mut Peer::of_user(RIVAL, RIVAL)] {
                let fault = add(peer, "10.1.1.7", 8).unwrap_err();
                assert_eq!((fault.code, &*fault.subject), (FaultCode::Expired, "9"), "{fault}");
            }
        }
        add(&mut owner, "10.1.1.7", 9).unwrap();
    });
}

#[test]
fn a_peer_does_not_learn_the_followers_of_anothers_address() {
    isolated(|host| {
        let (_, setup, broker) = start(host);
        let _worker = greeted(&setup);
        let mut root = broker.peer();
        let held = AddAddress {
            addresses: one_address("10.1.1.8"),
            lease: Some(600),
            epoch: 7,
            ..AddAddress::default()
        };
        assert_eq!(root.request(&held).unwrap().0.results.len(), 2, "the address and its follower");
        for mut peer in [Peer::of_user(RIVAL, RIVAL), Peer::of_user(1004, GROUP)] {
            every_request(&mut peer, "10.1.1.8", LAST);
            let fault = peer.remove_address("10.1.1.9").unwrap_err();
            assert_eq!(fault.code, FaultCode::NotFound, "{fault}");
            assert!(!fault.to_string().contains("10.1.1.8"), "{fault}");
        }
        assert_eq!(renew(&mut root, "10.1.1.8", 7).len(), 2);
        assert_eq!(root.remove_address("10.1.1.9").unwrap_err().code, FaultCode::Expired);
        let own = RemoveAddress { addresses: one_address("10.1.1.9"), epoch: 7 };
        let refused = root.request(&own).unwrap().0.results.into_vec();
        assert!(
            matches!(&refused[..], [Outcome::Fault(fault)] if fault.code == FaultCode::Denied),
            "{refused:?}"
        );
    });
}

#[test]
fn a_removal_by_root_does_not_end_a_lease_that_another_peer_gets_meanwhile() {
    isolated(|host| {
        let (_, setup, broker) = start(host);
        let _worker = greeted(&setup);
        let (mut owner, mut rival, mut root) =
            (Peer::of_user(OWNER, OWNER), Peer::of_user(RIVAL, RIVAL), broker.peer());
        let mut watcher = Peer::of_user(OWNER, OWNER);
        watcher.subscribe(false);
        add(&mut owner, "10.1.1.7", 7).unwrap();
        root.send(&RemoveAddress { addresses: one_address("10.1.1.7"), epoch: 9 });
        watcher.await_event(EventCode::AddressLeaving);
        // On a slow machine, the notice may have ended and root's request have removed it.
        let release = RemoveAddress { addresses: one_address("10.1.1.7"), epoch: 7 };
        owner.request(&release).unwrap();
        assert_eq!(add(&mut rival, "10.1.1.7", 8).unwrap_err().code, FaultCode::Expired);
        add(&mut rival, "10.1.1.7", 9).unwrap();
        let removed = root.receive().unwrap().reply::<RemoveAddress>().unwrap().0;
        // Verified if the broker noticed the release before the rival's addition.
        assert!(matches!(&removed.results[..], [Outcome::Done(_)]), "{removed:?}");
        assert!(matches!(&renew(&mut rival, "10.1.1.7", 9)[..], [Outcome::Done(_)]));
        assert_eq!(add(&mut owner, "10.1.1.7", 9).unwrap_err().code, FaultCode::InUse);
    });
}

#[test]
fn the_epochs_of_every_holder_survive_a_takeover_in_any_number() {
    isolated(|host| {
        let (text, setup, mut broker) = start(host);
        let mut worker = greeted(&setup);
        let mut owner = Peer::of_user(OWNER, OWNER);
        add(&mut owner, "10.1.1.7", 7).unwrap();
        remove(&mut owner, "10.1.1.7", 7);
        let mut rival = Peer::of_user(RIVAL, RIVAL);
        // More than one batch of a takeover.
        for block in 0..5_u8 {
            let addresses = (0..=255).map(|last| std::net::IpAddr::from([10, 2, block, last]));
            let addresses: List<_, MAX_ADDRESSES> = List::truncated(addresses);
            let all = AddAddress { addresses: addresses.clone(), epoch: 5, ..AddAddress::default() };
            rival.request(&all).unwrap();
            rival.request(&RemoveAddress { addresses, epoch: 5 }).unwrap();
        }
        for _ in 0..2 {
            broker.replace(host, &text);
            worker = greeted(&setup);
        }
        let mut rival = Peer::of_user(RIVAL, RIVAL);
        for address in ["10.2.0.1", "10.2.2.130", "10.2.4.254"] {
            assert_eq!(add(&mut rival, address, 4).unwrap_err().code, FaultCode::Expired, "{address}");
            add(&mut worker.1, address, 4).unwrap();
        }
        assert_eq!(
            add(&mut Peer::of_user(OWNER, OWNER), "10.1.1.7", 6).unwrap_err().code,
            FaultCode::Expired
        );
        add(&mut rival, "10.1.1.7", 6).unwrap();
    });
}
