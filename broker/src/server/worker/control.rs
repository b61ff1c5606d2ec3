//! The state of the worker as peers see it, and what peers request of its supervision.
//!
//! Promise: each signal that the launcher is ordered to send has one result, in the same order.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use portreeve_protocol::worker::WorkerStatus;
use portreeve_protocol::{Fault, FaultCode, Text};
use tokio::sync::{Notify, oneshot};

/// What the supervision does with the worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// It starts the worker, or waits until it can.
    Starting,
    /// The worker runs.
    Running,
    /// It has told the worker to exit.
    Stopping,
    /// The worker has exited and is started again at this time.
    Waiting(Instant),
}

/// The sender of a request, who waits for the result.
pub type ReplyTo<T> = oneshot::Sender<T>;
/// The sender of a signal, who waits for the worker's process id.
pub type SignalReply = ReplyTo<Result<u32, Fault>>;

/// A request to the supervision.
pub enum Command {
    /// Start the worker again, and reply when it runs.
    Restart(ReplyTo<()>),
    /// Send a signal, and reply with the process id.
    Signal(i32, SignalReply),
}

/// See the module.
pub struct WorkerControl {
    state: Cell<(State, Instant)>,
    /// 0 while none runs.
    pid: Cell<u32>,
    restarts: Cell<u32>,
    last_ending: RefCell<String>,
    left: Cell<u32>,
    commands: RefCell<VecDeque<Command>>,
    arrived: Notify,
    /// Who waits for the result of a signal; `None` for a signal of the supervision itself.
    signals: RefCell<VecDeque<Option<SignalReply>>>,
}

impl Default for WorkerControl {
    fn default() -> Self {
        Self {
            state: Cell::new((State::Starting, Instant::now())),
            pid: Cell::default(),
            restarts: Cell::default(),
            last_ending: RefCell::default(),
            left: Cell::default(),
            commands: RefCell::default(),
            arrived: Notify::new(),
            signals: RefCell::default(),
        }
    }
}

impl WorkerControl {
    /// The worker's process id, while it runs.
    pub fn pid(&self) -> Option<u32> {
        Some(self.pid.get()).filter(|pid| *pid != 0)
    }

    /// How often the worker was started again.
    pub fn restarts(&self) -> u32 {
        self.restarts.get()
    }

    pub(super) fn set_state(&self, state: State) {
        self.state.set((state, Instant::now()));
    }

    /// Records that the worker runs.
    pub(super) fn running(&self, pid: u32, restarts: u32) {
        self.pid.set(pid);
        self.restarts.set(restarts);
        self.set_state(State::Running);
    }

    /// Records that the worker has exited.
    pub(super) fn exited(&self, ending: String) {
        self.pid.set(0);
        *self.last_ending.borrow_mut() = ending;
    }

    pub fn set_left(&self, count: u32) {
        self.left.set(count);
    }

    /// The state as a peer gets it.
    pub fn status(&self) -> WorkerStatus {
        let (state, since) = self.state.get();
        let (word, next_start) = match state {
            State::Starting => ("starting", Duration::ZERO),
            State::Running => ("running", Duration::ZERO),
            State::Stopping => ("stopping", Duration::ZERO),
            State::Waiting(start) => ("waiting", start.saturating_duration_since(Instant::now())),
        };
        let milliseconds = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        WorkerStatus {
            state: Text::truncated(word),
            state_ms: milliseconds(since.elapsed()),
            pid: self.pid.get(),
            restarts: self.restarts.get(),
            next_start_ms: milliseconds(next_start),
            last_ending: Text::truncated(&self.last_ending.borrow()),
            left: self.left.get(),
        }
    }

    /// Passes a request to the supervision.
    fn push(&self, command: Command) {
        self.commands.borrow_mut().push_back(command);
        self.arrived.notify_one();
    }

    /// Starts the worker again, and waits until it runs.
    pub async fn restart(&self) -> Result<WorkerStatus, Fault> {
        let (reply, result) = oneshot::channel();
        self.push(Command::Restart(reply));
        result.await.map_err(|_| stopping())?;
        Ok(self.status())
    }

    /// Sends a signal to the worker. Returns its process id.
    pub async fn signal(&self, signal: i32) -> Result<u32, Fault> {
        let (reply, result) = oneshot::channel();
        self.push(Command::Signal(signal, reply));
        result.await.map_err(|_| stopping())?
    }

    /// The next request. Nothing is lost if the wait is cancelled.
    pub(super) async fn next_command(&self) -> Command {
        loop {
            let command = self.commands.borrow_mut().pop_front();
            match command {
                Some(command) => return command,
                None => self.arrived.notified().await,
            }
        }
    }

    /// Records that the launcher was ordered to send a signal.
    pub(super) fn signal_ordered(&self, reply: Option<SignalReply>) {
        self.signals.borrow_mut().push_back(reply);
    }

    /// Records the result of the oldest such order: the process id and the error, 0 for none.
    pub(super) fn signal_sent(&self, pid: i32, errno: i32) {
        let Some(Some(reply)) = self.signals.borrow_mut().pop_front() else { return };
        let result = match Errno::from_raw(errno) {
            _ if errno == 0 => Ok(u32::try_from(pid).unwrap_or(0)),
            Errno::ESRCH => Err(not_running()),
            error => Err(Fault::new(FaultCode::Os, &format!("cannot send the signal: {}", error.desc()))
                .subject("kill")
                .errno(errno)),
        };
        let _ = reply.send(result); // the peer may have hung up
    }
}

/// The fault while no worker runs.
pub(super) fn not_running() -> Fault {
    Fault::new(FaultCode::NotFound, "no worker runs at the moment")
        .subject("worker")
        .remedy("portreeve worker status shows when it is started again")
}

fn stopping() -> Fault {
    Fault::new(FaultCode::Busy, "the broker is stopping").remedy("send the request to the next broker")
}
