//! Leases that a program drops all at once: every address is removed, however few requests its quota lets it have in flight.

use std::net::{IpAddr, Ipv4Addr};

use portreeve::{AddressOptions, Channel, Client};
use portreeve_protocol::address::ListAddresses;
use portreeve_tests::broker::SOCKET;
use portreeve_tests::{Broker, eventually, isolated, lan, sample};

#[test]
fn leases_dropped_at_once_are_all_removed_beyond_the_quota_of_requests_in_flight() {
    isolated(|host| {
        lan::create(&["far"]);
        let broker = Broker::start(host, &sample::addresses("broker { max_in_flight = 3 }"));
        let left = || {
            let (page, _) = broker.peer().request(&ListAddresses { after: None }).unwrap();
            page.addresses.len()
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        for in_runtime in [true, false] {
            let mut leases = Vec::new();
            let client = runtime.block_on(async {
                let client = Client::open(Channel::connect(SOCKET).unwrap(), "holder").await.unwrap();
                for last in 10..110 {
                    let address = IpAddr::from(Ipv4Addr::new(10, 1, 1, last));
                    // Two epochs: a request has addresses of one.
                    let options = AddressOptions::new().lease(86_400).probes(0).epoch(u64::from(last % 2));
                    leases.push(client.hold_address(address, &options).await.unwrap());
                }
                client
            });
            assert!(left() > 60);
            if in_runtime {
                runtime.block_on(async {
                    drop(leases);
                    // Other requests do not wait for the removals.
                    client.ping().await.unwrap();
                    drop(client);
                    tokio::task::spawn_blocking(|| ()).await.unwrap();
                    let all = eventually_async(&left).await;
                    assert!(all);
                });
            } else {
                // Outside of the runtime nobody waits for replies.
                drop(leases);
                drop(client);
            }
            eventually("the removals", || (left() == 0).then_some(()));
        }
    });
}

/// Lets the tasks of the runtime run until nothing is left.
async fn eventually_async(left: &impl Fn() -> usize) -> bool {
    let all = async {
        while left() > 0 {
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(portreeve_tests::wait::TIMEOUT, all).await.is_ok()
}
