//! Dropping a lease removes its address, inside and outside of the runtime.

#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use std::net::IpAddr;
use std::sync::mpsc;
use std::time::Duration;

use portreeve::{AddressOptions, Channel, Client, Error, Lease};
use portreeve_protocol::address::{
    AddAddress, Lease as Granted, Leases, Removal as Removed, Removals, RemoveAddress, RenewAddress,
};
use portreeve_protocol::event::{Subscribe, Subscribed};
use portreeve_protocol::message::{Outcome, Ping, Pong};
use portreeve_protocol::{List, Text};
use support::{Broker, broker, broker_at};
use tokio::runtime::{Builder, Runtime};

const ADDRESS: &str = "192.0.2.1";

/// A removal as the broker received it: the addresses and the epoch.
type Removal = (Vec<IpAddr>, u64);

fn removal() -> Removal {
    (vec![ADDRESS.parse().unwrap()], 7)
}

/// Grants every address, until the client hangs up or has sent `requests`; returns the removals.
fn serve(broker: &mut Broker, requests: usize) -> Vec<Removal> {
    let mut removals = Vec::new();
    for _ in 0..requests {
        let Some(request) = broker.next() else { break };
        let grant = |addresses: List<IpAddr, 256>| {
            let outcome = |address: &IpAddr| {
                Outcome::Done(Granted {
                    address: *address,
                    interface: Text::truncated("eth0"),
                    prefix: 24,
                    remaining_ms: 60_000,
                    epoch: 7,
                    follows: None,
                })
            };
            Leases { results: List::truncated(addresses.iter().map(outcome)), ..Leases::default() }
        };
        if request.is::<Subscribe>() {
            broker.reply::<Subscribe>(&request, &Subscribed::default(), &[]);
        } else if request.is::<AddAddress>() {
            broker.reply::<AddAddress>(&request, &grant(request.read::<AddAddress>().addresses), &[]);
        } else if request.is::<RenewAddress>() {
            broker.reply::<RenewAddress>(&request, &grant(request.read::<RenewAddress>().addresses), &[]);
        } else if request.is::<Ping>() {
            broker.reply::<Ping>(&request, &Pong {}, &[]);
        } else {
            let remove = request.read::<RemoveAddress>();
            // Only a numbered request can be refused without the end of the session.
            assert_ne!(request.header.request, 0);
            let addresses = remove.addresses.into_vec();
            let removed = |address: &IpAddr| Outcome::Done(Removed { address: *address, verified: true });
            let results = List::truncated(addresses.iter().map(removed));
            broker.reply::<RemoveAddress>(&request, &Removals { results }, &[]);
            removals.push((addresses, remove.epoch));
        }
    }
    removals
}

fn runtime() -> Runtime {
    Builder::new_current_thread().enable_all().build().unwrap()
}

async fn hold(channel: Channel) -> Lease {
    let client = Client::open(channel, "test").await.unwrap();
    client.hold_address(ADDRESS.parse().unwrap(), &AddressOptions::new().epoch(7)).await.unwrap()
}

#[test]
fn a_lease_dropped_outside_of_the_runtime_removes_its_address() {
    let (channel, thread) = broker(|broker| serve(broker, usize::MAX));
    let runtime = runtime();
    let lease = runtime.block_on(hold(channel));
    drop(lease);
    drop(runtime);
    assert_eq!(thread.join().unwrap(), [removal()]);
}

#[test]
fn a_lease_dropped_after_the_runtime_has_ended_removes_its_address() {
    let (channel, thread) = broker(|broker| serve(broker, usize::MAX));
    let runtime = runtime();
    let lease = runtime.block_on(hold(channel));
    drop(runtime);
    drop(lease);
    assert_eq!(thread.join().unwrap(), [removal()]);
}

#[test]
fn a_lease_dropped_by_the_last_step_of_the_runtime_removes_its_address() {
    let (channel, thread) = broker(|broker| serve(broker, usize::MAX));
    runtime().block_on(async { drop(hold(channel).await) });
    assert_eq!(thread.join().unwrap(), [removal()]);
}

#[test]
fn a_lease_that_may_expire_or_was_removed_sends_no_other_removal() {
    let (channel, thread) = broker(|broker| serve(broker, usize::MAX));
    runtime().block_on(async { hold(channel).await.let_expire() });
    assert_eq!(thread.join().unwrap(), []);
}

#[test]
fn the_removal_of_a_lease_dropped_without_a_broker_is_sent_to_the_next_one() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("broker.sock");
    // The subscription and the address; then this broker hangs up.
    let first = broker_at(&socket, |broker| serve(broker, 2));
    runtime().block_on(async {
        let channel = Channel::connect(&socket).unwrap().reconnect_through(&socket);
        let client = Client::open(channel, "test").await.unwrap();
        let options = AddressOptions::new().epoch(7);
        let lease = client.hold_address(ADDRESS.parse().unwrap(), &options).await.unwrap();
        assert_eq!(first.join().unwrap(), []);
        std::fs::remove_file(&socket).unwrap();
        // The client has noticed the end of the broker when this ping waits for the next one.
        let ping = tokio::time::timeout(Duration::from_millis(100), client.ping());
        assert!(ping.await.is_err());
        drop(lease);
        let next = broker_at(&socket, |broker| serve(broker, usize::MAX));
        client.ping().await.unwrap();
        drop(client);
        tokio::task::spawn_blocking(|| assert_eq!(next.join().unwrap(), [removal()])).await.unwrap();
    });
}

#[test]
fn the_owner_of_a_lease_learns_at_once_that_the_session_has_ended_for_good() {
    // The subscription and the address; then this broker closes the channel.
    let (channel, thread) = broker(|broker| serve(broker, 2));
    let (sender, lost) = mpsc::channel();
    // In a thread of its own, because a program that never yields would hang this test too.
    std::thread::spawn(move || {
        let why = runtime().block_on(async { hold(channel).await.lost().await });
        sender.send(why).unwrap();
    });
    let why = lost.recv_timeout(Duration::from_secs(10)).unwrap();
    assert!(matches!(why, Error::Closed), "{why:?}");
    assert_eq!(thread.join().unwrap(), []);
}
