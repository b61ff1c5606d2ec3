//! Requests to the engine, and what their replies mean.

use std::sync::Arc;

use super::{Action, Node, Purpose, READ_INTERVAL, Request, Stage};
use crate::core::news::{Kind, News};
use crate::core::patience::{self, Ring};
use crate::core::record::{Entry, Key};
use crate::core::state::State;
use crate::core::txn::{Compare, NoReply, Operation, Reply, Txn};

impl Node {
    pub(super) fn send(&mut self, purpose: Purpose, mut txn: Txn) {
        if !self.rules.compare_sessions && matches!(purpose, Purpose::Claim(_) | Purpose::Grant(_)) {
            txn.compare.retain(|compare| {
                let (Compare::Value(key, _) | Compare::Created(key, _) | Compare::NotCreated(key, _)) =
                    compare;
                !matches!(key, Key::Beat(_))
            });
        }
        if !self.rules.compare_unchanged && !matches!(purpose, Purpose::Beat) {
            txn.compare.retain(|compare| {
                !matches!(compare, Compare::Value(..) | Compare::Created(Key::Claim(_), _))
            });
        }
        self.last_id += 1;
        let puts = txn.success.iter().filter(|operation| !matches!(operation, Operation::Get(_)));
        let request = Request { purpose, floor: self.state.revision, puts: puts.cloned().collect() };
        self.requests.insert(self.last_id, request);
        self.out.push(Action::Txn(self.last_id, txn));
    }

    pub(super) fn is_sent(&self, purpose: &Purpose) -> bool {
        self.requests.values().any(|request| request.purpose == *purpose)
    }

    pub(super) fn read(&mut self) {
        let at = self.read_at;
        if self.is_due(at) && !self.is_sent(&Purpose::Read) {
            self.read_at = self.now.after(READ_INTERVAL);
            self.last_id += 1;
            let request = Request { purpose: Purpose::Read, floor: self.state.revision, puts: Vec::new() };
            self.requests.insert(self.last_id, request);
            self.out.push(Action::Read(self.last_id));
        }
    }

    pub(super) fn engine_replied(&mut self, id: u64, reply: Result<Reply, NoReply>) {
        let Some(request) = self.requests.remove(&id) else { return };
        let reply = reply.ok();
        self.add_reply(&request.purpose, reply.is_some());
        if let Some(reply) = &reply {
            self.patience.answered(self.now, patience::settle(self.config.heartbeat));
            let is_older = |entry: &Arc<Entry>| self.state.contradicts(request.floor, entry);
            if self.rules.notice_regress
                && (reply.revision < request.floor || reply.entries.iter().any(is_older))
            {
                self.start_over();
                return;
            }
            let entries: &[Arc<Entry>] = if request.purpose == Purpose::Read { &[] } else { &reply.entries };
            entries.iter().for_each(|entry| self.learn(entry));
            if reply.succeeded {
                let written = |operation: &Operation| match operation {
                    Operation::Put(key, text) => {
                        let created = match self.state.get(key) {
                            Some(known) => known.created,
                            None => reply.revision,
                        };
                        Some(Entry::decode(key.clone(), created, reply.revision, Arc::clone(text)))
                    }
                    Operation::Delete(key) => Some(Entry::deleted(key.clone(), reply.revision)),
                    Operation::Get(_) => None,
                };
                let written: Vec<Entry> = request.puts.iter().filter_map(written).collect();
                written.into_iter().for_each(|entry| self.learn(&Arc::new(entry)));
            }
            self.state.revision = self.state.revision.max(reply.revision);
        }
        let succeeded = reply.as_ref().is_some_and(|reply| reply.succeeded);
        match request.purpose {
            Purpose::Read => match reply {
                Some(reply) => {
                    let before = self.news.is_some().then(|| self.state.clone());
                    let news = self.state.replace(reply.revision, &reply.entries);
                    for entry in &news {
                        if let Some(before) = &before {
                            self.add_change(before.get(&entry.key).map(Arc::as_ref), entry);
                        }
                        self.note(None, entry);
                    }
                    self.is_loaded = true;
                    self.promises.has_read(reply.revision);
                }
                None => self.read_at = self.now,
            },
            Purpose::Beat => self.beat_replied(reply.as_ref()),
            Purpose::Leave if succeeded => self.stage = Stage::Left,
            Purpose::Grant(addresses) => {
                for address in addresses {
                    self.moves.remove(&address);
                }
                self.plan_again(reply.is_some() && !succeeded);
            }
            Purpose::Claim(_) => self.plan_again(reply.is_some() && !succeeded),
            // It compares nothing but that the session lives.
            Purpose::Record if reply.is_some() && !succeeded => self.session_is_over(),
            Purpose::Look
            | Purpose::Leave
            | Purpose::Evict(_)
            | Purpose::Record
            | Purpose::Declare
            | Purpose::Unpin(_) => {}
        }
    }

    /// The engine was restored from a backup, or lost what it knew.
    pub(super) fn start_over(&mut self) {
        if self.is_loaded {
            self.add_news(|| News::new(Kind::EngineReset, ""));
        }
        self.requests.clear();
        self.state = State::default();
        self.patience.forget();
        self.promises.start_over();
        self.ring = Ring::default();
        self.monitored = Vec::new();
        self.watch += 1;
        self.out.push(Action::Watch(self.watch));
        (self.is_loaded, self.is_declared, self.read_at) = (false, false, self.now);
        self.lose_session();
    }
}
