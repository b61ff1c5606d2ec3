//! Addresses on the kinds of interface that servers have: a bond, a port of a VRF, a dummy link, a macvlan link, and an
//! interface with an alternative name. Not every kernel has the first three. Without them, a request for an address
//! must name the interface that does not exist.

use std::io::{ErrorKind, Read as _};
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::process::Command;
use std::time::Duration;

use portreeve_protocol::FaultCode;
use portreeve_tests::packet_capture::{PacketCapture, is_arp_announcement};
use portreeve_tests::wait::TIMEOUT;
use portreeve_tests::{Broker, Peer, eventually, isolated, lan, sample};

mod vrf;

const ADDRESS: &str = "10.8.0.7";

/// A configuration that assigns the block of [`ADDRESS`] to an interface.
fn topology(interface: &str) -> String {
    sample::addresses(&format!(r#"cluster {{ topology "10.8.0.0/24" {{ interface = "{interface}" }} }}"#))
}

/// Creates a link, and returns false if this kernel has no links of that kind.
fn create(kind: &str, name: &str, options: &str) -> bool {
    let mut command = Command::new("ip");
    command.args(["link", "add", name, "type", kind]).args(options.split_whitespace());
    let output = command.output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    let lacking = error.contains("Unknown device type");
    assert!(output.status.success() || lacking, "{command:?}: {error}");
    !lacking
}

/// Asserts the fault of a kernel without such links.
fn is_unknown(peer: &mut Peer, interface: &str) {
    let fault = peer.add_address(ADDRESS, |_| {}).unwrap_err();
    assert_eq!((fault.code, &*fault.subject), (FaultCode::UnknownInterface, interface), "{fault}");
}

/// Adds the address with announcements, and checks that they reach the other host, from this hardware address.
fn add_and_see_announced(peer: &mut Peer, interface: &str, hardware: [u8; 6]) {
    let mut wire = PacketCapture::on("far");
    peer.add_address(ADDRESS, |add| (add.lease, add.announce) = (Some(60), true)).unwrap();
    let ours = |frame: &[u8]| is_arp_announcement(frame, hardware, ADDRESS.parse().unwrap());
    assert!(!wire.collect(TIMEOUT, ours, |frames| !frames.is_empty()).is_empty(), "no announcement");
    assert!(lan::show_address(ADDRESS).unwrap().contains(interface));
}

fn connect_from_far() -> std::io::Result<TcpStream> {
    let at = format!("{ADDRESS}:2525").parse().unwrap();
    lan::in_host("far", || TcpStream::connect_timeout(&at, Duration::from_secs(1)))
}

/// Removes the address, and checks that this resets an accepted connection and that nothing remains.
fn remove_and_see_reset(peer: &mut Peer, mut accepted: TcpStream, before: &[String]) {
    assert!(peer.remove_address(ADDRESS).unwrap().verified);
    accepted.set_read_timeout(Some(TIMEOUT)).unwrap();
    let error = accepted.read(&mut [0]).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::ConnectionAborted), "{error}");
    assert_eq!(lan::addresses(), before);
}

/// Asks the broker to listen on the address.
fn listen(peer: &mut Peer) -> TcpListener {
    let (_, socket): (_, OwnedFd) = peer.listen(&format!("{ADDRESS}:2525")).unwrap();
    let listener = TcpListener::from(socket);
    listener.set_nonblocking(false).unwrap();
    listener
}

#[test]
fn an_address_on_a_bond_stays_reachable_when_one_of_its_ports_loses_its_carrier() {
    isolated(|host| {
        lan::create(&["far"]);
        lan::add_second_interface();
        let exists = create("bond", "bond0", "mode active-backup miimon 20");
        if exists {
            for port in [lan::INTERFACE, lan::SECOND_INTERFACE] {
                lan::ip(&format!("link set {port} down"));
                lan::ip(&format!("link set {port} master bond0"));
            }
            lan::ip("link set bond0 up address 02:00:00:00:00:0b");
            lan::ip("addr add 10.8.0.1/24 dev bond0");
            let up = || lan::ip("link show bond0").contains("LOWER_UP").then_some(());
            eventually("a carrier of the bond", up);
        }
        lan::ip("-n far addr add 10.8.0.201/24 dev eth1");
        let broker = Broker::start(host, &topology("bond0"));
        let mut peer = broker.peer();
        if !exists {
            is_unknown(&mut peer, "bond0");
            return;
        }
        let before = lan::addresses();
        add_and_see_announced(&mut peer, "bond0", [2, 0, 0, 0, 0, 0x0b]);
        let listener = listen(&mut peer);
        drop(connect_from_far().unwrap());
        drop(listener.accept().unwrap());
        lan::ip("-n switch link set port1 down");
        let connected = eventually("a connection through the other port", || connect_from_far().ok());
        let accepted = listener.accept().unwrap().0;
        peer.renew_address(ADDRESS).unwrap();
        remove_and_see_reset(&mut peer, accepted, &before);
        drop(connected);
    });
}

