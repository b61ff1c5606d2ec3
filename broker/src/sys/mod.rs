//! Every system call of the broker outside `confine` and `launcher`: one mechanism a file.
//!
//! Each function names the capability that it needs, if any. Every socket is opened before the broker confines itself;
//! afterwards nothing here opens anything but listening sockets.

pub mod boot_time;
pub mod bpf;
pub mod directories;
pub mod interface;
pub mod malloc;
pub mod neighbour;
pub mod netlink;
mod netlink_batch;
pub mod nft;
pub mod packet;
pub mod peer_credentials;
pub mod rlimit;
pub mod rtnl;
pub mod rtnl_monitor;
pub mod sock_diag;
pub mod socket_filter;
pub mod sockopt;
pub mod unix_file;

pub use boot_time::BootTime;
pub use directories::Directories;
pub use interface::Interface;
pub use netlink::Netlink;
pub use netlink_batch::Batch;
