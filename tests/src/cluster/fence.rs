//! What the kernel of a host lets pass, and until when: the elements with a timeout in the broker's tables of nf_tables, read
//! by netlink; see nft(8).

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::FromRawFd as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::NODES;
use super::referee::FenceSample;
use crate::lan::in_host;

/// The time between two readings.
const INTERVAL: Duration = Duration::from_millis(50);
/// The broker's tables have this name.
const TABLE: &[u8] = b"portreeve\0";

// From linux/netlink.h and linux/netfilter/nf_tables.h.
const NLM_F_REQUEST_DUMP: u16 = 0x301;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const SUBSYSTEM: u16 = 10 << 8;
const GET_SETS: u16 = SUBSYSTEM | 10;
const GET_ELEMENTS: u16 = SUBSYSTEM | 13;
const SET_TABLE: u16 = 1;
const SET_NAME: u16 = 2;
const SET_FLAGS: u16 = 3;
const WITH_TIMEOUT: u32 = 0x10;
const LIST_TABLE: u16 = 1;
const LIST_SET: u16 = 2;
const LIST_ELEMENTS: u16 = 3;
const ELEMENT_EXPIRATION: u16 = 5;
/// An attribute's type without the flags for nesting and byte order.
const TYPE: u16 = 0x3fff;

/// Netlink to the packet filter of one host.
pub struct Kernel(File);

/// A message of a reply, after the header of netlink: the family of its table, and its attributes.
struct Message {
    family: u8,
    attributes: Vec<u8>,
}

impl Kernel {
    /// Opens a socket in a host's network namespace.
    #[track_caller]
    pub fn of(host: &str) -> Self {
        in_host(host, || {
            // SAFETY: no pointer is passed; the returned descriptor is checked and has no other owner.
            let socket = unsafe {
                let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC;
                let raw = libc::socket(libc::AF_NETLINK, kind, libc::NETLINK_NETFILTER);
                assert!(raw >= 0, "cannot open a netlink socket: {}", io::Error::last_os_error());
                File::from_raw_fd(raw)
            };
            Self(socket)
        })
    }

    /// How long the kernel lets the packets of any address with a lease pass; `None`: it drops them all.
    /// [`Duration::MAX`]: there is no end.
    ///
    /// # Errors
    /// A table changed meanwhile.
    pub fn longest(&mut self) -> io::Result<Option<Duration>> {
        let mut longest = None;
        for (family, name) in self.sets()? {
            let list = [attribute(LIST_TABLE, TABLE), attribute(LIST_SET, &name)].concat();
            for message in self.dump(GET_ELEMENTS, family, &list)? {
                let lists = Attributes(&message.attributes).filter(|(kind, _)| *kind == LIST_ELEMENTS);
                for (_, element) in lists.flat_map(|(_, list)| Attributes(list)) {
                    let expiration = Attributes(element).find(|(kind, _)| *kind == ELEMENT_EXPIRATION);
                    let milliseconds = expiration.and_then(|(_, value)| value.try_into().ok());
                    let rest = milliseconds
                        .map_or(Duration::MAX, |bytes| Duration::from_millis(u64::from_be_bytes(bytes)));
                    longest = longest.max(Some(rest));
                }
            }
        }
        Ok(longest)
    }

    /// The broker's sets whose elements have timeouts, each with the family of its table.
    fn sets(&mut self) -> io::Result<Vec<(u8, Vec<u8>)>> {
        let mut sets = Vec::new();
        for Message { family, attributes } in self.dump(GET_SETS, 0, &[])? {
            let find = |wanted: u16| Attributes(&attributes).find(|(kind, _)| *kind == wanted);
            let flags = find(SET_FLAGS).and_then(|(_, value)| value.try_into().ok());
            let has_timeouts = flags.is_some_and(|flags| u32::from_be_bytes(flags) & WITH_TIMEOUT != 0);
            if has_timeouts && find(SET_TABLE).is_some_and(|(_, name)| name == TABLE) {
                sets.extend(find(SET_NAME).map(|(_, name)| (family, name.to_owned())));
            }
        }
        Ok(sets)
    }

