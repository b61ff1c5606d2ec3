//! The program: performs the actions that a [`Node`] decides, and reports to it what happens.
//!
//! Promises: one task decides, and never waits for the engine or the broker. A changed configuration, SIGHUP and an upgrade
//! have the same effect: the process executes its program again, which resumes the session, so no address moves.

mod broker;
mod checks;
mod clock;
mod control_socket;
mod engine_files;
mod failure;
mod identity;
mod links;
mod peers;
mod settings;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use sd_notify::NotifyState;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc::{self, UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::{broadcast, oneshot};
use tokio::task::{AbortHandle, spawn_local};

use crate::control::server::{self, Call};
use crate::control::{self, Answer, Response};
use crate::core::decide::{Action, BrokerReply, Facts, Input, Node, Stage};
use crate::core::news::{Event, Journal, Kind, News};
use crate::core::patience;
use crate::core::promise::PromiseReply;
use crate::core::report::{Surroundings, View};
use crate::core::txn::{NoReply, Reply};
use crate::engine::etcd::Etcd;
use crate::engine::etcd::compaction::{Compaction, Round};
use crate::engine::{Engine, Watched};
use broker::{Change, Session};
pub use failure::Failure;
use links::Working;
use peers::{Asked, Peers};
use settings::Settings;

/// The pauses between two watches, at first and at most.
const WATCH_AGAIN: [Duration; 2] = [Duration::from_millis(200), Duration::from_secs(5)];
/// How often each endpoint of the engine is asked for its status, because most requests use only one.
const ASK_ENDPOINTS: Duration = Duration::from_secs(30);
/// The pause after the interfaces could not be read.
const LINKS_AGAIN: Duration = Duration::from_secs(1);

/// The command line.
#[derive(Clone, Debug)]
pub struct Options {
    /// The control socket of the broker.
    pub socket: PathBuf,
    /// The control socket of this program.
    pub control: PathBuf,
}

/// How the program ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The node left the cluster.
    Left,
    /// The program is to be executed again.
    Again,
}

/// What happens.
enum Message {
    Broker(Change),
    /// The broker of that session replied to the call with that number.
    Reply(u64, u64, BrokerReply),
    Engine(u64, Result<Reply, NoReply>),
    Watch(u64, Watched),
    WatchEnded(u64),
    /// Another node asks for a promise.
    Asked(Asked),
    /// Another node replied.
    Promised(PromiseReply),
    Links(Working),
    /// The check with that number fails for a reason, or not any more.
    Check(usize, Option<String>),
    /// SIGTERM or SIGINT.
    Leave,
    /// SIGHUP.
    Again,
    /// The settings of the first session cannot be used.
    Failed(Failure),
}

