//! Every system call of the broker outside `confine` and `launcher`: one mechanism per file.
//!
//! Each function names the capability that it needs, if any. Every other socket is opened before the broker confines
//! itself; afterwards only listening sockets are opened.

pub mod allowlist;
pub mod boot_time;
pub mod bpf;
pub mod capabilities;
pub mod children;
pub mod clock;
pub mod directory;
pub mod ebpf;
pub mod file_pages;
pub mod interface;
pub mod malloc;
pub mod neighbour;
pub mod netlink;
mod netlink_batch;
mod netlink_body;
pub mod nft;
pub mod nft_monitor;
pub mod nft_query;
pub mod packet;
pub mod peer_credentials;
pub mod poll;
pub mod process;
pub mod rlimit;
pub mod rtnl;
pub mod rtnl_monitor;
pub mod sender;
pub mod signals;
pub mod sock_diag;
pub mod socket;
pub mod socket_directories;
pub mod sockopt;
pub mod unix_file;
pub mod wait;

pub use boot_time::BootTime;
pub use interface::Interface;
pub use netlink::Netlink;
pub use netlink_batch::Batch;
pub use socket_directories::{SocketDirectories, SocketDirectory};
