//! The interfaces of the host that have no carrier.

use std::collections::BTreeSet;
use std::io;
use std::time::Duration;

use futures_util::{StreamExt as _, TryStreamExt as _};
use rtnetlink::packet_route::link::{LinkAttribute, LinkFlags, Prop};
use rtnetlink::{Handle, MulticastGroup, new_multicast_connection};

/// How long changes are collected after one was seen: a bond reports many at once.
const COLLECT: Duration = Duration::from_millis(20);

/// The names, alternative names included, of the interfaces that are up and have a carrier.
pub type Working = BTreeSet<String>;

/// Reports the interfaces that work, now and after each change, until reading them fails.
pub async fn watch(mut report: impl FnMut(Working)) -> io::Error {
    match follow(&mut report).await {
        Ok(()) => io::Error::other("the kernel's messages about interfaces ended"),
        Err(error) => error,
    }
}

async fn follow(report: &mut impl FnMut(Working)) -> io::Result<()> {
    let (connection, handle, mut messages) = new_multicast_connection(&[MulticastGroup::Link])?;
    tokio::spawn(connection);
    loop {
        report(read(&handle).await.map_err(|error| io::Error::other(error.to_string()))?);
        // Any message, lost messages included, is a reason to read all.
        if messages.next().await.is_none() {
            return Ok(());
        }
        tokio::time::sleep(COLLECT).await;
        while let Ok(message) = messages.try_recv() {
            drop(message);
        }
    }
}

async fn read(handle: &Handle) -> Result<Working, rtnetlink::Error> {
    let mut working = Working::new();
    let mut links = Box::pin(handle.link().get().execute());
    while let Some(link) = links.try_next().await? {
        if !link.header.flags.contains(LinkFlags::Up | LinkFlags::LowerUp) {
            continue;
        }
        for attribute in link.attributes {
            match attribute {
                LinkAttribute::IfName(name) => drop(working.insert(name)),
                LinkAttribute::PropList(properties) => {
                    working.extend(properties.into_iter().filter_map(|property| match property {
                        Prop::AltIfName(name) => Some(name),
                        _ => None,
                    }));
                }
                _ => {}
            }
        }
    }
    Ok(working)
}
