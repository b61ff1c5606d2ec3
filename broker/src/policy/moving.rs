//! What the configuration ties to an address that moves: the listeners that start when it is added and stop before it
//! goes, and the addresses that follow it. Data only.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;

use portreeve_protocol::Endpoint;

use super::Policy;
use super::rule::RuleId;
use crate::config::{Config, DuraVip, Listener, SocketOptions};

/// What is tied to addresses that move, by their address.
#[derive(Debug, Default)]
pub(super) struct Moving {
    followers: HashMap<IpAddr, Vec<IpAddr>>,
    follows: HashMap<IpAddr, IpAddr>,
    /// All that the configuration declares, with the name of what declares it and the host that should have it.
    pub declared: BTreeMap<IpAddr, (String, String)>,
    listeners: HashMap<IpAddr, Vec<(Endpoint, String, RuleId)>>,
}

/// A listener that starts with its address.
#[derive(Clone, Copy, Debug)]
pub struct MovingListener<'p> {
    /// Where it listens.
    pub endpoint: &'p Endpoint,
    /// Its name in `status`.
    pub name: &'p str,
    /// How its socket is made.
    pub socket: &'p SocketOptions,
}

impl Moving {
    /// Enters the addresses that follow others.
    pub fn follow(&mut self, config: &Config) {
        for (own, leader, _) in config.follows() {
            if self.follows.insert(own, leader).is_none() {
                self.followers.entry(leader).or_default().push(own);
            }
        }
    }

    /// Enters an address that a listener or binding declares to move.
    pub fn declare(&mut self, address: IpAddr, name: String, duravip: &DuraVip) {
        if duravip.floats() {
            let preference = duravip.preference.as_ref().map_or_else(String::new, |host| host.value.clone());
            self.declared.entry(address).or_insert((name, preference));
        }
    }

    /// The address that one follows.
    pub fn leader(&self, address: IpAddr) -> Option<IpAddr> {
        self.follows.get(&address).copied()
    }

    /// Enters the listener of a rule, if it is enabled and its address moves.
    pub fn listener(&mut self, listener: &Listener, rule: RuleId) {
        if let Some(inet) = listener.endpoint.value.inet()
            && listener.socket.enable
            && listener.duravip.floats()
        {
            let endpoint = listener.endpoint.value.clone();
            self.listeners.entry(inet.address).or_default().push((endpoint, listener.name(), rule));
        }
    }
}

impl Policy {
    /// The addresses that follow one: who may have that one may have them with it, and only so.
    pub fn followers(&self, address: IpAddr) -> &[IpAddr] {
        self.moving.followers.get(&address).map(Vec::as_slice).unwrap_or_default()
    }

    /// The listeners that start when an address is added: the worker's, so none where no worker is configured.
    pub fn listeners_at(&self, address: IpAddr) -> impl Iterator<Item = MovingListener<'_>> {
        let listeners = self.moving.listeners.get(&address).map(Vec::as_slice).unwrap_or_default();
        listeners.iter().filter_map(|(endpoint, name, rule)| {
            let socket = self.rule(*rule)?.socket.as_ref()?;
            Some(MovingListener { endpoint, name, socket })
        })
    }

    /// Whether an endpoint starts to listen by itself, once its address is added.
    pub fn starts_with_its_address(&self, endpoint: &Endpoint) -> bool {
        let at = endpoint.inet().map(|inet| self.listeners_at(inet.address));
        at.is_some_and(|mut listeners| listeners.any(|listener| listener.endpoint == endpoint))
    }
}
