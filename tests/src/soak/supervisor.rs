//! The broker of a soak, kept as a service manager keeps it: ended in every way, cleared up after, started again.

use std::path::Path;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};

use super::configuration::{Configuration, Reach};
use super::ledger::Ledger;
use super::tables;
use crate::wait::TIMEOUT;
use crate::{Broker, Host, eventually, process};

/// How the broker ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// It is killed, and the worker lives on for a while.
    Killed,
    /// Its launcher is killed: it ends by itself.
    Launcher,
    /// All three are killed at once.
    All,
    /// It is asked to.
    Asked,
}

/// Who keeps it.
pub struct Supervisor<'a> {
    pub(super) host: &'a Host,
    pub(super) ledger: &'a Ledger,
    pub(super) configuration: Configuration,
    pub(super) config: String,
    /// How far the configuration goes.
    pub reach: Reach,
    pub(super) broker: Option<Broker>,
}

impl<'a> Supervisor<'a> {
    /// Starts the first broker, whose peers are these users.
    pub fn start(host: &'a Host, ledger: &'a Ledger, users: &[u32]) -> Self {
        let (mut configuration, reach) = (Configuration::new(host, users), Reach::Plain);
        let config = configuration.text(reach);
        let broker = Some(Broker::start_with_log_file(host, &config));
        let supervisor = Self { host, ledger, configuration, config, reach, broker };
        supervisor.await_worker();
        supervisor
    }

    /// The broker that runs.
    pub fn broker(&self) -> &Broker {
        self.broker.as_ref().unwrap()
    }

    /// Kills the worker, and returns when the next one runs.
    pub fn end_worker(&self) {
        let (launcher, worker) = (self.broker().launcher(), self.broker().worker());
        self.ledger.worker_ends.begin();
        kill(worker, Signal::KILL);
        eventually("the next worker", || process::children(launcher).into_iter().find(|pid| *pid != worker));
        self.ledger.worker_ends.end();
        self.ledger.count("workers killed");
    }

    /// Stops the worker for a while: nobody is served, and nobody is refused.
    pub fn hold_worker(&self, time: Duration) {
        let worker = self.broker().worker();
        process::suspend(worker);
        std::thread::sleep(time);
        kill(worker, Signal::CONT);
        self.ledger.count("workers held");
    }

    /// Ends the broker, waits for a while in which whatever is left serves on, clears up, and starts the next one.
    pub fn end_broker(&mut self, how: End, pause: Duration) {
        // A worker that has just been started has nothing to serve on yet without its broker.
        self.await_worker();
        let mut broker = self.broker.take().unwrap();
        let rest = [broker.worker(), broker.launcher(), broker.reader()];
        let ledger = self.ledger;
        ledger.broker_ends.begin();
        match how {
            End::Killed => broker.signal(Signal::KILL),
            // A broker that ends by itself takes its listeners out of service.
            End::Launcher | End::Asked => {
                ledger.worker_ends.begin();
                ledger.closed.begin();
                match how {
                    End::Asked => broker.signal(Signal::TERM),
                    _ => kill(rest[1], Signal::KILL),
                }
            }
            End::All => {
                ledger.worker_ends.begin();
                ledger.closed.begin();
                broker.signal(Signal::KILL);
                rest.iter().for_each(|pid| kill(*pid, Signal::KILL));
            }
        }
        let status = broker.wait_for_exit();
        if status.success() != (how == End::Asked) {
            ledger.violation(format_args!("the broker ended with {status} ({how:?})"));
        }
        if how == End::Killed {
            // The worker serves what it has without it.
            std::thread::sleep(pause);
            if !process::is_running(rest[0]) {
                ledger.violation("the worker ended with its broker");
            }
            ledger.worker_ends.begin();
            ledger.closed.begin();
        }
        kill(rest[0], Signal::KILL);
        // Launcher and reader have nobody to look after or to answer any more and leave by themselves.
        rest.iter().for_each(|pid| self.await_end(*pid));
        drop(broker);
        ledger.next_generation();
        self.broker = Some(Broker::start_with_log_file(self.host, &self.config));
        self.await_worker();
        ledger.closed.end();
        ledger.worker_ends.end();
        ledger.broker_ends.end();
        ledger.count(match how {
            End::Killed => "brokers killed",
            End::Launcher => "launchers killed",
            End::All => "all three killed",
            End::Asked => "brokers asked to end",
        });
    }

    /// Waits until a process is gone, by its parent or, where that is gone, by this process.
    pub(super) fn await_end(&self, pid: u32) {
        let end = Instant::now() + TIMEOUT;
        while Path::new(&format!("/proc/{pid}")).exists() {
            let _not_a_child = waitpid(Pid::from_raw(pid.cast_signed()), WaitOptions::NOHANG);
            if Instant::now() > end {
                self.ledger.violation(format_args!("{} outlived its broker", tables::name(pid)));
                kill(pid, Signal::KILL);
                return;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Returns when the worker serves on both its listeners.
    pub fn await_worker(&self) {
        for port in super::clients::SERVED {
            eventually("a worker that serves", || {
                let mut client = std::net::TcpStream::connect(("127.0.0.1", port)).ok()?;
                client.set_read_timeout(Some(TIMEOUT)).ok()?;
                let length = std::io::Read::read(&mut client, &mut [0; 64]).ok()?;
                (length > 0).then_some(())
            });
        }
    }

    /// Asks the broker to end for good, and returns when nothing of it is left.
    pub fn stop(mut self) {
        let mut broker = self.broker.take().unwrap();
        let rest = [broker.worker(), broker.launcher(), broker.reader()];
        let status = broker.terminate();
        if !status.success() {
            self.ledger.violation(format_args!("the broker ended with {status}"));
        }
        rest.iter().for_each(|pid| self.await_end(*pid));
    }

    /// The processes that belong here: process 1, this one, broker, launcher, worker and reader.
    pub fn family(&self) -> [u32; 6] {
        let broker = self.broker();
        [1, std::process::id(), broker.pid(), broker.launcher(), broker.worker(), broker.reader()]
    }
}

/// Sends a signal to a process.
pub(super) fn kill(pid: u32, signal: Signal) {
    // It may have gone by itself: what is asked for is that it is gone.
    let _gone_already = kill_process(Pid::from_raw(pid.cast_signed()).unwrap(), signal);
}
