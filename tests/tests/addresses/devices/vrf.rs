//! VRFs: listeners at an address on a port of a VRF serve the VRF, and the same address elsewhere does not matter. Without VRFs
//! in the kernel, a request for an address must name the interface that does not exist.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd as _, OwnedFd};
use std::time::Duration;

use portreeve_protocol::FaultCode;
use portreeve_protocol::message::{Listen, ListenOptions};
use portreeve_protocol::{Endpoint, Text};
use portreeve_tests::scripted_worker::WorkerSetup;
use portreeve_tests::wait::TIMEOUT;
use portreeve_tests::{Broker, Host, Peer, broker, eventually, isolated, lan, sample};
use rustix::net::sockopt::socket_cookie;
use rustix::process::Signal;

use super::{
    ADDRESS, add_and_see_announced, connect_from_far, create, is_unknown, listen, remove_and_see_reset,
};

const ADDRESS6: &str = "2001:db8:8::7";

/// Creates the VRF `red` with the port eth1. Returns false if this kernel has none.
fn create_red() -> bool {
    let exists = create("vrf", "red", "table 100");
    if exists {
        lan::ip("link set red up");
        lan::ip("link set eth1 master red");
        lan::ip("addr add 10.8.0.1/24 dev eth1");
        lan::ip("addr add 2001:db8:8::1/64 dev eth1 nodad");
    }
    lan::ip("-n far addr add 10.8.0.201/24 dev eth1");
    lan::ip("-n far addr add 2001:db8:8::201/64 dev eth1 nodad");
    exists
}

/// Adds the host's own IPv6 address again: the kernel removes it when the interface changes its VRF.
fn add_host_address() {
    if lan::show_address("2001:db8:8::1").is_none() {
        lan::ip("addr add 2001:db8:8::1/64 dev eth1 nodad");
    }
}

/// A configuration that assigns the addresses to an interface.
fn config(exists: bool, more: &str) -> String {
    let interface = if exists { "eth1" } else { "red" };
    sample::addresses(&format!(
        r#"
        cluster {{
            topology "10.8.0.0/24" {{ interface = {interface} }}
            topology "2001:db8:8::/64" {{ interface = {interface} }}
        }}
        broker {{
            permit "vrf" {{ address = ( "2001:db8:8::/64" ) listen = ( "*:53/udp" ) interface = ( dummy0 ) }}
            peer root {{ permit = ( any vrf ) }}
        }}
        {more}"#
    ))
}

/// A configuration with a worker.
fn worker_config(setup: &WorkerSetup, exists: bool, listeners: &str) -> String {
    let rest = format!("{} worker {{ stable_after = 0 }}", config(exists, listeners));
    sample::worker(&setup.chroot, "( /run/host/bin/scripted_worker )", &rest)
}

/// Floating listeners at both addresses.
fn floating_listeners() -> String {
    format!(
        r#"
        ESMTP_Listener {{
            Listen "{ADDRESS}:25" {{ enable_duravip = true }}
            Listen "[{ADDRESS6}]:25" {{ enable_duravip = true }}
        }}"#
    )
}

/// Starts a broker and a worker with these listeners.
fn start_with_worker(host: &Host, exists: bool) -> (WorkerSetup, Broker) {
    let setup = WorkerSetup::new(host, "chroot");
    let broker = Broker::start(host, &worker_config(&setup, exists, &floating_listeners()));
    (setup, broker)
}

