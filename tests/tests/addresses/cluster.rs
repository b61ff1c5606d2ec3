//! A cluster node: its `cluster` scope takes effect, and its interface may disappear and return.

use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use portreeve_protocol::address::{AddAddress, Announce};
use portreeve_protocol::{EventCode, List};
use portreeve_tests::broker::SOCKET;
use portreeve_tests::packet_capture::{Frame, PacketCapture, hex};
use portreeve_tests::peer::one_address;
use portreeve_tests::scripted_worker::WorkerSetup;
use portreeve_tests::{Broker, Peer, eventually, isolated, lan, sample};

/// A unicast ARP request from 10.1.1.7 to the host at 10.1.1.201, for that host's own address.
const UNICAST_REQUEST: &str = "02 00 00 00 00 02 02 00 00 00 00 01 08 06 \
    00 01 08 00 06 04 00 01 02 00 00 00 00 01 0a 01 01 07 00 00 00 00 00 00 0a 01 01 c9";
/// The same from 2001:db8::7 to 2001:db8::201: a unicast neighbour solicitation (RFC 4861) with the sender's address.
const UNICAST_SOLICITATION: &str = "02 00 00 00 00 02 02 00 00 00 00 01 86 dd \
    60 00 00 00 00 20 3a ff 20 01 0d b8 00 00 00 00 00 00 00 00 00 00 00 07 \
    20 01 0d b8 00 00 00 00 00 00 00 00 00 00 02 01 \
    87 00 SUM 00 00 00 00 20 01 0d b8 00 00 00 00 00 00 00 00 00 00 02 01 01 01 02 00 00 00 00 01";
const ONE_BY_ONE: &str = "cluster { arp_all_hosts = false }";
const AT_ONCE: Duration = Duration::from_secs(5);

/// Whether this host sent the frame, with the sender address 10.1.1.7 or 2001:db8::7.
fn ours(frame: &[u8]) -> bool {
    let address: Ipv6Addr = "2001:db8::7".parse().unwrap();
    frame.get(6..12) == Some(&lan::MAC_ADDRESS)
        && (frame.get(12..14) == Some(&[8, 6]) && frame.get(28..32) == Some(&[10, 1, 1, 7])
            || frame.get(12..14) == Some(&[0x86, 0xdd]) && frame.get(22..38) == Some(&address.octets()))
}

fn is_broadcast(frame: &Frame) -> bool {
    frame.bytes[0] & 1 == 1
}

/// Makes this host resolve the link-layer address of another host.
fn resolve(address: &str) {
    let at: SocketAddr = address.parse().unwrap();
    TcpStream::connect_timeout(&at, AT_ONCE).unwrap_err();
}

fn add(peer: &mut Peer, address: &str) {
    peer.add_address(address, |add| (add.announce, add.lease) = (true, Some(60))).unwrap();
}

#[test]
fn without_arp_all_hosts_only_known_neighbours_get_unicast_requests() {
    isolated(|host| {
        lan::create(&["far", "near"]);
        let broker = Broker::start(host, &sample::addresses(ONE_BY_ONE));
        let mut peer = broker.peer();
        resolve("10.1.1.201:9");
        resolve("[2001:db8::201]:9");
        for (address, expected) in [("10.1.1.7", UNICAST_REQUEST), ("2001:db8::7", UNICAST_SOLICITATION)] {
            let (mut far, mut near) = (PacketCapture::on("far"), PacketCapture::on("near"));
            add(&mut peer, address);
            let requests = far.collect(Duration::from_millis(1_200), ours, |_| false);
            assert!((1..=3).contains(&requests.len()), "{requests:?}");
            for frame in &requests {
                let sum = frame.bytes.get(56..58).map(|sum| format!("{:02x} {:02x}", sum[0], sum[1]));
                let expected = expected.replace("SUM", sum.as_deref().unwrap_or_default());
                assert_eq!(frame.bytes, hex(&expected), "{address}");
            }
            let others = near.collect(Duration::from_millis(10), ours, |_| false);
            assert!(others.is_empty(), "{others:?}");
            let known = lan::ip("-n far neigh show");
            let line = known.lines().find(|line| line.starts_with(&format!("{address} ")));
            assert!(line.is_some_and(|line| line.contains("02:00:00:00:00:01")), "{known}");
        }
    });
}

