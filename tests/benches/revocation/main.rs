//! The cost of revocable listeners: of the filter for each packet, and of listing a socket for each hand-over.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::Path;

use portreeve_protocol::message::ListenerId;
use portreeve_tests::benchmark::{self, Subject, measure};
use portreeve_tests::broker::SOCKET;
use portreeve_tests::kernel::command_denying;
use portreeve_tests::{Broker, Host, Peer, binaries, sample};

/// Packets, connections or hand-overs in a round.
const UNITS: usize = 500;

fn main() {
    benchmark::main("The cost of revocable listeners: medians", inside);
}

fn inside(host: &Host) {
    let permits = r#"( "127.0.0.1:1-65535" "127.0.0.1:1-65535/udp" )"#;
    let broker = Broker::start_with_log_file(host, &sample::control(permits));
    let mut peer = broker.peer();
    let (_, udp) = peer.listen("127.0.0.1:53/udp").unwrap();
    let (_, tcp) = peer.listen("127.0.0.1:25").unwrap();
    datagrams(&udp.into());
    connections(&tcp.into());
    drop(broker);
    hand_over(host, permits);
}

/// A datagram that is sent and received.
fn datagrams(lent: &UdpSocket) {
    let own = UdpSocket::bind("127.0.0.1:2000").unwrap();
    let client = UdpSocket::bind("127.0.0.1:0").unwrap();
    let exchange = |socket: &UdpSocket| {
        let to = socket.local_addr().unwrap();
        for _ in 0..UNITS {
            client.send_to(b"?", to).unwrap();
            socket.recv(&mut [0]).unwrap();
        }
    };
    let subjects =
        vec![Subject::new("portreeve", || exchange(lent)), Subject::new("no filter", || exchange(&own))];
    measure("packet/udp", UNITS, subjects);
}

/// A connection that is accepted, and a round trip over an accepted connection.
fn connections(lent: &TcpListener) {
    let own = TcpListener::bind("127.0.0.1:2001").unwrap();
    let connect = |listener: &TcpListener| {
        let to: SocketAddr = listener.local_addr().unwrap();
        (0..UNITS).for_each(|_| drop((TcpStream::connect(to).unwrap(), listener.accept().unwrap())));
    };
    let subjects =
        vec![Subject::new("portreeve", || connect(lent)), Subject::new("no filter", || connect(&own))];
    measure("packet/tcp-connection", UNITS, subjects);

    let pair = |listener: &TcpListener| {
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (client, listener.accept().unwrap().0)
    };
    let (mut of_lent, mut of_own) = (pair(lent), pair(&own));
    let exchange = |(client, server): &mut (TcpStream, TcpStream)| {
        for _ in 0..UNITS {
            client.write_all(b"?").unwrap();
            server.read_exact(&mut [0]).unwrap();
            server.write_all(b"!").unwrap();
            client.read_exact(&mut [0]).unwrap();
        }
    };
    let subjects = vec![
        Subject::new("portreeve", || exchange(&mut of_lent)),
        Subject::new("no filter", || exchange(&mut of_own)),
    ];
    measure("packet/tcp-round-trip", UNITS, subjects);
}

/// A listener that is handed over, and later stopped: by a broker with an allowlist, and by one to which the kernel refuses
/// it. A filter of the same length examines the system calls of both.
fn hand_over(host: &Host, permits: &str) {
    let start = |denied: &str, socket: &str| {
        let text = sample::control(permits).replace(SOCKET, socket);
        let path = host.file(&format!("{}.conf", socket.replace('/', "_")), &text);
        let log = std::fs::File::create(host.path("hand_over.log")).unwrap();
        let mut command = command_denying(host, &[denied], binaries::BROKER, &path);
        command.stdout(log.try_clone().unwrap()).stderr(log);
        let broker = Broker::launch(host, command);
        let mut peer = Peer::connect(Path::new(socket)).unwrap();
        peer.hello();
        (broker, peer)
    };
    let (_listing, mut listing) = start("bpf:99=EPERM", "/run/host/listing.sock");
    let (_plain, mut plain) = start("bpf=EPERM", "/run/host/plain.sock");
    let life = |peer: &mut Peer, first: u16| {
        let ids: Vec<ListenerId> = (first..).take(UNITS).map(|port| listen(peer, port)).collect();
        ids.chunks(250).for_each(|ids| drop(peer.stop(ids)));
    };
    let subjects = vec![
        Subject::new("portreeve", || life(&mut listing, 10_000)),
        Subject::new("no allowlist", || life(&mut plain, 20_000)),
    ];
    measure("hand-over/listen-and-stop", UNITS, subjects);
}

fn listen(peer: &mut Peer, port: u16) -> ListenerId {
    peer.listen(&format!("127.0.0.1:{port}")).unwrap().0
}