fn endpoints() -> [(&'static str, String); 2] {
    [(ADDRESS, format!("{ADDRESS}:25")), (ADDRESS6, format!("[{ADDRESS6}]:25"))]
}

fn try_connect(endpoint: &str) -> std::io::Result<TcpStream> {
    let at: SocketAddr = endpoint.parse().unwrap();
    let client = lan::in_host("far", || TcpStream::connect_timeout(&at, Duration::from_secs(1)))?;
    client.set_read_timeout(Some(TIMEOUT))?;
    Ok(client)
}

/// Connects from the other host, and exchanges a byte with the server.
fn connect_and_serve(endpoint: &str, listener: &TcpListener) -> TcpStream {
    let mut client = eventually("a connection", || try_connect(endpoint).ok());
    let (mut served, from) = listener.accept().unwrap();
    assert_eq!(from, client.local_addr().unwrap());
    served.write_all(b"x").unwrap();
    let mut byte = [0];
    client.read_exact(&mut byte).unwrap();
    assert_eq!(&byte, b"x");
    std::mem::forget(served);
    client
}

fn listen_with(peer: &mut Peer, endpoint: &str, options: ListenOptions) -> TcpListener {
    let endpoint: Endpoint = endpoint.parse().unwrap();
    let (_, sockets) = peer.request(&Listen::new(endpoint, options)).unwrap();
    listener(sockets.into_iter().next().unwrap())
}

fn listener(socket: OwnedFd) -> TcpListener {
    let listener = TcpListener::from(socket);
    listener.set_nonblocking(false).unwrap();
    listener
}

#[test]
fn a_floating_listener_serves_the_vrf_of_its_address_and_removal_resets_its_connections() {
    isolated(|host| {
        lan::create(&["far"]);
        let exists = create_red();
        let (setup, broker) = start_with_worker(host, exists);
        let mut peer = broker.peer();
        if !exists {
            is_unknown(&mut peer, "red");
            return;
        }
        let (_scripted, mut worker) = setup.accept();
        worker.hello();
        let early = worker.listen(&format!("{ADDRESS}:25")).unwrap_err();
        assert_eq!(early.code, FaultCode::NotLocal, "{early}");
        let before = lan::addresses();
        for (address, endpoint) in endpoints() {
            let mut copies = Vec::new();
            for _ in 0..2 {
                add_and_see_announced_at(&mut peer, address);
                // A client that connects before the worker requests the socket waits in the queue.
                let mut early = try_connect(&endpoint).unwrap();
                let listener = listener(worker.listen(&endpoint).unwrap().1);
                let _served = listener.accept().unwrap();
                let mut client = connect_and_serve(&endpoint, &listener);
                copies.push(listener);
                assert!(peer.remove_address(address).unwrap().verified);
                for client in [&mut early, &mut client] {
                    assert_eq!(client.read(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionReset);
                }
                assert_eq!(lan::addresses(), before);
            }
        }
    });
}

fn add_and_see_announced_at(peer: &mut Peer, address: &str) {
    if address == ADDRESS {
        add_and_see_announced(peer, "eth1", lan::MAC_ADDRESS);
    } else {
        peer.add_address(address, |add| add.lease = Some(60)).unwrap();
    }
}

#[test]
fn listeners_that_a_peer_requests_serve_the_vrf_unless_they_name_another_device() {
    isolated(|host| {
        lan::create(&["far"]);
        let exists = create_red();
        let broker = Broker::start(host, &config(exists, ""));
        let mut peer = broker.peer();
        if !exists {
            is_unknown(&mut peer, "red");
            return;
        }
        let before = lan::addresses();
        let options = ListenOptions { free_bind: true, ..ListenOptions::default() };
        let early = listen_with(&mut peer, &format!("{ADDRESS}:2727"), options);
        peer.add_address(ADDRESS, |add| add.lease = Some(60)).unwrap();
        drop(connect_and_serve(&format!("{ADDRESS}:2727"), &early));
        let tcp = listen(&mut peer);
        let (_, udp) = peer.listen(&format!("{ADDRESS}:53/udp")).unwrap();
        let udp = UdpSocket::from(udp);
        udp.set_nonblocking(false).unwrap();
        udp.set_read_timeout(Some(TIMEOUT)).unwrap();
        lan::in_host("far", || {
            let client = UdpSocket::bind("10.8.0.201:0").unwrap();
            client.set_read_timeout(Some(TIMEOUT)).unwrap();
            client.send_to(b"?", (ADDRESS, 53)).unwrap();
            let (_, from) = udp.recv_from(&mut [0]).unwrap();
            udp.send_to(b"!", from).unwrap();
            client.recv_from(&mut [0]).unwrap();
        });
        let options = ListenOptions { device: Text::truncated("eth1"), ..ListenOptions::default() };
        let at_port = listen_with(&mut peer, &format!("{ADDRESS}:2626"), options);
        drop(connect_and_serve(&format!("{ADDRESS}:2626"), &at_port));
        let connected = connect_from_far().unwrap();
        remove_and_see_reset(&mut peer, tcp.accept().unwrap().0, &before);
        drop(connected);
    });
}

#[test]
fn the_same_address_outside_the_vrf_is_no_obstacle_and_within_it_is_refused() {
    isolated(|host| {
        lan::create(&["far"]);
        let exists = create_red();
        let broker = Broker::start(host, &config(exists, ""));
        let mut peer = broker.peer();
        if !exists {
            is_unknown(&mut peer, "red");
            return;
        }
        assert!(create("vrf", "blue", "table 101") && create("dummy", "dummy0", ""));
        lan::ip("link set blue up");
        lan::ip("link set dummy0 up");
        let add = |peer: &mut Peer, address: &str| peer.add_address(address, |add| add.lease = Some(60));
        for (address, endpoint) in endpoints() {
            let prefix = if address == ADDRESS { 32 } else { 128 };
            let copy = format!("{address}/{prefix}");
            // Outside every VRF, in another VRF, and in this one.
            for master in ["nomaster", "master blue", "master red"] {
                lan::ip(&format!("link set dummy0 {master}"));
                lan::ip(&format!("addr add {copy} dev dummy0 nodad"));
                if master == "master red" {
                    let fault = add(&mut peer, address).unwrap_err();
                    assert_eq!(fault.code, FaultCode::InUse);
                    assert!(fault.message.contains(&format!(r#""dummy0" has {address} already"#)), "{fault}");
                } else {
                    add(&mut peer, address).unwrap();
                    let listener = listener(peer.listen(&endpoint).unwrap().1);
                    let mut client = connect_and_serve(&endpoint, &listener);
                    assert!(peer.remove_address(address).unwrap().verified, "{master}");
                    assert_eq!(client.read(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionReset);
                    assert!(lan::show_address(address).unwrap().contains("dummy0"));
                }
                lan::ip(&format!("addr del {copy} dev dummy0"));
            }
            // A copy in the VRF prevents that the removal is verified.
            add(&mut peer, address).unwrap();
            lan::ip(&format!("addr add {copy} dev dummy0 nodad"));
            assert!(!peer.remove_address(address).unwrap().verified);
            lan::ip(&format!("addr del {copy} dev dummy0"));
        }
        // The kernel finds no IPv4 address in a VRF that is down.
        lan::ip("link set red down");
        lan::ip(&format!("addr add {ADDRESS}/32 dev dummy0"));
        assert_eq!(add(&mut peer, ADDRESS).unwrap_err().code, FaultCode::InUse);
        lan::ip(&format!("addr del {ADDRESS}/32 dev dummy0"));
        add(&mut peer, ADDRESS).unwrap();
        assert!(peer.remove_address(ADDRESS).unwrap().verified);
        lan::ip("link set red up");
        lan::ip("route add local 10.8.0.64/26 dev red table 100");
        let fault = add(&mut peer, "10.8.0.77").unwrap_err();
        assert_eq!((fault.code, &*fault.subject), (FaultCode::InUse, "a local route"), "{fault}");
    });
}

#[test]
fn a_connection_of_the_same_address_outside_the_vrf_survives_the_removal() {
    isolated(|host| {
        lan::create(&["far"]);
        let exists = create_red();
        let broker = Broker::start(host, &config(exists, ""));
        let mut peer = broker.peer();
        if !exists {
            is_unknown(&mut peer, "red");
            return;
        }
        lan::ip(&format!("addr add {ADDRESS}/32 dev lo"));
        let server = TcpListener::bind((ADDRESS, 2600)).unwrap();
        let mut client = TcpStream::connect((ADDRESS, 2600)).unwrap();
        let (mut served, _) = server.accept().unwrap();
        peer.add_address(ADDRESS, |add| add.lease = Some(60)).unwrap();
        assert!(peer.remove_address(ADDRESS).unwrap().verified);
        served.write_all(b"x").unwrap();
        client.read_exact(&mut [0]).unwrap();
    });
}

#[test]
fn listeners_follow_an_interface_that_changes_its_vrf() {
    isolated(|host| {
        lan::create(&["far"]);
        let exists = create_red();
        let (setup, broker) = start_with_worker(host, exists);
        let mut peer = broker.peer();
        if !exists {
            is_unknown(&mut peer, "red");
            return;
        }
        assert!(create("vrf", "blue", "table 101"));
        lan::ip("link set blue up");
        let (_scripted, mut worker) = setup.accept();
        worker.hello();
        for (address, _) in endpoints() {
            add_and_see_announced_at(&mut peer, address);
        }
        let listeners =
            endpoints().map(|(_, endpoint)| (listener(worker.listen(&endpoint).unwrap().1), endpoint));
        for master in ["master red", "master blue", "nomaster", "master red"] {
            lan::ip(&format!("link set eth1 {master}"));
            add_host_address();
            for (listener, endpoint) in &listeners {
                drop(connect_and_serve(endpoint, listener));
                // The worker's socket stays the same.
                let again = worker.listen(endpoint).unwrap().1;
                assert_eq!(socket_cookie(again.as_fd()).unwrap(), socket_cookie(listener.as_fd()).unwrap());
            }
            for (address, _) in endpoints() {
                peer.renew_address(address).unwrap();
            }
        }
        assert!(
            !broker.log.lines().iter().any(|line| line.contains("another program removed it")),
            "the kernel removed the IPv6 address because of the change"
        );
        lan::ip("link del red");
        add_host_address();
        for (listener, endpoint) in &listeners {
            drop(connect_and_serve(endpoint, listener));
        }
        for (address, _) in endpoints() {
            assert!(peer.remove_address(address).unwrap().verified);
            assert!(lan::show_address(address).is_none());
        }
    });
}

#[test]
fn listeners_follow_an_address_that_moves_into_or_out_of_a_vrf() {
    isolated(|host| {
        lan::create(&["far"]);
        let exists = create_red();
        let broker = Broker::start(host, &config(exists, ""));
        let mut peer = broker.peer();
        if !exists {
            is_unknown(&mut peer, "red");
            return;
        }
        assert!(create("dummy", "dummy0", ""));
        lan::ip("link set dummy0 up");
        for (address, endpoint) in endpoints() {
            peer.add_address(address, |add| add.lease = Some(60)).unwrap();
            let listener = listener(peer.listen(&endpoint).unwrap().1);
            drop(connect_and_serve(&endpoint, &listener));
            peer.move_address(address, "dummy0").unwrap();
            let client = TcpStream::connect(&endpoint).unwrap();
            assert_eq!(listener.accept().unwrap().1, client.local_addr().unwrap());
            peer.move_address(address, "eth1").unwrap();
            drop(connect_and_serve(&endpoint, &listener));
            assert!(peer.remove_address(address).unwrap().verified);
        }
    });
}

#[test]
fn a_reload_opens_a_floating_listener_in_the_vrf_of_its_address() {
    isolated(|host| {
        lan::create(&["far"]);
        let exists = create_red();
        let setup = WorkerSetup::new(host, "chroot");
        let broker = Broker::start(host, &worker_config(&setup, exists, ""));
        let mut peer = broker.peer();
        if !exists {
            is_unknown(&mut peer, "red");
            return;
        }
        let (_scripted, mut worker) = setup.accept();
        worker.hello();
        for (address, _) in endpoints() {
            peer.add_address(address, |add| add.lease = Some(60)).unwrap();
        }
        broker::config(host, &worker_config(&setup, exists, &floating_listeners()));
        broker.signal(Signal::HUP);
        for (_, endpoint) in endpoints() {
            broker.log.wait_for(&[&endpoint, "connections wait in its queue"]);
            drop(connect_and_serve(&endpoint, &listener(worker.listen(&endpoint).unwrap().1)));
        }
    });
}

#[test]
fn listeners_follow_their_interface_after_a_takeover_too() {
    isolated(|host| {
        lan::create(&["far"]);
        let exists = create_red();
        let text = config(exists, "");
        let mut broker = Broker::start(host, &text);
        let mut peer = broker.peer();
        if !exists {
            is_unknown(&mut peer, "red");
            return;
        }
        peer.add_address(ADDRESS, |add| add.lease = Some(600)).unwrap();
        let endpoint = format!("{ADDRESS}:25");
        let before = listener(peer.listen(&endpoint).unwrap().1);
        // The successor has to follow this change if the predecessor has not.
        broker.suspend();
        lan::ip("link set eth1 nomaster");
        broker.signal(Signal::CONT);
        broker.replace(host, &text);
        let mut peer = broker.peer();
        let after = listener(peer.listen(&endpoint).unwrap().1);
        assert_eq!(socket_cookie(after.as_fd()).unwrap(), socket_cookie(before.as_fd()).unwrap());
        for master in ["nomaster", "master red"] {
            lan::ip(&format!("link set eth1 {master}"));
            drop(connect_and_serve(&endpoint, &after));
        }
        assert!(peer.remove_address(ADDRESS).unwrap().verified);
    });
}

#[test]
fn a_host_address_outside_the_vrf_of_a_floating_address_does_not_prevent_the_start() {
    isolated(|host| {
        lan::create(&["far"]);
        let exists = create_red();
        lan::ip(&format!("addr add {ADDRESS}/24 dev lo"));
        if !exists {
            return; // without a VRF, it does
        }
        let (_setup, broker) = start_with_worker(host, exists);
        let mut peer = broker.peer();
        peer.add_address(ADDRESS, |add| add.lease = Some(60)).unwrap();
        assert!(peer.remove_address(ADDRESS).unwrap().verified);
        assert!(lan::show_address(ADDRESS).unwrap().contains(" lo "));
    });
}

#[test]
fn listeners_follow_an_interface_that_is_created_again_outside_the_vrf() {
    isolated(|host| {
        lan::create(&["far"]);
        let exists = create_red();
        let broker = Broker::start(host, &config(exists, ""));
        let mut peer = broker.peer();
        if !exists {
            is_unknown(&mut peer, "red");
            return;
        }
        let listeners = endpoints().map(|(address, endpoint)| {
            peer.add_address(address, |add| add.lease = Some(60)).unwrap();
            (listener(peer.listen(&endpoint).unwrap().1), endpoint)
        });
        lan::ip("link del eth1");
        lan::create_interface_again();
        lan::ip("addr add 10.8.0.1/24 dev eth1");
        add_host_address();
        for (listener, endpoint) in &listeners {
            drop(connect_and_serve(endpoint, listener));
        }
        for (address, _) in endpoints() {
            assert!(peer.remove_address(address).unwrap().verified);
        }
    });
}
