//! A worker that serves floating listeners: it requests each when the broker reports that it has started, greets every client
//! with the name in its argument, and then echoes what the client sends.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;

use portreeve::blocking::Client;
use portreeve::{Channel, EventCode, ListenOptions};

fn main() {
    let name: Arc<str> = std::env::args().nth(1).unwrap_or_default().into();
    // Inherited after a restart; requested again below.
    let _listeners = portreeve::listeners_from_environment().unwrap();
    let client = Client::open(Channel::from_environment().unwrap(), "greeter").unwrap();
    for event in client.events(false).unwrap() {
        // The broker has ended.
        let Ok(event) = event else { return };
        if event.code != EventCode::ListenerStarted {
            continue;
        }
        let Ok(endpoint) = event.detail.parse() else { continue };
        // An event of the past: the listener may have stopped.
        let Ok(listener) = client.listen(&endpoint, &ListenOptions::default()) else { continue };
        let Ok(listener) = listener.into_tcp() else { continue };
        let name = Arc::clone(&name);
        std::thread::spawn(move || accept(&listener.into_socket(), &name));
    }
}

/// Serves until the broker stops the listener.
fn accept(listener: &TcpListener, name: &Arc<str>) {
    while let Ok((stream, _)) = listener.accept() {
        let name = Arc::clone(name);
        std::thread::spawn(move || greet(stream, &name));
    }
}

fn greet(mut stream: TcpStream, name: &str) {
    let _ = writeln!(stream, "220 {name}"); // the client may have gone
    let mut some = [0; 1024];
    while let Ok(length @ 1..) = stream.read(&mut some) {
        if stream.write_all(&some[..length]).is_err() {
            return;
        }
    }
}
