//! The reader's process: it confines itself, then reads the configuration on each order.
//!
//! It is single-threaded and uses blocking calls; it holds only its channel. It knows one order, which has no arguments,
//! and ends when the broker closes the channel.

use std::os::unix::net::UnixDatagram;
use std::path::Path;

use portreeve_protocol::Header;
use portreeve_protocol::channel::{ReceiveError, receive_bytes, send_bytes};
use portreeve_protocol::frame::HEADER_LENGTH;

use super::accounts::{self, Known};
use super::message;
use crate::config::{self, Bundle, Trust};
use crate::confine::reader::Confinement;
use crate::failure::Failure;
use crate::sys::file_pages;

/// Runs the reader until the broker has ended.
pub fn run(
    channel: &UnixDatagram,
    path: &Path,
    confinement: &Confinement,
    known: &Known,
) -> Result<(), Failure> {
    let os = |call: &'static str| move |error: std::io::Error| Failure::os("reader", call, error);
    channel.set_nonblocking(false).map_err(os("fcntl"))?;
    let confined = confinement.apply();
    let result = match &confined {
        Ok(locks) => Ok(locks.clone()),
        Err(failure) => Err(failure.to_string()),
    };
    if let Ok(packet) = message::confined(result) {
        send_bytes(channel, &packet).map_err(os("send"))?;
    }
    confined?;
    let mut order = [0; HEADER_LENGTH];
    loop {
        file_pages::release();
        match receive_bytes(channel, &mut order) {
            Ok(bytes) => match Header::decode(order.get(..bytes).unwrap_or_default()) {
                Ok((Header { kind: message::READ, request, .. }, _)) => {
                    send_bundle(channel, request, &read(path, known)).map_err(os("send"))?;
                }
                // There is no other order.
                _ => return Ok(()),
            },
            Err(ReceiveError::Os(error)) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(_) => return Ok(()),
        }
    }
}

/// Reads the configuration, and the accounts that it names.
fn read(path: &Path, known: &Known) -> Bundle {
    let (config, mut bundle) = config::record(path, Trust::RootOnly);
    // A configuration with errors needs no accounts.
    if let Ok((config, _)) = config {
        let names: Vec<_> = config.broker.peers.iter().map(|peer| peer.name.value.clone()).collect();
        match accounts::by_files(names, known) {
            Ok(ids) => ids.iter().for_each(|(name, id)| bundle.add_account(name, *id)),
            Err(unreadable) => bundle.set_accounts_unreadable(&unreadable.file, &unreadable.error),
        }
    }
    bundle
}

fn send_bundle(channel: &UnixDatagram, number: u32, bundle: &Bundle) -> std::io::Result<()> {
    message::frames(number, bundle).try_for_each(|frame| {
        loop {
            match send_bytes(channel, frame.as_deref().unwrap_or_default()) {
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                other => return other,
            }
        }
    })
}
