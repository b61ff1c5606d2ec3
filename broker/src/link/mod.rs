//! Links: the host's network interfaces, and the netlink sockets by which everything about them is asked and done.
//!
//! Every socket is opened before the broker confines itself; afterwards nothing here opens anything.

mod batch;
pub mod filter;
pub mod interface;
pub mod netlink;

pub use batch::Batch;
pub use interface::Interface;
pub use netlink::Netlink;