#[test]
fn an_address_on_a_port_of_a_vrf_is_announced_there_and_its_removal_resets_its_connections() {
    isolated(|host| {
        lan::create(&["far"]);
        let exists = create("vrf", "red", "table 100");
        if exists {
            lan::ip("link set red up");
            lan::ip("link set eth1 master red");
            lan::ip("addr add 10.8.0.1/24 dev eth1");
        }
        lan::ip("-n far addr add 10.8.0.201/24 dev eth1");
        let broker = Broker::start(host, &topology(if exists { "eth1" } else { "red" }));
        let mut peer = broker.peer();
        if !exists {
            is_unknown(&mut peer, "red");
            return;
        }
        let before = lan::addresses();
        add_and_see_announced(&mut peer, "eth1", lan::MAC_ADDRESS);
        let routes = lan::ip("route show table 100 type local");
        assert!(routes.contains(ADDRESS), "the address is not in the table of its VRF: {routes}");
        // A server in the VRF binds its own socket.
        let socket =
            rustix::net::socket(rustix::net::AddressFamily::INET, rustix::net::SocketType::STREAM, None)
                .unwrap();
        bind_to_device(&socket, "red");
        let at: std::net::SocketAddr = format!("{ADDRESS}:2525").parse().unwrap();
        rustix::net::bind(&socket, &at).unwrap();
        rustix::net::listen(&socket, 4).unwrap();
        let listener = TcpListener::from(socket);
        let connected = connect_from_far().unwrap();
        let accepted = listener.accept().unwrap().0;
        drop(listener);
        remove_and_see_reset(&mut peer, accepted, &before);
        drop(connected);
    });
}

fn bind_to_device(socket: &OwnedFd, device: &str) {
    use std::os::fd::AsRawFd as _;
    let length = u32::try_from(device.len()).unwrap();
    // SAFETY: the name is valid for its length and only read.
    let set = unsafe {
        let (level, option) = (libc::SOL_SOCKET, libc::SO_BINDTODEVICE);
        libc::setsockopt(socket.as_raw_fd(), level, option, device.as_ptr().cast(), length)
    };
    assert_eq!(set, 0, "binding to {device}: {}", std::io::Error::last_os_error());
}

#[test]
fn an_address_on_a_dummy_link_serves_this_host_until_its_lease_expires() {
    isolated(|host| {
        let exists = create("dummy", "dummy0", "");
        if exists {
            lan::ip("link set dummy0 up");
        }
        let broker = Broker::start(host, &topology("dummy0"));
        let mut peer = broker.peer();
        if !exists {
            is_unknown(&mut peer, "dummy0");
            return;
        }
        let before = lan::addresses();
        let lease = peer.add_address(ADDRESS, |add| (add.probes, add.announce) = (1, true)).unwrap();
        assert_eq!(&*lease.interface, "dummy0");
        let listener = listen(&mut peer);
        let connected = TcpStream::connect((ADDRESS, 2525)).unwrap();
        remove_and_see_reset(&mut peer, listener.accept().unwrap().0, &before);
        drop(connected);
        peer.add_address(ADDRESS, |add| add.lease = Some(3)).unwrap();
        eventually("the end of the lease", || lan::show_address(ADDRESS).is_none().then_some(()));
        assert_eq!(lan::addresses(), before);
    });
}

#[test]
fn an_address_on_a_macvlan_link_is_announced_from_the_links_own_hardware_address() {
    isolated(|host| {
        lan::create(&["far"]);
        lan::ip("link add link eth1 name mac0 address 02:00:00:00:00:0c type macvlan mode bridge");
        lan::ip("link set mac0 up");
        lan::ip("addr add 10.8.0.1/24 dev mac0");
        lan::ip("-n far addr add 10.8.0.201/24 dev eth1");
        let broker = Broker::start(host, &topology("mac0"));
        let mut peer = broker.peer();
        let before = lan::addresses();
        add_and_see_announced(&mut peer, "mac0", [2, 0, 0, 0, 0, 0x0c]);
        let listener = listen(&mut peer);
        let connected = connect_from_far().unwrap();
        remove_and_see_reset(&mut peer, listener.accept().unwrap().0, &before);
        drop(connected);
    });
}

#[test]
fn an_interface_configured_by_its_alternative_name_gets_addresses() {
    isolated(|host| {
        lan::create(&["far"]);
        lan::ip("link property add dev eth1 altname mail-network0");
        lan::ip("addr add 10.8.0.1/24 dev eth1");
        lan::ip("-n far addr add 10.8.0.201/24 dev eth1");
        let broker = Broker::start(host, &topology("mail-network0"));
        let mut peer = broker.peer();
        let before = lan::addresses();
        add_and_see_announced(&mut peer, "eth1", lan::MAC_ADDRESS);
        let listener = listen(&mut peer);
        let connected = connect_from_far().unwrap();
        remove_and_see_reset(&mut peer, listener.accept().unwrap().0, &before);
        drop(connected);
    });
}
