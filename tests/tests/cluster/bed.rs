//! The test bed of the cluster itself: its networks, what it records, and the faults of networks and disks.

use std::time::{Duration, Instant};

use portreeve_protocol::address::AddAddress;
use portreeve_tests::cluster::fence::Kernel;
use portreeve_tests::cluster::wire::Wire;
use portreeve_tests::cluster::{Cluster, NODES, Settings, addresses, mac_of};
use portreeve_tests::neighbour::Neighbour;
use portreeve_tests::peer::one_address;
use portreeve_tests::{eventually, isolated_cluster};

#[test]
fn brokers_on_three_hosts_answer_on_one_wire_until_their_leases_end() {
    isolated_cluster(|host| {
        let begin = Instant::now();
        let cluster = Cluster::prepare(host, Settings::default());
        println!("ready after {:?}", begin.elapsed());
        let origin = Instant::now();
        let wire = Wire::watch(Neighbour::number(NODES.len()), addresses(), origin);
        for (node, address) in [(0, "10.1.1.11"), (1, "10.1.1.12"), (2, "2001:db8::11"), (1, "10.1.1.14")] {
            let mut peer = cluster.hosts[node].peer();
            let addresses = one_address(address);
            let add = AddAddress { addresses, lease: Some(3), ..AddAddress::default() };
            peer.request(&add).unwrap();
            let rest = Kernel::of(NODES[node]).longest().unwrap().unwrap();
            assert!(rest > Duration::from_secs(2) && rest <= Duration::from_secs(3), "{rest:?}");
            let address: std::net::IpAddr = address.parse().unwrap();
            eventually("an answer", || {
                let answers = wire.answers();
                let found = answers.iter().find(|answer| answer.address == address)?;
                assert_eq!(found.mac, mac_of(node));
                Some(())
            });
        }
        eventually("the follower", || {
            let answers = wire.answers();
            answers.iter().find(|answer| answer.address == addresses()[5]).map(|_| ())
        });
        eventually("the end of the leases", || {
            Kernel::of(NODES[2]).longest().unwrap().is_none().then_some(())
        });
        println!("questions paused for {:?} at most", wire.take_longest_pause());
    });
}