#[test]
fn an_unresponsive_neighbour_gets_three_requests_before_the_broadcast() {
    isolated(|host| {
        lan::create(&["far"]);
        let broker = Broker::start(host, &sample::addresses(ONE_BY_ONE));
        lan::ip("neigh flush dev eth1");
        lan::ip("neigh add 10.1.1.99 lladdr 02:00:00:00:00:63 dev eth1 nud permanent");
        lan::ip("neigh add 2001:db8::99 lladdr 02:00:00:00:00:63 dev eth1 nud permanent");
        let mut peer = broker.peer();
        for (address, broadcasts) in [("10.1.1.7", 2), ("2001:db8::7", 1)] {
            let mut wire = PacketCapture::on("far");
            add(&mut peer, address);
            let frames = wire.collect(AT_ONCE, ours, |frames| frames.len() == 3 + broadcasts);
            let (requests, all) = frames.split_at(3);
            assert!(requests.iter().all(|frame| frame.bytes[..6] == [2, 0, 0, 0, 0, 0x63]), "{frames:?}");
            assert!(all.len() == broadcasts && all.iter().all(is_broadcast), "{frames:?}");
            for pair in frames[..4].windows(2) {
                let pause = pair[1].at.duration_since(pair[0].at);
                // A quarter of a second, less the delay of the previous frame.
                assert!(pause >= Duration::from_millis(125), "{pause:?}");
            }
        }
    });
}

#[test]
fn an_unknown_gateway_or_no_known_neighbour_falls_back_to_broadcast() {
    isolated(|host| {
        lan::create(&["far"]);
        let broker = Broker::start(host, &sample::addresses(ONE_BY_ONE));
        let mut peer = broker.peer();
        lan::ip("neigh flush dev eth1");
        let mut wire = PacketCapture::on("far");
        add(&mut peer, "10.1.1.7");
        let frames = wire.collect(AT_ONCE, ours, |frames| frames.len() == 2);
        assert!(frames.len() == 2 && frames.iter().all(is_broadcast), "{frames:?}");
        peer.remove_address("10.1.1.7").unwrap();
        lan::ip("route add default via 10.1.1.254");
        resolve("10.1.1.201:9");
        // The broker reads the tables of the kernel at most once a second.
        std::thread::sleep(Duration::from_millis(1_100));
        let mut wire = PacketCapture::on("far");
        add(&mut peer, "10.1.1.7");
        let frames =
            wire.collect(AT_ONCE, ours, |frames| frames.iter().filter(|one| is_broadcast(one)).count() == 2);
        assert_eq!(frames[0].bytes, hex(UNICAST_REQUEST));
    });
}

/// Whether an announcement without arp_all_hosts also goes to all hosts.
fn goes_to_all_hosts(peer: &mut Peer, address: &str) -> bool {
    let mut wire = PacketCapture::on("far");
    add(peer, address);
    // The first unicast request, and what follows: the broadcast comes when the hosts have answered.
    let first = wire.collect(AT_ONCE, ours, |frames| !frames.is_empty());
    let more = wire.collect(Duration::from_millis(1_500), ours, |frames| frames.iter().any(is_broadcast));
    assert!(!first.is_empty(), "no announcement");
    assert!(peer.remove_address(address).unwrap().verified);
    first.iter().chain(&more).any(is_broadcast)
}