/// Runs until the program has to end. Needs a [`tokio::task::LocalSet`].
///
/// # Errors
/// The reason that the program cannot run.
pub async fn run(options: &Options) -> Result<End, Failure> {
    identity::require_no_privilege()?;
    let (boot, nonce) = (identity::boot()?, identity::nonce()?);
    let (sender, mut messages) = unbounded_channel();
    watch_signals(&sender)?;
    let path = options.socket.clone();
    let to_loop = sender.clone();
    spawn_local(async move {
        let failure = broker::connect(path, report(&to_loop, Message::Broker)).await;
        send(&to_loop, Message::Failed(failure));
    });
    let Some((session, settings)) = first_session(&mut messages).await? else { return Ok(End::Left) };
    if settings.declared.is_empty() {
        tracing::warn!(
            "the broker allows this user no floating address: add the addresses of the configuration that have \
             enable_duravip to a permit of its peer scope"
        );
    }
    let engine = Etcd::new(settings.etcd()).map_err(|problem| Failure::Config(problem.to_string()))?;
    if settings.engine.compaction {
        let compaction = Compaction::new(engine.clone(), &settings.cluster.nodename);
        tokio::spawn(compaction.run(log_compaction));
    }
    let asked = engine.clone();
    tokio::spawn(async move {
        loop {
            // What it finds out is in the reports about the endpoints.
            let _ = asked.status().await;
            tokio::time::sleep(ASK_ENDPOINTS).await;
        }
    });
    let config = settings.config(boot, nonce);
    tracing::info!(node = %config.name, group = %settings.cluster.group, lease = ?config.lease, heartbeat = ?config.heartbeat,
        late = ?config.late, addresses = config.declared.len(), "starting");
    let mut node = new_node(config);
    node.collect_news();
    let listener = control_socket::listen(&options.control)?;
    let (calls, mut calls_of_peers) = mpsc::channel(server::CALLS);
    let (followers, _) = broadcast::channel(server::FOLLOWED);
    tokio::spawn(server::serve(listener, calls, followers.clone()));
    let peers = Peers::new(settings.peers())
        .map_err(|error| Failure::System("cannot prepare connections to other nodes".to_owned(), error))?;
    if let Some(at) = settings.peer_listen()? {
        let to_loop = sender.clone();
        peers.listen(at, move |asked| send(&to_loop, Message::Asked(asked)));
    }
    let mut daemon = Daemon {
        node,
        engine,
        settings,
        sender,
        session: None,
        sessions: 0,
        watch: None,
        watch_pause: WATCH_AGAIN[0],
        is_watching: false,
        engine_is_lost: false,
        peers,
        asked: None,
        working: Working::new(),
        failed_checks: BTreeMap::new(),
        facts: Facts::default(),
        journal: Journal::default(),
        followers,
        requests: (0, 0),
        stage: Stage::Outside,
        is_again: false,
    };
    daemon.watch_host();
    let status = format!("node {} of {}", daemon.settings.cluster.nodename, daemon.settings.cluster.group);
    let _ = sd_notify::notify(&[NotifyState::Ready, NotifyState::Status(&status)]); // without a service manager there is nobody to notify
    daemon.connected(session);
    daemon.serve(&mut messages, &mut calls_of_peers).await
}

#[cfg(not(debug_assertions))]
fn new_node(config: crate::core::decide::Config) -> Node {
    Node::new(config, clock::now())
}

/// A node of a test may have too little patience, so that the referee has something to find.
#[cfg(debug_assertions)]
fn new_node(config: crate::core::decide::Config) -> Node {
    let full_patience = std::env::var_os("PORTREEVE_TEST_IMPATIENT").is_none();
    let rules = crate::core::rules::Rules { full_patience, ..Default::default() };
    Node::with_rules(config, clock::now(), rules)
}

/// Waits for the first session with a broker; `None`: a signal ends the program before.
async fn first_session(
    messages: &mut UnboundedReceiver<Message>,
) -> Result<Option<(Session, Settings)>, Failure> {
    while let Some(message) = messages.recv().await {
        match message {
            Message::Broker(Change::Connected(session, settings)) => {
                return Ok(Some((session, *settings)));
            }
            Message::Failed(failure) => return Err(failure),
            Message::Leave => break,
            _ => {}
        }
    }
    Ok(None)
}

fn watch_signals(sender: &UnboundedSender<Message>) -> Result<(), Failure> {
    let kinds: [(SignalKind, fn() -> Message); 3] = [
        (SignalKind::terminate(), || Message::Leave),
        (SignalKind::interrupt(), || Message::Leave),
        (SignalKind::hangup(), || Message::Again),
    ];
    for (kind, message) in kinds {
        let mut signals =
            signal(kind).map_err(|error| Failure::System("cannot receive signals".to_owned(), error))?;
        let sender = sender.clone();
        spawn_local(async move {
            while signals.recv().await.is_some() {
                send(&sender, message());
            }
        });
    }
    Ok(())
}

fn send(sender: &UnboundedSender<Message>, message: Message) {
    let _ = sender.send(message); // the loop has ended, and with it the program
}

fn report<T, F: Fn(T) -> Message>(
    sender: &UnboundedSender<Message>,
    message: F,
) -> impl FnMut(T) + use<T, F> {
    let sender = sender.clone();
    move |what| send(&sender, message(what))
}

