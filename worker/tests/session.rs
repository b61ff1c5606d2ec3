//! Sessions with a broker that follows the protocol, and with one that violates it.

#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use std::os::fd::OwnedFd;

use portreeve::{Client, Error, ListenOptions, ListenerId, blocking};
use portreeve_protocol::message::{Listen, Listening, Ping, Pong, Stop};
use portreeve_protocol::{Fault, FaultCode, Kind};
use support::{broker, endpoint, listen, marker, read_marker};

fn serve_all(broker: &mut support::Broker) -> Vec<ListenerId> {
    let mut stopped = Vec::new();
    while let Some(request) = broker.next() {
        if request.is::<Stop>() {
            stopped.extend(request.read::<Stop>().listeners.into_vec());
        }
        broker.reply_default(&request);
    }
    stopped
}

#[tokio::test]
async fn a_dropped_guard_stops_its_listener_and_into_socket_does_not() {
    let (channel, thread) = broker(serve_all);
    let client = Client::open(channel, "test").await.unwrap();
    let options = ListenOptions::default();
    drop(client.listen(&endpoint(2), &options).await.unwrap());
    let socket = client.listen(&endpoint(4), &options).await.unwrap().into_socket();
    assert_eq!(read_marker(socket), 4);
    client.listen(&endpoint(6), &options).await.unwrap().stop().await.unwrap();
    drop(client);
    assert_eq!(thread.join().unwrap(), [ListenerId(2), ListenerId(6)]);
}

#[test]
fn the_blocking_client_stops_lists_and_refuses_as_the_asynchronous_one() {
    let (channel, thread) = broker(serve_all);
    let client = blocking::Client::open(channel, "test").unwrap();
    let options = ListenOptions::default();
    drop(client.listen(&endpoint(2), &options).unwrap());
    assert_eq!(read_marker(client.listen(&endpoint(4), &options).unwrap().into_socket()), 4);
    client.listen(&endpoint(6), &options).unwrap().stop().unwrap();
    let denied = client.listen(&endpoint(7), &options).unwrap_err();
    assert!(matches!(denied, Error::Fault(fault) if fault.code == FaultCode::Denied));
    let many: Vec<_> = (8..=11).map(listen).collect();
    let many = client.listen_many(&many, false).unwrap();
    let ids: Vec<_> = many.iter().map(|one| one.as_ref().ok().map(|one| one.id().0)).collect();
    assert_eq!(ids, [Some(8), None, Some(10), None]);
    client.ping().unwrap();
    drop(many);
    drop(client);
    assert_eq!(thread.join().unwrap(), [2, 6, 8, 10].map(ListenerId));
}

#[tokio::test]
async fn a_listener_that_the_broker_does_not_keep_is_requested_from_a_broker_that_knows_it_only() {
    use portreeve_protocol::message::{Features, ListenMany, ListenMode};
    let kept = ListenOptions::new().intercepted(true);
    let unkept = ListenOptions::new().kept(false);
    let item = |port, options: &ListenOptions| listen(port).options(options.clone());
    for features in [0, Features::LEASE_TIMES, Features::LISTEN_MODE] {
        let serve = |broker: &mut support::Broker| {
            let mut modes = Vec::new();
            while let Some(request) = broker.next() {
                if request.is::<Listen>() {
                    modes.push(request.read::<Listen>().mode.0);
                } else if request.is::<ListenMany>() {
                    modes.push(request.read::<ListenMany>().mode.0);
                }
                broker.reply_default(&request);
            }
            modes
        };
        let (channel, thread) = support::broker_with(features, serve);
        let (blocking, blocking_thread) = support::broker_with(features, serve);
        let client = Client::open(channel, "test").await.unwrap();
        let blocking = blocking::Client::open(blocking, "test").unwrap();
        let known = features == Features::LISTEN_MODE;
        let check = |result: Result<(), Error>| match result {
            Ok(()) => assert!(known),
            Err(error) => {
                let expected = "cannot send the request: the broker is of an earlier release and keeps a copy of every \
                                listener; request it with kept(true)";
                assert_eq!((known, error.to_string()), (false, expected.to_owned()));
            }
        };
        check(client.listen(&endpoint(2), &unkept).await.map(drop));
        check(blocking.listen(&endpoint(2), &unkept).map(drop));
        let many = [item(4, &unkept), item(6, &unkept)];
        check(client.listen_many(&many, true).await.map(drop));
        check(blocking.listen_many(&many, true).map(drop));
        // The mark of the audit line is left out.
        drop(client.listen(&endpoint(8), &kept).await.unwrap());
        drop(blocking.listen(&endpoint(8), &kept).unwrap());
        let mixed = client.listen_many(&[item(2, &kept), item(4, &unkept)], true).await.map(drop);
        assert!(mixed.unwrap_err().to_string().contains("differ in kept or intercepted"));
        drop((client, blocking));
        let mode = |kept, intercepted| Some(ListenMode { kept, intercepted });
        let expected = match known {
            true => vec![mode(false, false), mode(false, false), mode(true, true)],
            false => vec![None],
        };
        assert_eq!(thread.join().unwrap(), expected);
        assert_eq!(blocking_thread.join().unwrap(), expected);
    }
}

