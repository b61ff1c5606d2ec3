//! A supervisor without a runtime: answers the binds of one program over a session with the broker.
//!
//! The caller waits until one of [`Supervisor::descriptors`] is readable or [`Supervisor::timeout`] has passed, and then calls
//! [`Supervisor::proceed`].
//!
//! Promises: nothing here blocks. One call of the program is answered at a time, and the next ones wait in the kernel, so what the
//! program does takes a bounded part of the caller's time and memory.

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixDatagram;
use std::time::{Duration, Instant};

use portreeve_protocol::channel::{self, ReceiveError};
use portreeve_protocol::event::Subscribe;
use portreeve_protocol::message::{Features, Hello, Listen, ListenMode, ListenOptions, Operation};
use portreeve_protocol::policy::{PolicyPage, PolicyRequest};
use portreeve_protocol::{Event, EventCode, Fault, FaultCode, Header, Kind, Text, Trailing, codec};

use crate::decision::Request;
use crate::errno::{NO_REPLY, errno};
use crate::notifications::{Bind, Call, Next, Notifications, Unreadable, Verdict};
use crate::rules::Rules;

/// How long a call waits for the broker.
const PATIENCE: Duration = Duration::from_secs(5);
/// How many calls are looked at before the caller gets its turn again.
const MAX_CALLS: usize = 64;

/// The supervisor of one program.
#[derive(Debug)]
pub struct Supervisor {
    notifications: Notifications,
    channel: UnixDatagram,
    /// Whether the broker's end is open.
    is_open: bool,
    last_request: u32,
    rules: Rules,
    /// Whether the policy may have changed since the rules were read.
    stale: bool,
    pending: Option<Pending>,
    incoming: Box<[u8]>,
    outgoing: Box<[u8]>,
    /// The first call that could not be looked at.
    unreadable: FirstUnreadable,
}

/// A call that waits for a reply of the broker.
#[derive(Debug)]
struct Pending {
    request: u32,
    until: Instant,
    wait: Wait,
}

#[derive(Debug)]
enum Wait {
    /// For a page of the policy.
    Policy { call: Call, after: u32, rules: Rules },
    /// For a listener.
    Listener(Box<Bind>),
}

#[derive(Debug)]
enum FirstUnreadable {
    None,
    New(Unreadable),
    Taken,
}

/// Whether the program can call again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// It can.
    Continues,
    /// No process has the filter any more.
    Ended,
}

impl Supervisor {
    /// Opens the session. `name` identifies the program in the broker's logs.
    ///
    /// # Errors
    /// The channel cannot be made non-blocking.
    pub fn new(notifications: Notifications, channel: OwnedFd, name: &str) -> io::Result<Self> {
        let channel = UnixDatagram::from(channel);
        channel.set_nonblocking(true)?;
        let mut supervisor = Self {
            notifications,
            channel,
            is_open: true,
            last_request: 0,
            rules: Rules::default(),
            stale: true,
            pending: None,
            incoming: codec::frame_buffer(),
            outgoing: codec::frame_buffer(),
            unreadable: FirstUnreadable::None,
        };
        // Their replies say nothing that is needed here. Without a session every later request fails.
        let _ = supervisor.send(&Hello { client: Text::truncated(name), features: Features::LISTEN_MODE });
        let _ = supervisor.send(&Subscribe { follow: true, all: false }); // as above
        Ok(supervisor)
    }

