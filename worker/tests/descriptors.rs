//! A process without free descriptors for the sockets of a reply. The test is in a file of its own, because the limit applies
//! to the whole process.

#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use std::fs::File;

use portreeve::{Error, ListenOptions, ListenerId, blocking};
use portreeve_protocol::message::{Listen, Listening, Stop, Stopped};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use support::{broker, endpoint, marker, read_marker};

/// Number of open descriptors of this process.
fn open_descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

#[test]
fn a_reply_without_free_descriptors_is_a_typed_error_and_a_retry_returns_the_same_socket() {
    let (channel, thread) = broker(|broker| {
        let socket = [marker(2)];
        while let Some(request) = broker.next() {
            match request.is::<Listen>() {
                true => broker.reply::<Listen>(&request, &Listening { id: ListenerId(2) }, &socket),
                false => broker.reply::<Stop>(
                    &request,
                    &Stopped { unknown: Default::default(), not_revoked: Default::default() },
                    &[],
                ),
            }
        }
    });
    let client = blocking::Client::open(channel, "test").unwrap();
    let options = ListenOptions::default();
    let _ = client.listen(&endpoint(2), &options).unwrap();
    let before = open_descriptors();

    let limit = getrlimit(Resource::Nofile);
    let low = Rlimit { current: Some(before as u64 + 4), ..limit };
    setrlimit(Resource::Nofile, low).unwrap();
    let mut filler = Vec::new();
    while let Ok(file) = File::open("/dev/null") {
        filler.push(file);
    }
    let lost = client.listen(&endpoint(2), &options).unwrap_err();
    assert!(matches!(lost, Error::DescriptorsLost), "{lost}");
    drop(filler);
    setrlimit(Resource::Nofile, limit).unwrap();

    assert_eq!(open_descriptors(), before);
    let listener = client.listen(&endpoint(2), &options).unwrap();
    assert_eq!(listener.id(), ListenerId(2));
    assert_eq!(read_marker(listener.into_socket()), 2);
    drop(client);
    thread.join().unwrap();
}