/// More stops than the buffer of the channel holds.
#[tokio::test]
async fn four_hundred_guards_dropped_together_all_stop_their_listeners() {
    let (channel, thread) = broker(serve_all);
    let client = Client::open(channel, "test").await.unwrap();
    let mut guards = Vec::new();
    for first in [2, 402] {
        let batch: Vec<_> = (0..200).map(|n| listen(first + 2 * n)).collect();
        guards.extend(client.listen_many(&batch, true).await.unwrap());
    }
    let ids: Vec<_> = guards.iter().map(|guard| guard.as_ref().unwrap().id()).collect();
    drop(guards);
    client.ping().await.unwrap();
    drop(client);
    assert_eq!(thread.join().unwrap(), ids);
}

#[tokio::test]
async fn the_stop_of_a_dropped_guard_is_sent_before_the_next_request() {
    let (channel, thread) = broker(|broker| {
        let mut kinds = Vec::new();
        while let Some(request) = broker.next() {
            kinds.push(request.header.kind);
            broker.reply_default(&request);
        }
        kinds
    });
    let client = Client::open(channel, "test").await.unwrap();
    let options = ListenOptions::default();
    for _ in 0..3 {
        let _ = client.listen(&endpoint(2), &options).await.unwrap();
    }
    drop(client);
    use portreeve_protocol::Operation as _;
    assert_eq!(thread.join().unwrap(), [Listen::KIND, Stop::KIND].repeat(3));
}

#[tokio::test]
async fn a_caller_that_is_not_polled_delays_no_other() {
    let (channel, _thread) = broker(serve_all);
    let client = Client::open(channel, "test").await.unwrap();
    let mut stalled = Box::pin(client.ping());
    std::future::poll_fn(|context| {
        assert!(stalled.as_mut().poll(context).is_pending());
        std::task::Poll::Ready(())
    })
    .await;
    client.ping().await.unwrap();
    stalled.await.unwrap();
}

#[tokio::test]
async fn the_reply_to_a_cancelled_request_is_dropped_with_its_socket() {
    let (channel, _thread) = broker(serve_all);
    let client = Client::open(channel, "test").await.unwrap();
    let options = ListenOptions::default();
    let (cancelled, other) = (endpoint(2), endpoint(4));
    tokio::select! {
        biased;
        _ = client.listen(&cancelled, &options) => panic!("it cannot be served at once"),
        () = std::future::ready(()) => {}
    }
    let listener = client.listen(&other, &options).await.unwrap();
    assert_eq!(read_marker(listener.into_socket()), 4);
}

#[tokio::test]
async fn every_waiting_and_every_later_caller_learns_that_the_broker_closed_the_session() {
    let (channel, thread) = broker(|broker| {
        broker.next();
        broker.next();
    });
    let client = Client::open(channel, "test").await.unwrap();
    let (one, two, closed) = tokio::join!(client.ping(), client.ping(), client.closed());
    for error in [one.unwrap_err(), two.unwrap_err(), closed, client.ping().await.unwrap_err()] {
        assert!(matches!(error, Error::Closed), "{error}");
    }
    thread.join().unwrap();
}

/// Each reply violates the protocol in another way.
#[tokio::test]
async fn a_reply_that_violates_the_protocol_is_an_error_and_returns_no_socket() {
    type Violation = fn(&mut support::Broker, &support::ReceivedRequest);
    let violations: [(&str, Violation); 5] = [
        ("no socket", |broker, request| {
            broker.reply::<Listen>(request, &Listening { id: ListenerId(1) }, &[]);
        }),
        ("two sockets", |broker, request| {
            broker.reply::<Listen>(request, &Listening { id: ListenerId(1) }, &[marker(2), marker(4)]);
        }),
        ("another operation's reply", |broker, request| broker.reply::<Ping>(request, &Pong {}, &[])),
        ("a reply to nothing", |broker, _| {
            broker.frame(Kind(0x8002), 4_000_000_000, &Pong {}, &[]);
        }),
        ("a fault with a socket", |broker, request| {
            let fault = Fault::new(FaultCode::Denied, "no");
            broker.frame(Kind::FAULT, request.header.request, &fault, &[marker(2)]);
        }),
    ];
    for (name, violate) in violations {
        let (channel, thread) = broker(move |broker| {
            let request = broker.next().unwrap();
            violate(broker, &request);
            broker.next();
        });
        let client = Client::open(channel, "test").await.unwrap();
        let error = client.listen(&endpoint(2), &ListenOptions::default()).await.unwrap_err();
        assert!(matches!(error, Error::Protocol(_)), "{name}: {error}");
        drop(client);
        thread.join().unwrap();
    }
}

#[tokio::test]
async fn the_reason_of_the_broker_for_the_end_of_the_session_reaches_the_caller() {
    let (channel, thread) = broker(|broker| {
        broker.next();
        broker.frame(Kind::FAULT, 0, &Fault::new(FaultCode::Malformed, "no such frame"), &[]);
    });
    let client = Client::open(channel, "test").await.unwrap();
    let error = client.ping().await.unwrap_err();
    assert!(matches!(error, Error::Ended(fault) if &*fault.message == "no such frame"));
    thread.join().unwrap();
}

#[test]
fn a_listener_is_not_converted_into_another_kind_of_socket() {
    let (channel, thread) = broker(serve_all);
    let client = blocking::Client::open(channel, "test").unwrap();
    let listener: blocking::Listener<OwnedFd> =
        client.listen(&endpoint(2), &ListenOptions::default()).unwrap();
    let error = listener.into_udp().unwrap_err();
    assert_eq!(error.to_string(), "127.0.0.1:2 is not a UDP socket");
    drop(client);
    assert_eq!(thread.join().unwrap(), [ListenerId(2)]);
}
