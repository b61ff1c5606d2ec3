//! Binds the listeners at an address of a VRF to the device of that VRF. Otherwise the kernel neither takes the address for a
//! local one nor passes packets of the VRF to the socket. See Documentation/networking/vrf.rst of the kernel.

use std::borrow::Cow;
use std::collections::HashSet;
use std::net::IpAddr;
use std::os::fd::OwnedFd;

use nix::errno::Errno;
use portreeve_protocol::message::ListenOptions;
use portreeve_protocol::{Endpoint, Fault, FaultCode, Text};

use super::entry::Entry;
use super::registry::Registry;
use crate::sys::{socket, sockopt};

/// SO_BINDTODEVICE with an empty name: the socket receives from every interface outside VRFs.
const NO_DEVICE: &str = "";

/// The options with which a listener is opened: those of the request, and the device of its address's VRF unless the request
/// names an interface.
pub(super) fn options_in_vrf<'o>(
    endpoint: &Endpoint,
    options: &'o ListenOptions,
    vrf: Option<&str>,
) -> Cow<'o, ListenOptions> {
    match vrf {
        Some(vrf) if !names_interface(endpoint, options) => {
            Cow::Owned(ListenOptions { device: Text::truncated(vrf), ..options.clone() })
        }
        _ => Cow::Borrowed(options),
    }
}

fn names_interface(endpoint: &Endpoint, options: &ListenOptions) -> bool {
    !options.device.is_empty() || endpoint.inet().is_none_or(|inet| !inet.scope.is_empty())
}

impl Registry {
    /// Binds the listeners at addresses to the device of a VRF, or with `None` to no device, except those whose request names an
    /// interface. All copies of their sockets change with them. Returns a fault for each listener that stays as it is.
    pub fn change_vrf(&self, addresses: &HashSet<IpAddr>, vrf: Option<&str>) -> Vec<Fault> {
        let default = ListenOptions::default();
        let follows = |entry: &&Entry| {
            entry.endpoint.inet().is_some_and(|inet| addresses.contains(&inet.address))
                && !names_interface(&entry.endpoint, entry.options.as_deref().unwrap_or(&default))
        };
        let entries = self.entries.values().map(|entry| &**entry).filter(follows);
        entries
            .filter_map(|entry| {
                let socket = entry.bound.socket.as_ref()?;
                Some(vrf_fault(&entry.endpoint, vrf, bind_to_device(socket, vrf).err()?))
            })
            .collect()
    }
}

/// Binds a socket to the device with this name, or to none.
pub(super) fn bind_to_device(socket: &OwnedFd, device: Option<&str>) -> nix::Result<()> {
    let index = device.map_or(Ok(0), socket::interface_index)?;
    // To bind it to the same device again would need the capability too.
    if sockopt::bound_interface(socket) == Ok(index) {
        return Ok(());
    }
    sockopt::bind_to_device(socket, device.unwrap_or(NO_DEVICE))
}

/// The fault of a listener whose address is in another VRF now.
fn vrf_fault(endpoint: &Endpoint, vrf: Option<&str>, errno: Errno) -> Fault {
    let place = vrf.map_or_else(|| "outside every VRF".to_owned(), |vrf| format!("in the VRF {vrf:?}"));
    let message = format!(
        "the listener on {endpoint} receives nothing: its address is now {place}, and the broker cannot bind the socket \
         there: {}",
        errno.desc()
    );
    Fault::new(FaultCode::Os, &message)
        .subject("setsockopt SO_BINDTODEVICE")
        .remedy("remove the address and add it again")
        .errno(errno as i32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listener_is_opened_in_the_vrf_of_its_address_unless_its_request_names_an_interface() {
        let device = |endpoint: &str, requested: &str, vrf: Option<&str>| {
            let options = ListenOptions { device: Text::truncated(requested), ..ListenOptions::default() };
            options_in_vrf(&endpoint.parse().unwrap(), &options, vrf).device.to_string()
        };
        assert_eq!(device("10.8.0.7:25", "", Some("red")), "red");
        assert_eq!(device("10.8.0.7:25", "eth1", Some("red")), "eth1");
        assert_eq!(device("[fe80::7%lo]:25", "", Some("red")), "");
        assert_eq!(device("/run/mail.sock", "", Some("red")), "");
        assert_eq!(device("10.8.0.7:25", "", None), "");
    }
}
