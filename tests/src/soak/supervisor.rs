//! The supervisor of the broker under test: it ends the broker in every way, cleans up as a service manager does, and
//! starts the next one.

use std::path::Path;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};

use super::configuration::{Configuration, Variant};
use super::kernel_state;
use super::model::Model;
use crate::wait::TIMEOUT;
use crate::{Broker, Host, eventually, process};

/// How the broker ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Termination {
    /// The broker is killed, and the worker lives on for a while.
    KillBroker,
    /// The launcher is killed; the broker then ends by itself.
    KillLauncher,
    /// The broker, the launcher, the worker and the reader are killed at once.
    KillAll,
    /// The broker gets SIGTERM.
    Graceful,
}

/// See the module.
pub struct Supervisor<'a> {
    pub(super) host: &'a Host,
    pub(super) model: &'a Model,
    pub(super) configuration: Configuration,
    pub(super) config: String,
    /// The variant of the configuration in force.
    pub variant: Variant,
    pub(super) broker: Option<Broker>,
}

impl<'a> Supervisor<'a> {
    /// Starts the first broker. `users` are the user ids of its peers.
    pub fn start(host: &'a Host, model: &'a Model, users: &[u32]) -> Self {
        let (mut configuration, variant) = (Configuration::new(host, users), Variant::Base);
        let config = configuration.text(variant);
        let broker = Some(Broker::start_with_log_file(host, &config));
        let supervisor = Self { host, model, configuration, config, variant, broker };
        supervisor.await_worker();
        supervisor
    }

    /// The running broker.
    pub fn broker(&self) -> &Broker {
        self.broker.as_ref().unwrap()
    }

    /// Kills the worker, and returns when the next one runs. Clients of the old one may be disconnected.
    pub fn kill_worker(&self) {
        let (launcher, worker) = (self.broker().launcher(), self.broker().worker());
        self.model.worker_down.begin();
        kill(worker, Signal::KILL);
        eventually("the next worker", || process::children(launcher).into_iter().find(|pid| *pid != worker));
        self.model.worker_down.end();
        self.model.count("workers killed");
    }

    /// Suspends the worker for a while: clients wait, and none is refused.
    pub fn suspend_worker(&self, time: Duration) {
        let worker = self.broker().worker();
        process::suspend(worker);
        std::thread::sleep(time);
        kill(worker, Signal::CONT);
        self.model.count("workers suspended");
    }

    /// Ends the broker, waits while its remaining processes continue to serve, cleans up, and starts the next broker.
    pub fn end_broker(&mut self, how: Termination, pause: Duration) {
        // A worker that has just started still needs its broker to get its listeners.
        self.await_worker();
        let mut broker = self.broker.take().unwrap();
        let rest = [broker.worker(), broker.launcher(), broker.reader()];
        let model = self.model;
        model.broker_down.begin();
        match how {
            Termination::KillBroker => broker.signal(Signal::KILL),
            // A broker that ends by itself disables its listeners.
            Termination::KillLauncher | Termination::Graceful => {
                model.worker_down.begin();
                model.service_down.begin();
                match how {
                    Termination::Graceful => broker.signal(Signal::TERM),
                    _ => kill(rest[1], Signal::KILL),
                }
            }
            Termination::KillAll => {
                model.worker_down.begin();
                model.service_down.begin();
                broker.signal(Signal::KILL);
                rest.iter().for_each(|pid| kill(*pid, Signal::KILL));
            }
        }
        let status = broker.wait_for_exit();
        if status.success() != (how == Termination::Graceful) {
            model.violation(format_args!("the broker ended with {status} ({how:?})"));
        }
        if how == Termination::KillBroker {
            // The worker continues to serve without the broker.
            std::thread::sleep(pause);
            if !process::is_running(rest[0]) {
                model.violation("the worker ended with its broker");
            }
            model.worker_down.begin();
            model.service_down.begin();
        }
        kill(rest[0], Signal::KILL);
        // The launcher and the reader notice that their peers have ended, and exit.
        rest.iter().for_each(|pid| self.await_end(*pid));
        drop(broker);
        model.next_generation();
        self.broker = Some(Broker::start_with_log_file(self.host, &self.config));
        self.await_worker();
        model.service_down.end();
        model.worker_down.end();
        model.broker_down.end();
        model.count(match how {
            Termination::KillBroker => "brokers killed",
            Termination::KillLauncher => "launchers killed",
            Termination::KillAll => "brokers killed with all processes",
            Termination::Graceful => "brokers terminated",
        });
    }

    /// Waits until a process has ended and been reaped, by its parent or, if that has ended, by this process.
    pub(super) fn await_end(&self, pid: u32) {
        let end = Instant::now() + TIMEOUT;
        while Path::new(&format!("/proc/{pid}")).exists() {
            let _ = waitpid(Pid::from_raw(pid.cast_signed()), WaitOptions::NOHANG); // it fails if the process is not a child
            if Instant::now() > end {
                self.model.violation(format_args!("{} outlived its broker", kernel_state::name(pid)));
                kill(pid, Signal::KILL);
                return;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Returns when the worker serves on both of its listeners.
    pub fn await_worker(&self) {
        for port in super::mail_clients::PORTS {
            eventually("a worker that serves", || {
                let mut client = std::net::TcpStream::connect(("127.0.0.1", port)).ok()?;
                client.set_read_timeout(Some(TIMEOUT)).ok()?;
                let length = std::io::Read::read(&mut client, &mut [0; 64]).ok()?;
                (length > 0).then_some(())
            });
        }
    }

    /// Terminates the last broker, and returns when all its processes have ended.
    pub fn stop(mut self) {
        let mut broker = self.broker.take().unwrap();
        let rest = [broker.worker(), broker.launcher(), broker.reader()];
        let status = broker.terminate();
        if !status.success() {
            self.model.violation(format_args!("the broker ended with {status}"));
        }
        rest.iter().for_each(|pid| self.await_end(*pid));
    }

    /// The processes that should exist: process 1, this one, the broker, the launcher, the worker and the reader.
    pub fn expected_processes(&self) -> [u32; 6] {
        let broker = self.broker();
        [1, std::process::id(), broker.pid(), broker.launcher(), broker.worker(), broker.reader()]
    }
}

/// Sends a signal to a process.
pub(super) fn kill(pid: u32, signal: Signal) {
    let _ = kill_process(Pid::from_raw(pid.cast_signed()).unwrap(), signal); // it may have ended already
}
