//! Replies with and without descriptors, pipelined and in random order, reach their requests.

#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use portreeve::{Client, Error, ListenOptions};
use proptest::prelude::*;
use support::{ReceivedRequest, broker, endpoint, listen, read_marker};

#[derive(Clone, Debug)]
enum Call {
    Ping,
    /// A port; odd ones are refused.
    Listen(u16),
    Many(Vec<u16>),
}

fn call() -> impl Strategy<Value = Call> {
    prop_oneof![
        Just(Call::Ping),
        (1..60_000_u16).prop_map(Call::Listen),
        prop::collection::vec(1..60_000_u16, 0..8).prop_map(Call::Many),
    ]
}

/// One request of a session: the call, the position of its reply among the others, and whether it is cancelled.
type Step = (Call, u32, bool);

async fn check(client: &Client, call: &Call) {
    match call {
        Call::Ping => client.ping().await.unwrap(),
        Call::Listen(port) => {
            let result = client.listen(&endpoint(*port), &ListenOptions::default()).await;
            match result {
                Ok(listener) => {
                    assert_eq!(listener.id().0, u64::from(*port));
                    assert_eq!(read_marker(listener.into_socket()), *port);
                    assert_eq!(port % 2, 0);
                }
                Err(Error::Fault(fault)) => {
                    assert_eq!(*fault.message, port.to_string());
                    assert_eq!(port % 2, 1);
                }
                Err(error) => panic!("{error}"),
            }
        }
        Call::Many(ports) => {
            let request: Vec<_> = ports.iter().copied().map(listen).collect();
            let results = client.listen_many(&request, false).await.unwrap();
            assert_eq!(results.len(), ports.len());
            for (result, port) in results.into_iter().zip(ports) {
                match result {
                    Ok(listener) => assert_eq!(read_marker(listener.into_socket()), *port),
                    Err(fault) => assert_eq!(*fault.message, port.to_string()),
                }
            }
        }
    }
}

fn session(steps: Vec<Step>) {
    let order: Vec<u32> = steps.iter().map(|step| step.1).collect();
    let (channel, thread) = broker(move |broker| {
        let mut request: Vec<(u32, ReceivedRequest)> = Vec::new();
        for place in order {
            request.push((place, broker.next().unwrap()));
        }
        request.sort_by_key(|(place, _)| *place);
        request.iter().for_each(|(_, request)| broker.reply_default(request));
        // The session still works after that.
        let last = broker.next().unwrap();
        broker.reply_default(&last);
    });
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let client = Client::open(channel, "test").await.unwrap();
        let mut waiting = Vec::new();
        let mut cancelled = Vec::new();
        for (call, _, cancel) in &steps {
            let mut check = Box::pin(check(&client, call));
            // The first poll sends the request.
            std::future::poll_fn(|context| {
                assert!(check.as_mut().poll(context).is_pending());
                std::task::Poll::Ready(())
            })
            .await;
            match cancel {
                true => cancelled.push(check),
                false => waiting.push(check),
            }
        }
        drop(cancelled);
        for check in waiting {
            check.await;
        }
        client.ping().await.unwrap();
    });
    thread.join().unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn replies_in_any_order_reach_their_requests(
        steps in prop::collection::vec((call(), any::<u32>(), prop::bool::weighted(0.2)), 1..40)
    ) {
        session(steps);
    }
}
