//! Runs examples/client.py against a responder that uses this crate, over the control socket and over an inherited
//! channel. Needs `python3`.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)] // test helpers may panic

use std::io::Read as _;
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use portreeve_protocol::channel::{self, receive_bytes};
use portreeve_protocol::message::{
    Hello, Listen, ListenOptions, ListenerId, Listening, Operation as _, Welcome,
};
use portreeve_protocol::{Fault, FaultCode, Header, Kind, List, Text, codec};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

/// How long the responder waits for the client.
const TIMEOUT: std::time::Duration = std::time::Duration::from_secs(30);

/// Starts the client with the path of a control socket, and returns the responder's end of the channel.
fn start_with_control_socket(directory: &Path) -> (Child, UnixDatagram) {
    let path = directory.join("broker.sock");
    let socket =
        rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
            .unwrap();
    rustix::net::bind(&socket, &SocketAddrUnix::new(&path).unwrap()).unwrap();
    rustix::net::listen(&socket, 1).unwrap();
    let child = client().arg(&path).stdin(Stdio::null()).spawn().unwrap();
    rustix::net::sockopt::set_socket_timeout(&socket, rustix::net::sockopt::Timeout::Recv, Some(TIMEOUT))
        .unwrap();
    let channel: OwnedFd = rustix::net::accept_with(&socket, SocketFlags::CLOEXEC).unwrap();
    (child, with_timeout(channel.into()))
}

/// Starts the client with an inherited channel, and returns the responder's end.
fn start_with_inherited_channel() -> (Child, UnixDatagram) {
    let (ours, theirs) = channel::pair().unwrap();
    theirs.set_nonblocking(false).unwrap();
    let child = client().env("PORTREEVE_CHANNEL", "0").stdin(OwnedFd::from(theirs)).spawn().unwrap();
    (child, with_timeout(ours))
}

fn with_timeout(channel: UnixDatagram) -> UnixDatagram {
    channel.set_nonblocking(false).unwrap();
    channel.set_read_timeout(Some(TIMEOUT)).unwrap();
    channel
}

fn client() -> Command {
    let mut command = Command::new("python3");
    command
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/examples/client.py"))
        .env_remove("PORTREEVE_CHANNEL")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

/// Receives one request, and returns its number and message.
fn receive<O>(channel: &UnixDatagram) -> (u32, O)
where
    O: portreeve_protocol::Operation,
{
    let mut buffer = codec::frame_buffer();
    let length = receive_bytes(channel, &mut buffer).unwrap();
    let (header, body) = Header::decode(&buffer[..length]).unwrap();
    assert_eq!((header.kind, header.descriptors), (O::KIND, 0));
    (header.request, codec::decode(body).unwrap())
}

fn reply_to_hello(channel: &UnixDatagram) {
    let (request, hello) = receive::<Hello>(channel);
    assert_eq!(hello.client.as_str(), "client.py");
    let welcome = Welcome {
        broker: 1,
        release: Text::truncated("test"),
        features: 0,
        capabilities: 0,
        peer: Text::truncated("test"),
        operations: List::default(),
    };
    let mut buffer = codec::frame_buffer();
    let frame = codec::encode(&mut buffer, Hello::KIND.reply(), request, 0, &welcome).unwrap();
    channel::send(channel, frame, &[]).unwrap();
}

fn receive_listen(channel: &UnixDatagram) -> u32 {
    let (request, listen) = receive::<Listen>(channel);
    let expected = Listen::new("127.0.0.1:2525".parse().unwrap(), ListenOptions::default());
    assert_eq!(listen, expected);
    request
}

/// Sends the client one listener, connects to it and checks the greeting.
fn serve(child: Child, channel: &UnixDatagram) {
    reply_to_hello(channel);
    let request = receive_listen(channel);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let reply = Listening { id: ListenerId(7) };
    let mut buffer = codec::frame_buffer();
    let frame = codec::encode(&mut buffer, Listen::KIND.reply(), request, 1, &reply).unwrap();
    channel::send(channel, frame, &[listener.as_fd()]).unwrap();
    let mut connection = TcpStream::connect(address).unwrap();
    drop(listener);
    connection.set_read_timeout(Some(TIMEOUT)).unwrap();
    let mut greeting = String::new();
    let read = connection.read_to_string(&mut greeting);
    let output = child.wait_with_output().unwrap();
    read.unwrap_or_else(|error| panic!("{error}: {}", stderr(&output)));
    assert_eq!(greeting, "220 ready\r\n");
    assert!(output.status.success(), "{}", stderr(&output));
    assert_eq!(String::from_utf8_lossy(&output.stdout), format!("listener 7 on port {}\n", address.port()));
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn the_python_client_serves_over_the_control_socket() {
    let directory = tempfile::tempdir().unwrap();
    let (child, channel) = start_with_control_socket(directory.path());
    serve(child, &channel);
}

#[test]
fn the_python_client_serves_over_an_inherited_channel() {
    let (child, channel) = start_with_inherited_channel();
    serve(child, &channel);
}

#[test]
fn the_python_client_prints_a_fault_and_its_remedy() {
    let (child, channel) = start_with_inherited_channel();
    reply_to_hello(&channel);
    let request = receive_listen(&channel);
    let fault = Fault::new(FaultCode::Denied, "it is not\u{1b}[2J allowed").remedy("write a permit");
    let mut buffer = codec::frame_buffer();
    let frame = codec::encode(&mut buffer, Kind::FAULT, request, 0, &fault).unwrap();
    channel::send(&channel, frame, &[]).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(stderr(&output), "fault 1: 'it is not\\x1b[2J allowed', remedy: 'write a permit'\n");
}

#[test]
fn the_python_client_refuses_a_reply_without_its_socket() {
    let (child, channel) = start_with_inherited_channel();
    reply_to_hello(&channel);
    let request = receive_listen(&channel);
    let reply = Listening { id: ListenerId(7) };
    let mut buffer = codec::frame_buffer();
    let frame = codec::encode(&mut buffer, Listen::KIND.reply(), request, 1, &reply).unwrap();
    channel::send(&channel, frame, &[]).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("invalid reply"), "{}", stderr(&output));
}
