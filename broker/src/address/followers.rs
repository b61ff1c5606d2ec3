//! Which addresses follow which: a follower is added and removed with its leader. Data only.

use std::collections::HashMap;
use std::net::IpAddr;

/// The followers of each leader.
#[derive(Debug, Default)]
pub(super) struct Followers(HashMap<IpAddr, Vec<IpAddr>>);

impl Followers {
    /// The followers of an address.
    pub fn of(&self, leader: IpAddr) -> &[IpAddr] {
        self.0.get(&leader).map(Vec::as_slice).unwrap_or_default()
    }

    /// Adds an address to the followers of its leader, if it has one.
    pub fn insert(&mut self, leader: Option<IpAddr>, follower: IpAddr) {
        if let Some(leader) = leader {
            self.0.entry(leader).or_default().push(follower);
        }
    }

    /// Removes an address from the followers of its leader, if it has one.
    pub fn remove(&mut self, leader: Option<IpAddr>, follower: IpAddr) {
        let Some(leader) = leader else { return };
        if let Some(followers) = self.0.get_mut(&leader) {
            followers.retain(|other| *other != follower);
            if followers.is_empty() {
                self.0.remove(&leader);
            }
        }
    }
}