    fn dump(&mut self, kind: u16, family: u8, attributes: &[u8]) -> io::Result<Vec<Message>> {
        let length = u32::try_from(20 + attributes.len()).unwrap();
        let mut request = length.to_ne_bytes().to_vec();
        request.extend([kind.to_ne_bytes(), NLM_F_REQUEST_DUMP.to_ne_bytes()].concat());
        request.extend([0; 8]); // sequence and port
        request.extend([family, 0, 0, 0]);
        request.extend(attributes);
        assert_eq!(self.0.write(&request)?, request.len());
        let mut messages = Vec::new();
        let mut buffer = vec![0; 64 * 1024];
        loop {
            let length = self.0.read(&mut buffer)?;
            let mut rest = &buffer[..length];
            while let Some((header, _)) = rest.split_first_chunk::<16>() {
                let size = u32::from_ne_bytes([header[0], header[1], header[2], header[3]]) as usize;
                let body = rest.get(16..size).unwrap_or_default();
                match u16::from_ne_bytes([header[4], header[5]]) {
                    NLMSG_DONE => return Ok(messages),
                    NLMSG_ERROR => {
                        let code = body.first_chunk().map_or(0, |code| i32::from_ne_bytes(*code));
                        return Err(io::Error::from_raw_os_error(-code));
                    }
                    _ => messages.extend(body.split_first_chunk::<4>().map(|(head, attributes)| Message {
                        family: head[0],
                        attributes: attributes.to_owned(),
                    })),
                }
                rest = rest.get(size.next_multiple_of(4)..).unwrap_or_default();
            }
        }
    }
}

fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let length = u16::try_from(4 + value.len()).unwrap();
    let mut bytes = [length.to_ne_bytes(), kind.to_ne_bytes()].concat();
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

/// The attributes in these bytes, each with its type and value.
struct Attributes<'a>(&'a [u8]);

impl<'a> Iterator for Attributes<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let head = self.0.first_chunk::<4>()?;
        let length = usize::from(u16::from_ne_bytes([head[0], head[1]]));
        let kind = u16::from_ne_bytes([head[2], head[3]]) & TYPE;
        let value = self.0.get(4..length)?;
        self.0 = self.0.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    }
}

#[derive(Default)]
struct Shared {
    is_stopped: AtomicBool,
    samples: Mutex<Vec<FenceSample>>,
}

/// A running recording of all nodes' fences.
pub struct Fences {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Fences {
    /// Starts to read. Times are counted from `origin`.
    pub fn record(origin: Instant) -> Self {
        let shared = Arc::new(Shared::default());
        let mut kernels: Vec<Kernel> = NODES.iter().map(|host| Kernel::of(host)).collect();
        let thread = std::thread::spawn({
            let shared = Arc::clone(&shared);
            move || {
                while !shared.is_stopped.load(Ordering::Relaxed) {
                    for (node, kernel) in kernels.iter_mut().enumerate() {
                        // Read before the elements, so that the computed end is not after the real one.
                        let at = origin.elapsed();
                        // A table that changes meanwhile is read again the next time.
                        if let Ok(Some(rest)) = kernel.longest() {
                            let sample = FenceSample { at, node, end: at.saturating_add(rest) };
                            shared.samples.lock().unwrap().push(sample);
                        }
                    }
                    std::thread::sleep(INTERVAL);
                }
            }
        });
        Self { shared, thread: Some(thread) }
    }

    /// The samples so far. A node of which the kernel lets no packet pass has none.
    pub fn samples(&self) -> Vec<FenceSample> {
        self.shared.samples.lock().unwrap().clone()
    }
}

impl Drop for Fences {
    fn drop(&mut self) {
        self.shared.is_stopped.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join(); // its panic has been printed
        }
    }
}