    /// The descriptors to wait for.
    pub fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let notifications = self.pending.is_none().then(|| self.notifications.as_fd());
        let channel = self.is_open.then(|| self.channel.as_fd());
        notifications.into_iter().chain(channel)
    }

    /// When to call [`Supervisor::proceed`] even if nothing is readable.
    pub fn timeout(&self) -> Option<Instant> {
        self.pending.as_ref().map(|pending| pending.until)
    }

    /// The first call that could not be looked at, once. Each such call is carried out by the kernel.
    pub fn take_unreadable(&mut self) -> Option<String> {
        let FirstUnreadable::New(unreadable) = &self.unreadable else { return None };
        let text = unreadable.to_string();
        self.unreadable = FirstUnreadable::Taken;
        Some(text)
    }

    /// Answers what can be answered now.
    ///
    /// # Errors
    /// The notifications cannot be received.
    pub fn proceed(&mut self) -> io::Result<Progress> {
        self.receive();
        if self.pending.as_ref().is_some_and(|pending| pending.until <= Instant::now()) {
            self.fail();
        }
        for _ in 0..MAX_CALLS {
            if self.pending.is_some() {
                break;
            }
            match self.notifications.next()? {
                Next::Call(call) => self.handle(call),
                Next::Nothing => break,
                Next::Ended => return Ok(Progress::Ended),
            }
        }
        Ok(Progress::Continues)
    }

    fn handle(&mut self, call: Call) {
        match self.stale {
            true => self.read_rules(call, 0, Rules::default()),
            false => self.judge(call),
        }
    }

    fn judge(&mut self, call: Call) {
        match self.notifications.examine(call, &self.rules) {
            Verdict::Pass => self.notifications.pass(call),
            Verdict::Done => self.notifications.succeed(call),
            Verdict::Unreadable(unreadable) => {
                if matches!(self.unreadable, FirstUnreadable::None) {
                    self.unreadable = FirstUnreadable::New(unreadable);
                }
                self.notifications.pass(call);
            }
            // The broker logs what it does not permit.
            Verdict::Listen(bind) | Verdict::NotPermitted(bind) => {
                let sent = listen(&bind.request).and_then(|listen| self.send(&listen));
                self.wait(sent, Wait::Listener(bind));
            }
        }
    }

    fn read_rules(&mut self, call: Call, after: u32, rules: Rules) {
        let sent = self.send(&PolicyRequest { after });
        self.wait(sent, Wait::Policy { call, after, rules });
    }

    /// Waits for the reply to a request, if it was sent.
    fn wait(&mut self, request: Option<u32>, wait: Wait) {
        self.pending =
            Some(Pending { request: request.unwrap_or(0), until: Instant::now() + PATIENCE, wait });
        if request.is_none() {
            self.fail();
        }
    }

    /// Answers the call that waits without a reply of the broker.
    fn fail(&mut self) {
        match self.pending.take().map(|pending| pending.wait) {
            // By the rules that are known.
            Some(Wait::Policy { call, .. }) => self.judge(call),
            Some(Wait::Listener(bind)) => self.notifications.refuse(bind.call(), NO_REPLY),
            None => {}
        }
    }

    /// Sends a request and returns its number; `None` if the broker has gone or takes no more requests.
    fn send<O: Operation>(&mut self, request: &O) -> Option<u32> {
        let number = self.last_request.checked_add(1).unwrap_or(1);
        let frame = codec::encode(&mut self.outgoing, O::KIND, number, 0, request).ok()?;
        channel::send_bytes(&self.channel, frame).ok()?;
        self.last_request = number;
        Some(number)
    }

    /// Handles every frame that has arrived.
    fn receive(&mut self) {
        while self.is_open {
            let mut descriptors = Vec::new();
            let received = channel::receive(&self.channel, &mut self.incoming, &mut descriptors);
            let length = match received {
                Ok(packet) => packet.bytes,
                Err(ReceiveError::Os(error)) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(ReceiveError::Os(error)) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(_) => 0,
            };
            let incoming = std::mem::take(&mut self.incoming);
            let frame = Header::decode(incoming.get(..length).unwrap_or_default());
            let ends = |header: &Header| header.request == 0 && header.kind == Kind::FAULT;
            match frame {
                Ok((header, body)) if !ends(&header) => self.handle_frame(header, body, descriptors),
                _ => {
                    self.is_open = false;
                    self.fail();
                }
            }
            self.incoming = incoming;
        }
    }

    fn handle_frame(&mut self, header: Header, body: &[u8], descriptors: Vec<OwnedFd>) {
        if header.kind == Kind::EVENT {
            let event = codec::decode::<Event>(body).map(|event| event.code);
            // After a gap, the one that is missing may be a reload.
            self.stale |= matches!(event, Ok(EventCode::Reloaded | EventCode::Gap) | Err(_));
            return;
        }
        // A reply that came too late belongs to no call.
        let Some(pending) = self.pending.take_if(|pending| pending.request == header.request) else { return };
        match pending.wait {
            Wait::Policy { call, after, rules } => self.handle_policy(call, after, rules, &header, body),
            Wait::Listener(bind) => self.handle_listener(&bind, &header, body, descriptors),
        }
    }

    fn handle_policy(&mut self, call: Call, after: u32, mut rules: Rules, header: &Header, body: &[u8]) {
        let page = Some(header).filter(|header| header.kind == PolicyRequest::KIND.reply());
        let Some(page) = page.and_then(|_| codec::decode::<PolicyPage>(body).ok()) else {
            self.stale = false;
            return self.judge(call);
        };
        page.rules.iter().for_each(|rule| _ = rules.add(&rule.text));
        // Row numbers only increase.
        if page.next > after {
            return self.read_rules(call, page.next, rules);
        }
        self.rules = rules;
        self.stale = false;
        self.judge(call);
    }

    fn handle_listener(&mut self, bind: &Bind, header: &Header, body: &[u8], descriptors: Vec<OwnedFd>) {
        let fault = Some(header).filter(|header| header.kind == Kind::FAULT);
        let fault = fault.and_then(|_| codec::decode::<Fault>(body).ok());
        let error = match (fault, descriptors.first()) {
            (None, Some(socket)) => match self.notifications.answer(bind, socket.as_fd()) {
                Ok(_) => return,
                Err(error) => error.raw_os_error().unwrap_or(libc::EACCES),
            },
            (Some(fault), _) if fault.code == FaultCode::Denied => {
                self.stale = true;
                return self.notifications.pass(bind.call());
            }
            (Some(fault), _) => errno(&fault),
            // This process has too many open files.
            (None, None) => NO_REPLY,
        };
        self.notifications.refuse(bind.call(), error);
    }
}

/// The request for a listener; `None` if the name of its device is too long for one.
fn listen(request: &Request) -> Option<Listen> {
    let options = ListenOptions {
        reuse_port: request.reuse_port,
        dual_stack: request.dual_stack,
        free_bind: request.free_bind,
        device: Text::new(request.device.as_deref().unwrap_or_default()).ok()?,
        ..ListenOptions::default()
    };
    let mode = Trailing(Some(ListenMode { kept: true, intercepted: true }));
    Some(Listen { endpoint: request.endpoint.clone(), options, mode })
}
