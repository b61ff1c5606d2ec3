//! The listeners and followers of each floating address: the listeners start when it is added and stop before it is removed;
//! the followers are added and removed with it. Data only.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::rc::Rc;

use portreeve_protocol::Endpoint;

use super::rule::RuleId;
use super::{Policy, Requester};
use crate::config::{Config, DuraVip, Listener, SocketOptions};

/// The listeners and followers of floating addresses, by address.
#[derive(Debug, Default)]
pub(super) struct Floating {
    followers: HashMap<IpAddr, Vec<IpAddr>>,
    follows: HashMap<IpAddr, IpAddr>,
    /// Every floating address of the configuration, with the name of the scope that declares it and the preferred host.
    pub declared: BTreeMap<IpAddr, (String, String)>,
    /// The peer that read the policy last, and the floating addresses that it is allowed.
    pub last_allowed: RefCell<Option<(Requester, Rc<[IpAddr]>)>>,
    listeners: HashMap<IpAddr, Vec<(Endpoint, String, RuleId)>>,
}

/// A listener that starts when its address is added.
#[derive(Clone, Copy, Debug)]
pub struct FloatingListener<'p> {
    /// Its endpoint.
    pub endpoint: &'p Endpoint,
    /// Its name in `status`.
    pub name: &'p str,
    /// The options of its socket.
    pub socket: &'p SocketOptions,
}

impl Floating {
    /// Adds the addresses that follow others.
    pub fn add_followers(&mut self, config: &Config) {
        for (follower, leader, _) in config.follows() {
            if self.follows.insert(follower, leader).is_none() {
                self.followers.entry(leader).or_default().push(follower);
            }
        }
    }

    /// Adds the address of a listener or binding, if it is declared as floating.
    pub fn add_address(&mut self, address: IpAddr, name: String, duravip: &DuraVip) {
        if duravip.floats() {
            let preference = duravip.preference.as_ref().map_or_else(String::new, |host| host.value.clone());
            self.declared.entry(address).or_insert((name, preference));
        }
    }

    /// The address that another one follows.
    pub fn leader(&self, address: IpAddr) -> Option<IpAddr> {
        self.follows.get(&address).copied()
    }

    /// Adds the listener of a rule, if it is enabled and its address floats.
    pub fn add_listener(&mut self, listener: &Listener, rule: RuleId) {
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
    /// The addresses that follow one: a peer that is allowed the leader gets its followers with it, and only with it.
    pub fn followers(&self, address: IpAddr) -> &[IpAddr] {
        self.floating.followers.get(&address).map(Vec::as_slice).unwrap_or_default()
    }

    /// The listeners that start when an address is added. They belong to the worker: none if no worker is configured.
    pub fn listeners_at(&self, address: IpAddr) -> impl Iterator<Item = FloatingListener<'_>> {
        let listeners = self.floating.listeners.get(&address).map(Vec::as_slice).unwrap_or_default();
        listeners.iter().filter_map(|(endpoint, name, rule)| {
            let socket = self.rule(*rule)?.socket.as_ref()?;
            Some(FloatingListener { endpoint, name, socket })
        })
    }

    /// Whether the configuration starts a listener on this endpoint when its address is added.
    pub fn starts_with_its_address(&self, endpoint: &Endpoint) -> bool {
        let listeners = endpoint.inet().map(|inet| self.listeners_at(inet.address));
        listeners.is_some_and(|mut listeners| listeners.any(|listener| listener.endpoint == endpoint))
    }
}
