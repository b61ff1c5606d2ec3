//! A process that has no room for a reply's sockets. Alone in its file: the limit is the whole process's.

#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use std::fs::File;

use portreeve::{Error, ListenOptions, ListenerId, blocking};
use portreeve_protocol::message::{Listen, Listening, Stop, Stopped};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use support::{broker, endpoint, mark, marked};

/// Descriptors of this process, by the kernel's count.
fn open() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

#[test]
fn a_reply_that_finds_no_room_is_a_typed_error_and_asking_again_gives_the_same_socket() {
    let (channel, thread) = broker(|broker| {
        let socket = [mark(2)];
        while let Some(asked) = broker.next() {
            match asked.is::<Listen>() {
                true => broker.reply::<Listen>(&asked, &Listening { id: ListenerId(2) }, &socket),
                false => broker.reply::<Stop>(&asked, &Stopped { unknown: Default::default() }, &[]),
            }
        }
    });
    let client = blocking::Client::open(channel, "test").unwrap();
    let options = ListenOptions::default();
    let _ = client.listen(&endpoint(2), &options).unwrap();
    let before = open();

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

    assert_eq!(open(), before);
    let listener = client.listen(&endpoint(2), &options).unwrap();
    assert_eq!(listener.id(), ListenerId(2));
    assert_eq!(marked(listener.into_socket()), 2);
    drop(client);
    thread.join().unwrap();
}