struct Daemon<E> {
    node: Node,
    engine: E,
    settings: Settings,
    sender: UnboundedSender<Message>,
    /// The session with the broker, and its number.
    session: Option<Session>,
    sessions: u64,
    /// The watch: its number and its task.
    watch: Option<(u64, AbortHandle)>,
    watch_pause: Duration,
    is_watching: bool,
    engine_is_lost: bool,
    peers: Peers,
    /// Takes the reply to the request of another node.
    asked: Option<oneshot::Sender<PromiseReply>>,
    working: Working,
    failed_checks: BTreeMap<usize, String>,
    facts: Facts,
    journal: Journal,
    /// Those who follow the events.
    followers: broadcast::Sender<Event>,
    /// The requests to the engine, and those without a reply.
    requests: (u64, u64),
    stage: Stage,
    /// Whether to execute the program again when the node has left.
    is_again: bool,
}

impl<E: Engine + Clone + 'static> Daemon<E> {
    async fn serve(
        &mut self,
        messages: &mut UnboundedReceiver<Message>,
        calls: &mut mpsc::Receiver<Call>,
    ) -> Result<End, Failure> {
        // Without a watchdog, the notification has no effect.
        let watchdog = sd_notify::watchdog_enabled().map_or(Duration::from_secs(3_600), |limit| limit / 3);
        let mut watchdog = tokio::time::interval(watchdog);
        loop {
            if let Some(end) = self.show_stage()? {
                return Ok(end);
            }
            let wake = self.node.wake();
            tokio::select! {
                () = clock::sleep_until(wake) => self.step(Input::Time),
                Some(message) = messages.recv() => {
                    if let Some(end) = self.handle(message)? {
                        return Ok(end);
                    }
                }
                Some(call) = calls.recv() => self.answer(call),
                _ = watchdog.tick() => {
                    let _ = sd_notify::notify(&[NotifyState::Watchdog]); // as READY=1
                }
            }
        }
    }

    /// Answers a request at the control socket.
    fn answer(&self, call: Call) {
        let around = Surroundings {
            group: self.settings.cluster.group.to_string(),
            is_fenced: self.session.as_ref().and_then(Session::bounds).map(|bounds| bounds.ipv4_fenced),
            endpoints: self.engine.endpoints(),
            requests: self.requests,
        };
        let view = View { node: &self.node, now: clock::now(), journal: &self.journal, around: &around };
        match control::answer(view, unix_ms(), &call.by, call.request.clone()) {
            Answer::Now(response) => call.reply(response),
            Answer::Txn(txn, pending) => {
                let engine = self.engine.clone();
                spawn_local(async move { call.reply(pending.replied(engine.txn(txn).await)) });
            }
            Answer::Check(inspection) => {
                let (engine, settings) = (self.engine.clone(), self.settings.etcd());
                spawn_local(async move {
                    let files = tokio::task::spawn_blocking(move || engine_files::inspect(&settings));
                    let (engine, files) = tokio::join!(engine.inspect(), files);
                    // A task that fails has panicked, and nothing there does.
                    let files = files.unwrap_or_default();
                    let now = i64::try_from(unix_ms() / 1_000).unwrap_or(i64::MAX);
                    call.reply(Response::Checks(Box::new(inspection.judge(&engine, &files, now))));
                });
            }
        }
    }

    fn handle(&mut self, message: Message) -> Result<Option<End>, Failure> {
        match message {
            Message::Broker(Change::Connected(session, settings)) => {
                if let Some(end) = self.reconfigure(*settings) {
                    return Ok(Some(end));
                }
                self.connected(session);
            }
            Message::Broker(Change::Settings(settings)) => return Ok(self.reconfigure(*settings)),
            Message::Broker(Change::Conflict(address, host)) => {
                self.record(vec![News::of_address(Kind::Conflict, address, host)]);
            }
            Message::Broker(Change::Disconnected) => {
                self.session = None;
                self.step(Input::BrokerDown);
            }
            Message::Reply(session, id, reply) => {
                if session == self.sessions && self.session.is_some() {
                    self.step(Input::Broker(id, reply));
                    return Ok(self.check_bounds());
                }
            }
            Message::Engine(id, reply) => {
                self.requests.0 += 1;
                self.requests.1 += u64::from(reply.is_err());
                self.note_engine(reply.is_ok());
                self.step(Input::Engine(id, reply));
            }
            Message::Watch(number, Watched::Started) => {
                tracing::debug!(number, "watching the engine");
                self.is_watching = true;
                self.watch_pause = WATCH_AGAIN[0];
                self.step(Input::WatchLost);
            }
            Message::Watch(number, Watched::Changed(entries)) => self.step(Input::Watch(number, entries)),
            Message::WatchEnded(number) => {
                if self.watch.as_ref().is_some_and(|(current, ..)| *current == number) {
                    tracing::debug!(number, "the watch of the engine ended");
                    self.start_watch(number, self.watch_pause);
                    self.watch_pause = (self.watch_pause * 2).min(WATCH_AGAIN[1]);
                }
            }
            Message::Asked((request, reply)) => {
                self.asked = Some(reply);
                self.step(Input::PromiseAsked(0, request));
                self.asked = None;
            }
            Message::Promised(reply) => self.step(Input::Promised(reply)),
            Message::Links(working) => {
                self.working = working;
                self.tell_facts();
            }
            Message::Check(number, result) => {
                match result {
                    Some(why) => self.failed_checks.insert(number, why),
                    None => self.failed_checks.remove(&number),
                };
                self.tell_facts();
            }
            Message::Leave => {
                tracing::info!("handing the addresses over");
                let _ = sd_notify::notify(&[NotifyState::Stopping]); // as READY=1
                self.step(Input::Stop);
            }
            Message::Again => return Ok(Some(End::Again)),
            Message::Failed(failure) => return Err(failure),
        }
        Ok(None)
    }

    /// When the engine answers again, there is no reason to wait with the next watch.
    fn note_engine(&mut self, has_replied: bool) {
        let is_back = has_replied && self.engine_is_lost;
        self.engine_is_lost = !has_replied;
        let number = self.watch.as_ref().map(|(number, _)| *number);
        if let (true, false, Some(number)) = (is_back, self.is_watching, number) {
            self.start_watch(number, Duration::ZERO);
        }
    }

    fn step(&mut self, input: Input) {
        let now = clock::now();
        for action in self.node.step(now, input) {
            self.perform(action);
        }
        let news = self.node.take_news();
        self.record(news);
    }

    fn record(&mut self, news: Vec<News>) {
        for event in self.journal.record(clock::now(), unix_ms(), news) {
            log(&event);
            let _ = self.followers.send(event); // nobody follows
        }
    }

    fn perform(&mut self, action: Action) {
        let sender = self.sender.clone();
        match action {
            Action::Read(id) => {
                let engine = self.engine.clone();
                spawn_local(async move { send(&sender, Message::Engine(id, engine.read().await)) });
            }
            Action::Txn(id, txn) => {
                let engine = self.engine.clone();
                spawn_local(async move { send(&sender, Message::Engine(id, engine.txn(txn).await)) });
            }
            Action::Watch(number) => self.start_watch(number, Duration::ZERO),
            Action::AskPromise(address, request) => {
                self.peers.ask(address, request, move |reply| send(&sender, Message::Promised(reply)));
            }
            Action::AnswerPromise(_, reply) => {
                if let Some(asked) = self.asked.take() {
                    let _ = asked.send(reply); // the connection has ended
                }
            }
            Action::Broker(id, call) => {
                let (Some(session), number) = (self.session.clone(), self.sessions) else { return };
                tracing::debug!(id, ?call, "calling the broker");
                spawn_local(async move {
                    if let Some(reply) = session.perform(call).await {
                        send(&sender, Message::Reply(number, id, reply));
                    }
                });
            }
        }
    }

    fn start_watch(&mut self, number: u64, pause: Duration) {
        if let Some((_, task)) = self.watch.take() {
            task.abort();
        }
        self.is_watching = false;
        // Each beat reads those of the monitored nodes along. In a large cluster, the others would be most events.
        let with_beats = self.node.state().nodes().count() <= patience::ALL_MONITOR_ALL;
        let (engine, sender) = (self.engine.clone(), self.sender.clone());
        let task = spawn_local(async move {
            tokio::time::sleep(pause).await;
            let to_loop = sender.clone();
            let NoReply = engine
                .watch(with_beats, move |watched| send(&to_loop, Message::Watch(number, watched)))
                .await;
            send(&sender, Message::WatchEnded(number));
        });
        self.watch = Some((number, task.abort_handle()));
    }

    fn connected(&mut self, session: Session) {
        self.session = Some(session);
        self.sessions += 1;
        self.step(Input::BrokerUp);
    }

    /// Compares settings with those in force.
    fn reconfigure(&mut self, settings: Settings) -> Option<End> {
        if settings == self.settings {
            return None;
        }
        let (old, new) = (&self.settings.cluster, &settings.cluster);
        if (&old.group, &old.nodename) == (&new.group, &new.nodename) {
            tracing::info!("the configuration changed");
            return Some(End::Again);
        }
        tracing::info!(
            group = %new.group,
            node = %new.nodename,
            "the node's name or group changed: handing the addresses over"
        );
        (self.settings, self.is_again) = (settings, true);
        self.step(Input::Stop);
        None
    }

    /// The program starts again when the kernel ends leases later than the others count with.
    fn check_bounds(&self) -> Option<End> {
        let bounds = self.session.as_ref()?.bounds()?;
        if bounds == self.settings.bounds || self.is_again {
            return None;
        }
        tracing::warn!(?bounds, "what ends the leases in the kernel changed");
        Some(End::Again)
    }

    fn watch_host(&mut self) {
        let sender = self.sender.clone();
        spawn_local(async move {
            loop {
                let error = links::watch(report(&sender, Message::Links)).await;
                tracing::warn!(%error, "cannot read the states of the interfaces; it is tried again");
                tokio::time::sleep(LINKS_AGAIN).await;
            }
        });
        for (number, check) in self.settings.checks().enumerate() {
            let report = report(&self.sender, move |result| Message::Check(number, result));
            spawn_local(checks::run(check.clone(), report));
        }
    }

    fn tell_facts(&mut self) {
        let facts = self.settings.facts(&self.working, &self.failed_checks);
        if facts != self.facts {
            tracing::info!(sick = ?facts.sick, down = ?facts.down, "the state of the host changed");
            self.facts = facts.clone();
            self.step(Input::Facts(facts));
        }
    }

    /// Notices what the decisions made of the node.
    fn show_stage(&mut self) -> Result<Option<End>, Failure> {
        let stage = self.node.stage();
        if *stage == self.stage {
            return Ok(None);
        }
        let end = match stage {
            Stage::Member => {
                tracing::info!("this node is a member of the cluster");
                None
            }
            Stage::Outside => {
                tracing::warn!("this node has no session any more: its addresses are removed");
                None
            }
            Stage::Left => {
                tracing::info!("this node left the cluster");
                Some(if self.is_again { End::Again } else { End::Left })
            }
            Stage::Refused(why) => return Err(Failure::Config(why.clone())),
        };
        self.stage = stage.clone();
        Ok(end)
    }
}

fn log_compaction(round: Round) {
    match round {
        Round::Compacted(revision) => tracing::info!(revision, "compacted the engine's history"),
        Round::Refused(problem) => {
            tracing::warn!(%problem, "the engine's history is not compacted: its database grows")
        }
        Round::Waits | Round::Noted | Round::NoReply => {}
    }
}

fn unix_ms() -> u64 {
    let time = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// Writes an event to the log. Names and details come from the engine, where other hosts wrote them.
fn log(event: &Event) {
    let news = &event.news;
    let address = news.address.map(tracing::field::display);
    let (node, from) = (news.node.as_deref(), news.from.as_deref());
    let detail = Some(&*news.detail).filter(|detail| !detail.is_empty());
    tracing::info!(address, node, from, epoch = news.epoch, detail, "{}", news.kind.name());
}