#[test]
fn every_kind_of_gateway_that_is_not_a_known_neighbour_leads_to_an_announcement_to_all_hosts() {
    isolated(|host| {
        lan::create(&["far", "near"]);
        let broker = Broker::start(host, &sample::addresses(ONE_BY_ONE));
        let mut peer = broker.peer();
        let known = ["10.1.1.201", "10.1.1.202", "2001:db8::201"];
        let steps = [
            (
                "several known gateways",
                "route add 10.77.0.0/16 nexthop via 10.1.1.201 nexthop via 10.1.1.202",
                false,
            ),
            (
                "one of several is unknown",
                "route replace 10.77.0.0/16 nexthop via 10.1.1.201 nexthop via 10.1.1.250",
                true,
            ),
            (
                "a gateway of another family",
                "route replace 10.77.0.0/16 via inet6 2001:db8::201 dev eth1",
                true,
            ),
            ("a known gateway", "route replace 10.77.0.0/16 via 10.1.1.202", false),
            ("a nexthop object", "nexthop add id 1 via 10.1.1.250 dev eth1", false),
            ("its use", "route replace 10.77.0.0/16 nhid 1", true),
            ("a known one", "nexthop replace id 1 via 10.1.1.201 dev eth1", false),
            ("another one", "nexthop add id 2 via 10.1.1.202 dev eth1", false),
            ("a group of both", "nexthop add id 10 group 1/2", false),
            ("its use", "route replace 10.77.0.0/16 nhid 10", false),
        ];
        let mut check = |what: &str, to_all: bool| {
            // The kernel may have forgotten a neighbour.
            known.iter().for_each(|host| resolve(&SocketAddr::new(host.parse().unwrap(), 9).to_string()));
            // The broker lists the gateways at most once a second.
            std::thread::sleep(Duration::from_millis(1_100));
            assert_eq!(goes_to_all_hosts(&mut peer, "10.1.1.7"), to_all, "{what}");
        };
        for (what, words, to_all) in steps {
            lan::ip(words);
            check(what, to_all);
        }
        // Now the kernel tells only the number of the group.
        std::fs::write("/proc/sys/net/ipv4/nexthop_compat_mode", "0").unwrap();
        check("a group that the kernel does not tell", true);
    });
}

/// The other peers of a host with as many routes as the Internet has.
#[test]
#[ignore = "a measurement"]
fn latency_of_other_peers_during_announcements_with_400_000_routes() {
    isolated(|host| {
        lan::create(&["far"]);
        let routes: String = (0..400_000_u32)
            .map(|number| {
                let [_, first, second, third] = number.to_be_bytes();
                format!("route add {}.{second}.{third}.0/24 via 10.1.1.201\n", 20 + first)
            })
            .collect();
        let batch = host.file("routes", &routes);
        lan::ip(&format!("-batch {}", batch.display()));
        let broker = Broker::start(host, &sample::addresses(ONE_BY_ONE));
        let (mut peer, mut other) = (broker.peer(), broker.peer());
        resolve("10.1.1.201:9");
        add(&mut peer, "10.1.1.7");
        let mut latencies = |announcing: bool| {
            let mut all = Vec::new();
            for number in 0..3_000 {
                if announcing && number % 10 == 0 {
                    peer.request(&Announce { addresses: one_address("10.1.1.7"), epoch: 0 }).unwrap();
                }
                let begin = std::time::Instant::now();
                other.ping();
                all.push(begin.elapsed());
                std::thread::sleep(Duration::from_millis(1));
            }
            all.sort_unstable();
            (all[all.len() / 2], all[all.len() * 99 / 100], all[all.len() - 1])
        };
        println!("idle: median, 99 % and worst: {:?}", latencies(false));
        println!("during announcements: {:?}", latencies(true));
    });
}

#[test]
fn a_recreated_interface_regains_its_addresses_under_its_new_index() {
    isolated(|host| {
        lan::create(&["far"]);
        let broker = Broker::start(host, &sample::addresses(""));
        let (mut owner, mut watcher) = (broker.peer(), broker.peer());
        watcher.subscribe(false);
        let both = ["10.1.1.7", "2001:db8::7"];
        both.iter().for_each(|address| add(&mut owner, address));
        lan::ip("link del eth1");
        let removed = watcher.await_event(EventCode::LinkGone);
        lan::ip("-n switch link add port1 type veth peer name far1");
        lan::ip("-n switch link set far1 netns 1");
        lan::ip("-n switch link set port1 master br0 up");
        lan::ip("link set far1 name eth1 address 02:00:00:00:00:01");
        let mut wire = PacketCapture::on("far");
        lan::ip("link set eth1 up");
        for _ in both {
            let back = watcher.await_event(EventCode::AddressRestored);
            assert_ne!(back.index, removed.index);
            assert_eq!(&*back.interface, "eth1");
        }
        for address in both {
            eventually("the restored address", || lan::show_address(address));
            owner.renew_address(address).unwrap();
        }
        assert!(
            !wire.collect(AT_ONCE, ours, |frames| !frames.is_empty()).is_empty(),
            "the restored addresses must be announced"
        );
    });
}

