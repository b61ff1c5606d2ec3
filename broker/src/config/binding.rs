//! The `binding` scopes: source addresses of outgoing mail. Some of them float between hosts.

use std::net::IpAddr;

use super::duravip::DuraVip;
use super::reader::Reader;
use super::source::Spanned;

/// One `binding` scope.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Binding {
    /// The binding's name, case-sensitive.
    pub name: Spanned<String>,
    /// The binding's own address, if it has one.
    pub address: Option<Spanned<IpAddr>>,
    /// Whether the address floats between hosts.
    pub duravip: DuraVip,
}

impl Binding {
    pub(crate) fn read(mut reader: Reader<'_, '_>) -> Option<Self> {
        let duravip = DuraVip::read(&mut reader, &DuraVip::default());
        let address = reader.parsed("bind_address", address);
        let name = reader.instance("NAME")?;
        Some(Binding { name, address, duravip })
    }
}

/// An address, with or without the brackets that the MTA allows around IPv6.
fn address(text: &str) -> Result<IpAddr, String> {
    let bare = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    bare.unwrap_or(text).parse().map_err(|_| "write an IPv4 or IPv6 address, without a port".to_owned())
}
