//! Replies with and without descriptors, pipelined and interleaved at random, keep their pairing.

#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use portreeve::{Client, Error, ListenOptions};
use proptest::prelude::*;
use support::{Asked, broker, endpoint, listen, marked};

#[derive(Clone, Debug)]
enum Ask {
    Ping,
    /// A port; odd ones are refused.
    Listen(u16),
    Many(Vec<u16>),
}

fn ask() -> impl Strategy<Value = Ask> {
    prop_oneof![
        Just(Ask::Ping),
        (1..60_000_u16).prop_map(Ask::Listen),
        prop::collection::vec(1..60_000_u16, 0..8).prop_map(Ask::Many),
    ]
}

/// One request of a session: what to ask, where its reply stands among the others', whether it is cancelled.
type Step = (Ask, u32, bool);

async fn check(client: &Client, ask: &Ask) {
    match ask {
        Ask::Ping => client.ping().await.unwrap(),
        Ask::Listen(port) => {
            let result = client.listen(&endpoint(*port), &ListenOptions::default()).await;
            match result {
                Ok(listener) => {
                    assert_eq!(listener.id().0, u64::from(*port));
                    assert_eq!(marked(listener.into_socket()), *port);
                    assert_eq!(port % 2, 0);
                }
                Err(Error::Fault(fault)) => {
                    assert_eq!(*fault.message, port.to_string());
                    assert_eq!(port % 2, 1);
                }
                Err(error) => panic!("{error}"),
            }
        }
        Ask::Many(ports) => {
            let asked: Vec<_> = ports.iter().copied().map(listen).collect();
            let results = client.listen_many(&asked, false).await.unwrap();
            assert_eq!(results.len(), ports.len());
            for (result, port) in results.into_iter().zip(ports) {
                match result {
                    Ok(listener) => assert_eq!(marked(listener.into_socket()), *port),
                    Err(fault) => assert_eq!(*fault.message, port.to_string()),
                }
            }
        }
    }
}

fn session(steps: Vec<Step>) {
    let order: Vec<u32> = steps.iter().map(|step| step.1).collect();
    let (channel, thread) = broker(move |broker| {
        let mut asked: Vec<(u32, Asked)> = Vec::new();
        for place in order {
            asked.push((place, broker.next().unwrap()));
        }
        asked.sort_by_key(|(place, _)| *place);
        asked.iter().for_each(|(_, asked)| broker.answer(asked));
        // Whatever came before, the session still works.
        let last = broker.next().unwrap();
        broker.answer(&last);
    });
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let client = Client::open(channel, "test").await.unwrap();
        let mut waiting = Vec::new();
        let mut cancelled = Vec::new();
        for (ask, _, cancel) in &steps {
            let mut check = Box::pin(check(&client, ask));
            // Polled once, so that it is sent.
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
    fn replies_in_any_order_keep_their_pairing(
        steps in prop::collection::vec((ask(), any::<u32>(), prop::bool::weighted(0.2)), 1..40)
    ) {
        session(steps);
    }
}