#[test]
fn many_ipv6_addresses_with_different_low_bits_cause_one_warning() {
    isolated(|host| {
        lan::create(&["far"]);
        let broker = Broker::start(host, &sample::addresses(""));
        let mut peer = broker.peer();
        let mut fill = |number: &dyn Fn(u16) -> [u16; 2]| {
            let all: Vec<IpAddr> = (1..=1_001)
                .map(|one| {
                    let [high, low] = number(one);
                    Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 1, high, 0, low).into()
                })
                .collect();
            for some in all.chunks(256) {
                let addresses = List::new(some.to_vec()).unwrap();
                let request = AddAddress { addresses, lease: Some(120), ..AddAddress::default() };
                peer.request(&request).unwrap();
            }
        };
        fill(&|one| [one, 1]);
        let warned = || broker.log.lines().iter().filter(|line| line.contains("low 24 bits")).count();
        assert_eq!(warned(), 0);
        fill(&|one| [0, one]);
        broker.log.wait_for(&["low 24 bits", "groups=1001"]);
        assert_eq!(warned(), 1);
    });
}

#[test]
fn a_cluster_node_serves_from_start_through_address_moves() {
    isolated(|host| {
        lan::create(&["far"]);
        let setup = WorkerSetup::new(host, "chroot");
        let chroot = setup.chroot.path.display();
        let node = format!(
            r#"
            security {{
                user = nobody
                group = nogroup
                chroot = "{chroot}"
                capabilities = "cap_net_admin,cap_net_bind_service,cap_net_raw+ep"
            }}
            cluster {{
                nodename = mx1
                topology "10.1.1.0/24" {{ interface = eth1 cidrmask = 32 }}
                topology "2001:db8::/64" {{ interface = eth1 }}
                arp_all_hosts = true
                if_check_interval = 10
                if_down_limit = 4
            }}
            binding "out-a" {{ bind_address = 10.1.1.7 enable_duravip = true duravip_preference = mx1 }}
            ESMTP_Listener {{
                listen_backlog = 200
                Listen "10.1.1.1:25" {{}}
                Listen "10.1.1.8:25" {{ duravip_follow = "out-a" }}
            }}
            broker {{
                socket = "{SOCKET}"
                lease = 10
                max_addresses = 512
                permit "cluster" {{ address = ( "10.1.1.0/24" "2001:db8::/64" ) }}
                peer root {{ allow = ( status address subscribe ) permit = ( cluster ) }}
            }}
            worker {{ command = ( /run/host/bin/scripted_worker ) }}"#
        );
        let mut broker = Broker::start(host, &node);
        let before = lan::addresses();
        let (_scripted, mut worker) = setup.accept();
        worker.hello();
        worker.subscribe(false);
        let mut coordinator = broker.peer();
        for epoch in 1..3 {
            let addresses = List::truncated(["10.1.1.7".parse().unwrap()]);
            let request = AddAddress {
                addresses,
                epoch,
                lease: None,
                probes: 1,
                announce: true,
                ..AddAddress::default()
            };
            assert_eq!(coordinator.request(&request).unwrap().0.results.len(), 2);
            let started = worker.await_event(EventCode::ListenerStarted);
            assert_eq!(&*started.detail, "10.1.1.8:25");
            let (_, socket) = worker.listen("10.1.1.8:25").unwrap();
            let at = "10.1.1.8:25".parse().unwrap();
            let client = lan::in_host("far", || TcpStream::connect_timeout(&at, AT_ONCE).unwrap());
            let (_served, from) = TcpListener::from(socket).accept().unwrap();
            assert_eq!(from, client.local_addr().unwrap());
            let addresses = List::truncated(["10.1.1.7".parse().unwrap()]);
            let remove = portreeve_protocol::address::RemoveAddress { addresses, epoch };
            assert_eq!(coordinator.request(&remove).unwrap().0.results.len(), 2);
            worker.await_event(EventCode::ListenerStopping);
            assert_eq!(lan::addresses(), before);
        }
        assert!(broker.terminate().success());
    });
}
