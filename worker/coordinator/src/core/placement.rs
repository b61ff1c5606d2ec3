//! Which node each address belongs to: a pure function of the state, which every node evaluates for itself.
//!
//! A pin decides first, then the preference of the configuration, then the node that holds the address keeps it, and the rest
//! goes to the node with the highest rendezvous hash among those with room. Then addresses move until no node has two
//! more than another that could hold one of them.
//!
//! Promises: no more addresses move than that takes; once they have moved, another run moves nothing.

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::record::{Entry, Name, NodeRecord, NodeState, Phase, Value};
use super::state::State;

/// Why an address belongs to the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Why {
    /// An operator wants it there.
    Pinned,
    /// The configuration prefers the node.
    Preferred,
    /// The node holds it.
    Stays,
    /// The node holds it and should not, but no other node can.
    NobodyElse,
    /// The node has the highest hash among those with room.
    Hash,
    /// The node has fewer addresses.
    Balance,
    /// No node can hold it.
    Nobody,
    /// The claim cannot be read, so no node touches it.
    Unreadable,
    /// No node declares it.
    Undeclared,
}

impl fmt::Display for Why {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Why::Pinned => "pinned by an operator",
            Why::Preferred => "preferred by the configuration",
            Why::Stays => "stays where it is",
            Why::NobodyElse => "stays, because no other node can hold it",
            Why::Hash => "chosen by hash among the nodes with room",
            Why::Balance => "chosen because the node has fewer addresses",
            Why::Nobody => "no node can hold it",
            Why::Unreadable => "its claim cannot be read; no node touches it",
            Why::Undeclared => "no node declares it",
        })
    }
}

/// Why a node cannot hold an address.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Unfit {
    /// It is not ready.
    State(NodeState, String),
    /// An operator drains it.
    Drained(String),
    /// It does not declare the address.
    Undeclared,
    /// The address's interface is down.
    Down,
    /// Its broker refuses the address.
    Refused,
}

impl fmt::Display for Unfit {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Unfit::State(NodeState::Joining, _) => out.write_str("joined recently and is not mature"),
            Unfit::State(NodeState::Sick, why) => write!(out, "sick: {why}"),
            Unfit::State(NodeState::Leaving, _) => out.write_str("leaves the cluster"),
            Unfit::State(NodeState::Gone, _) => out.write_str("not in the cluster"),
            Unfit::State(NodeState::Founding | NodeState::Ready, _) => out.write_str("ready"),
            Unfit::Drained(by) if by.is_empty() => out.write_str("drained"),
            Unfit::Drained(by) => write!(out, "drained by {by}"),
            Unfit::Undeclared => out.write_str("does not declare the address"),
            Unfit::Down => out.write_str("the interface of the address is down"),
            Unfit::Refused => out.write_str("its broker refused to add the address"),
        }
    }
}

/// Where one address belongs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Target {
    /// The address.
    pub address: IpAddr,
    /// The place of the node in [`Placement::names`].
    node: u32,
    current: u32,
    /// Why there.
    pub why: Why,
    /// The move does not wait for the next interval: the holder cannot hold it, or a pin moves it.
    pub is_urgent: bool,
}

const NONE: u32 = u32::MAX;

/// Where all addresses belong.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Placement {
    names: Vec<Name>,
    targets: Vec<Target>,
}

impl Placement {
    /// All targets, in the order of the addresses.
    pub fn targets(&self) -> impl Iterator<Item = (&Target, Option<&Name>)> {
        self.targets.iter().map(|target| (target, self.names.get(target.node as usize)))
    }

    /// The node of an address.
    pub fn node(&self, address: IpAddr) -> Option<&Name> {
        let at = self.targets.binary_search_by_key(&address, |target| target.address).ok()?;
        self.names.get(self.targets.get(at)?.node as usize)
    }

    /// Why an address belongs where, and to which node.
    pub fn target(&self, address: IpAddr) -> Option<(Why, Option<&Name>)> {
        let at = self.targets.binary_search_by_key(&address, |target| target.address).ok()?;
        let target = self.targets.get(at)?;
        Some((target.why, self.names.get(target.node as usize)))
    }

    /// How many addresses do not belong to the node that holds them.
    pub fn moves(&self) -> usize {
        self.targets.iter().filter(|target| target.current != NONE && target.current != target.node).count()
    }
}

/// What the placement uses of a node's record. Two values with the same role give the same placement.
pub(super) fn role(value: &Value) -> Option<NodeRecord> {
    let Value::Node(record) = value else { return None };
    let state = if record.state == NodeState::Founding { NodeState::Ready } else { record.state };
    Some(NodeRecord {
        state,
        created: None,
        version: String::new(),
        why: String::new(),
        is_auto: None,
        joins: 0,
        peer: String::new(),
        ..record.clone()
    })
}

/// FNV-1a with a finalizer. All versions must compute the same.
pub(super) fn hash(bytes: &[u8]) -> u64 {
    let step = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
    mix(bytes.iter().fold(0xcbf2_9ce4_8422_2325, step))
}

/// The finalizer of SplitMix64.
fn mix(mut bits: u64) -> u64 {
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}

fn hash_address(address: IpAddr) -> u64 {
    match address {
        IpAddr::V4(address) => hash(&address.octets()),
        IpAddr::V6(address) => hash(&address.octets()),
    }
}

/// A node that is not gone.
struct Candidate<'a> {
    name: &'a Name,
    record: &'a NodeRecord,
    hash: u64,
    group: usize,
    is_drained: bool,
    releases: bool,
}

impl<'a> Candidate<'a> {
    fn all(state: &'a State) -> Vec<Self> {
        let mut groups: Vec<&Name> = Vec::new();
        let nodes = state.nodes().filter(|(_, record)| record.state != NodeState::Gone);
        let candidate = |(name, record): (&'a Name, &'a NodeRecord)| {
            let group = groups.iter().position(|digest| **digest == record.declares).unwrap_or_else(|| {
                groups.push(&record.declares);
                groups.len() - 1
            });
            let drain = state.drain(name);
            let (is_drained, releases) = (drain.is_some(), drain.is_some_and(|order| order.release));
            Candidate { name, record, hash: hash(name.as_bytes()), group, is_drained, releases }
        };
        nodes.map(candidate).collect()
    }

    fn is_fit(&self) -> bool {
        matches!(self.record.state, NodeState::Ready | NodeState::Founding) && !self.is_drained
    }

    /// It can hold what no fit node can.
    fn is_immature(&self) -> bool {
        self.record.state == NodeState::Joining && !self.is_drained
    }

    fn is_able(&self, address: IpAddr) -> bool {
        let record = self.record;
        (record.down.is_empty() || !record.down.iter().any(|block| block.contains(address)))
            && (record.refused.is_empty() || !record.refused.contains(&address))
    }
}

/// A declared address.
struct Row {
    address: IpAddr,
    hash: u64,
    /// The groups of nodes that declare it: a part of [`Table::groups`].
    groups: (usize, usize),
    preferred: u32,
    current: u32,
    unreadable: bool,
    node: u32,
    why: Why,
}

/// What the choice among many nodes needs of one.
#[derive(Clone, Copy)]
struct Slot {
    node: u32,
    hash: u64,
    /// Whether there are addresses that it declares and cannot hold.
    is_limited: bool,
}

struct Table<'a> {
    nodes: Vec<Candidate<'a>>,
    /// How many addresses each node gets.
    counts: Vec<usize>,
    /// The fit nodes of each group.
    fit: Vec<Vec<Slot>>,
    /// The immature ones.
    immature: Vec<Vec<Slot>>,
    groups: Vec<usize>,
    rows: Vec<Row>,
}

impl<'a> Table<'a> {
    fn new(state: &'a State) -> Self {
        let nodes = Candidate::all(state);
        let index: HashMap<&str, u32> = (0..).zip(&nodes).map(|(at, node)| (&**node.name, at)).collect();
        let group: HashMap<&str, usize> =
            nodes.iter().map(|node| (&*node.record.declares, node.group)).collect();
        let of_groups = |is_member: fn(&Candidate<'_>) -> bool| {
            let mut members = vec![Vec::new(); group.len()];
            for (at, node) in (0..).zip(&nodes).filter(|(_, node)| is_member(node)) {
                let is_limited = !node.record.down.is_empty() || !node.record.refused.is_empty();
                if let Some(group) = members.get_mut(node.group) {
                    group.push(Slot { node: at, hash: node.hash, is_limited });
                }
            }
            members
        };
        let (fit, immature) = (of_groups(|node| node.is_fit()), of_groups(|node| node.is_immature()));

        let mut declared: Vec<(IpAddr, usize, Option<&Name>)> = Vec::new();
        for (digest, entry) in state.pieces() {
            if let (Some(Value::Have(piece)), Some(group)) = (&entry.value, group.get(&**digest)) {
                declared
                    .extend(piece.iter().map(|(address, preferred)| (*address, *group, preferred.as_ref())));
            }
        }
        declared.sort_by_key(|(address, group, _)| (*address, *group));

        let groups = Vec::with_capacity(declared.len());
        let counts = vec![0; nodes.len()];
        let mut table = Table { nodes, counts, fit, immature, groups, rows: Vec::new() };
        let mut claims = state.claims().peekable();
        for rows in declared.chunk_by(|one, other| one.0 == other.0) {
            let Some((address, ..)) = rows.first() else { continue };
            while claims.peek().is_some_and(|(claimed, ..)| claimed < address) {
                table.undeclared(claims.next(), &index);
            }
            let claim = claims.next_if(|(claimed, ..)| claimed == address);
            let mut preferred = rows.iter().filter_map(|(.., preferred)| *preferred);
            // Two different preferences: neither counts.
            let first = preferred.next().filter(|first| preferred.all(|other| other == *first));
            let start = table.groups.len();
            table.groups.extend(rows.iter().map(|(_, group, _)| *group));
            let groups = (start, table.groups.len());
            let preferred = first.and_then(|name| index.get(&**name)).copied().unwrap_or(NONE);
            table.row(*address, groups, preferred, claim, &index);
        }
        claims.for_each(|claim| table.undeclared(Some(claim), &index));
        table
    }

    fn undeclared(&mut self, claim: Option<Claimed<'_>>, index: &HashMap<&str, u32>) {
        if let Some((address, ..)) = claim {
            self.row(address, (0, 0), NONE, claim, index);
        }
    }

    fn row(
        &mut self,
        address: IpAddr,
        groups: (usize, usize),
        preferred: u32,
        claim: Option<Claimed<'_>>,
        index: &HashMap<&str, u32>,
    ) {
        let unreadable = claim.is_some_and(|(_, _, claim)| claim.is_none());
        let owner = claim.and_then(|(.., claim)| claim).filter(|claim| claim.phase != Phase::Free).and_then(
            |claim| {
                let at = *index.get(&*claim.node)?;
                let owner = self.nodes.get(at as usize)?;
                (owner.record.nonce == claim.session.nonce).then_some(at)
            },
        );
        self.rows.push(Row {
            address,
            hash: hash_address(address),
            groups,
            preferred,
            current: owner.unwrap_or(NONE),
            unreadable,
            node: NONE,
            why: Why::Nobody,
        });
    }

    fn groups(&self, row: &Row) -> &[usize] {
        self.groups.get(row.groups.0..row.groups.1).unwrap_or_default()
    }

    fn declares(&self, node: u32, row: &Row) -> Option<&Candidate<'a>> {
        self.nodes.get(node as usize).filter(|node| self.groups(row).contains(&node.group))
    }

    fn can_hold(&self, node: u32, row: &Row) -> bool {
        self.declares(node, row).is_some_and(|node| node.is_fit() && node.is_able(row.address))
    }

    /// Whether the holder of an address may keep it. Maturity is for those that want to get one.
    fn can_keep(&self, row: &Row) -> bool {
        let node = self.declares(row.current, row);
        node.is_some_and(|node| (node.is_fit() || node.is_immature()) && node.is_able(row.address))
    }

    /// Why a node cannot get an address.
    fn unfit(&self, state: &State, node: &Candidate<'_>, row: &Row) -> Option<Unfit> {
        let record = node.record;
        if !matches!(record.state, NodeState::Ready | NodeState::Founding) {
            return Some(Unfit::State(record.state, record.why.clone()));
        }
        if node.is_drained {
            return Some(Unfit::Drained(state.drain(node.name).unwrap_or_default().by));
        }
        if !self.groups(row).contains(&node.group) {
            return Some(Unfit::Undeclared);
        }
        if record.down.iter().any(|block| block.contains(row.address)) {
            return Some(Unfit::Down);
        }
        record.refused.contains(&row.address).then_some(Unfit::Refused)
    }

    /// The node that an address without pin and preference and holder goes to.
    fn choose(&self, row: &Row, quota: usize) -> Option<u32> {
        // A node below the quota is better than one at it, which may take one more, and then the least loaded counts.
        let rank = |count: usize| count.saturating_sub(quota.saturating_sub(1));
        let hash = row.hash.rotate_left(32);
        // The first placement runs this for each node and address.
        let choose = |of_groups: &[Vec<Slot>]| {
            let mut best = (usize::MAX, 0, NONE);
            for group in self.groups(row) {
                for slot in of_groups.get(*group).map_or(&[][..], Vec::as_slice) {
                    let rank = self.counts.get(slot.node as usize).map_or(usize::MAX, |count| rank(*count));
                    if rank > best.0 {
                        continue;
                    }
                    let weight = mix(slot.hash ^ hash);
                    let is_better = rank < best.0 || weight > best.1;
                    let node = self.nodes.get(slot.node as usize);
                    if is_better && node.is_some_and(|node| !slot.is_limited || node.is_able(row.address)) {
                        best = (rank, weight, slot.node);
                    }
                }
            }
            (best.2 != NONE).then_some(best.2)
        };
        choose(&self.fit).or_else(|| choose(&self.immature))
    }

    fn count(&self, node: u32) -> usize {
        self.counts.get(node as usize).copied().unwrap_or_default()
    }

    fn assign(&mut self, at: usize, node: u32, why: Why) {
        if let Some(row) = self.rows.get_mut(at) {
            (row.node, row.why) = (node, why);
            if let Some(count) = self.counts.get_mut(node as usize) {
                *count += 1;
            }
        }
    }

    /// Pins, preferences, and what stays.
    fn fixed(&self, row: &Row, pin: Option<u32>, is_auto: bool) -> Option<(u32, Why)> {
        if row.unreadable {
            return Some((NONE, Why::Unreadable));
        }
        if row.groups.0 == row.groups.1 {
            return Some((NONE, Why::Undeclared));
        }
        if let Some(pin) = pin.filter(|pin| self.can_hold(*pin, row)) {
            return Some((pin, Why::Pinned));
        }
        let stays = self.can_keep(row);
        if (is_auto || !stays || row.preferred == row.current) && self.can_hold(row.preferred, row) {
            return Some((row.preferred, Why::Preferred));
        }
        stays.then_some((row.current, Why::Stays))
    }

    /// Moves addresses until no node has two more than another that could hold one of them.
    fn balance(&mut self) {
        let mut loads: BTreeSet<(usize, u32)> = BTreeSet::new();
        let fit = (0..).zip(&self.nodes).filter(|(_, node)| node.is_fit());
        loads.extend(fit.map(|(at, _)| (self.count(at), at)));
        let is_even = |loads: &BTreeSet<(usize, u32)>| {
            let (least, most) = (loads.first(), loads.last());
            least.zip(most).is_none_or(|((least, _), (most, _))| most - least < 2)
        };
        if is_even(&loads) {
            return;
        }
        let mut held: HashMap<u32, Vec<usize>> = HashMap::new();
        for (at, row) in self.rows.iter().enumerate() {
            if matches!(row.why, Why::Stays | Why::Hash) {
                held.entry(row.node).or_default().push(at);
            }
        }
        // One address at a time leaves the node with the most, so that no more move than must. A move can make another one
        // possible, so this ends with a round without moves; each move evens the loads, so there is one.
        let mut has_moved = true;
        while has_moved {
            has_moved = false;
            let mut sources = loads.clone();
            while let Some((count, from)) = sources.pop_last() {
                if loads.first().is_none_or(|(least, _)| least + 2 > count) {
                    break;
                }
                let rows = held.get(&from).map_or(&[][..], Vec::as_slice);
                let Some((at, load, to)) = rows.iter().find_map(|at| self.lighter(*at, count, &loads)) else {
                    continue;
                };
                for (old, new) in [((load, to), (load + 1, to)), ((count, from), (count - 1, from))] {
                    loads.remove(&old);
                    loads.insert(new);
                }
                sources.remove(&(load, to));
                sources.extend([(load + 1, to), (count - 1, from)]);
                if let Some(count) = self.counts.get_mut(from as usize) {
                    *count -= 1;
                }
                self.assign(at, to, Why::Balance);
                held.entry(from).or_default().retain(|row| *row != at);
                held.entry(to).or_default().push(at);
                has_moved = true;
            }
        }
    }

    /// The node with the fewest addresses that can take one from a node with `count`.
    fn lighter(
        &self,
        at: usize,
        count: usize,
        loads: &BTreeSet<(usize, u32)>,
    ) -> Option<(usize, usize, u32)> {
        let row = self.rows.get(at)?;
        let mut lighter = loads.iter().take_while(|(load, _)| load + 2 <= count);
        lighter.find(|(_, to)| self.can_hold(*to, row)).map(|(load, to)| (at, *load, *to))
    }
}

type Claimed<'a> = (IpAddr, &'a Arc<Entry>, Option<&'a super::record::Claim>);

/// Places all addresses. Addresses move voluntarily only if `is_auto` says so and no operator has frozen the group.
pub fn place(state: &State, is_auto: bool) -> Placement {
    let is_auto = is_auto && !state.is_frozen();
    let mut table = Table::new(state);
    let pins: HashMap<IpAddr, &Name> =
        state.wants().map(|(address, _, want)| (address, &want.node)).collect();
    let pin = |table: &Table<'_>, address| {
        let name = pins.get(&address)?;
        table.nodes.iter().position(|node| node.name == *name).and_then(|at| u32::try_from(at).ok())
    };
    let mut rest = Vec::new();
    for at in 0..table.rows.len() {
        let fixed = table.rows.get(at).and_then(|row| table.fixed(row, pin(&table, row.address), is_auto));
        match fixed {
            Some((node, why)) => table.assign(at, node, why),
            None => rest.push(at),
        }
    }
    let count =
        |is_member: fn(&Candidate<'_>) -> bool| table.nodes.iter().filter(|node| is_member(node)).count();
    let nodes = Some(count(|node| node.is_fit())).filter(|fit| *fit > 0);
    let nodes = nodes.unwrap_or_else(|| count(|node| node.is_immature()));
    let quota = table.rows.len() / nodes.max(1);
    for at in rest {
        let Some(row) = table.rows.get(at) else { continue };
        match table.choose(row, quota) {
            Some(node) => table.assign(at, node, Why::Hash),
            None => {
                let keeps = |node: &&Candidate<'_>| !node.releases && node.is_able(row.address);
                let keeps = table.declares(row.current, row).filter(keeps).is_some();
                let (node, why) = if keeps { (row.current, Why::NobodyElse) } else { (NONE, Why::Nobody) };
                table.assign(at, node, why);
            }
        }
    }
    if is_auto {
        table.balance();
    }
    let target = |row: &Row| Target {
        address: row.address,
        node: row.node,
        current: row.current,
        why: row.why,
        is_urgent: row.why == Why::Pinned || !table.can_keep(row),
    };
    Placement {
        targets: table.rows.iter().map(target).collect(),
        names: table.nodes.iter().map(|node| Arc::clone(node.name)).collect(),
    }
}

/// Why an address is where it is, and why it is not elsewhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explanation {
    /// The address.
    pub address: IpAddr,
    /// Who holds it.
    pub holder: Option<Name>,
    /// Where it belongs.
    pub node: Option<Name>,
    /// Why there.
    pub why: Why,
    /// Whether it moves there without waiting for the next interval.
    pub is_urgent: bool,
    /// The preferences, if there are different ones, of which none counts.
    pub conflict: Vec<Name>,
    /// For each node how many addresses belong to it, and why this one cannot, if so.
    pub nodes: Vec<(Name, usize, Option<Unfit>)>,
}

impl fmt::Display for Explanation {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = |name: &Option<Name>| name.as_deref().unwrap_or("nobody").to_owned();
        writeln!(out, "{} belongs to {}: {}", self.address, name(&self.node), self.why)?;
        if self.holder != self.node {
            writeln!(out, "  now held by {}", name(&self.holder))?;
        }
        if !self.conflict.is_empty() {
            writeln!(
                out,
                "  the nodes declare different preferences, so none counts: {}",
                self.conflict.join(", ")
            )?;
        }
        for (node, count, unfit) in &self.nodes {
            match unfit {
                Some(unfit) => writeln!(out, "  {node}: no, {unfit}")?,
                None => writeln!(out, "  {node}: could hold it; {count} addresses belong to it")?,
            }
        }
        Ok(())
    }
}

/// Explains one address; `None`: no node declares it and it has no claim.
pub fn explain(state: &State, is_auto: bool, address: IpAddr) -> Option<Explanation> {
    let placement = place(state, is_auto);
    let at = placement.targets.binary_search_by_key(&address, |target| target.address).ok()?;
    let target = placement.targets.get(at)?;
    let table = Table::new(state);
    let row = table.rows.get(at)?;
    let nodes = (0..).zip(&table.nodes).map(|(at, node)| {
        let count = placement.targets.iter().filter(|target| target.node == at).count();
        (Arc::clone(node.name), count, table.unfit(state, node, row))
    });
    let in_use = |digest: &Name| table.nodes.iter().any(|node| node.record.declares == *digest);
    let preferred =
        state.pieces().filter(|(digest, _)| in_use(digest)).filter_map(|(_, entry)| match &entry.value {
            Some(Value::Have(piece)) => piece.get(&address)?.clone(),
            _ => None,
        });
    let preferred: BTreeSet<Name> = preferred.collect();
    Some(Explanation {
        address,
        holder: placement.names.get(target.current as usize).cloned(),
        node: placement.names.get(target.node as usize).cloned(),
        why: target.why,
        is_urgent: target.is_urgent,
        conflict: if preferred.len() > 1 { preferred.into_iter().collect() } else { Vec::new() },
        nodes: nodes.collect(),
    })
}

/// Why a node cannot get an address; `None`: it can.
pub fn unfit(state: &State, address: IpAddr, node: &Name) -> Option<Unfit> {
    let table = Table::new(state);
    let gone = || Some(Unfit::State(NodeState::Gone, String::new()));
    let Some(candidate) = table.nodes.iter().find(|candidate| candidate.name == node) else { return gone() };
    let row = table.rows.binary_search_by_key(&address, |row| row.address).ok();
    match row.and_then(|at| table.rows.get(at)) {
        Some(row) => table.unfit(state, candidate, row),
        None => Some(Unfit::Undeclared),
    }
}

#[cfg(test)]
mod tests {
    use super::super::record::{Claim, Key, Order, Session, Want};
    use super::*;
    use crate::simulate::random::Random;

    /// A state that tests write.
    #[derive(Default)]
    struct Group(State);

    impl Group {
        fn new(nodes: u32, addresses: u8) -> Self {
            let mut group = Group::default();
            (0..nodes).for_each(|number| group.node(number, NodeState::Ready, "d"));
            group.declare("d", addresses, |_| None);
            group
        }

        fn put(&mut self, key: Key, value: Option<Value>) {
            let modified = self.0.revision + 1;
            self.0.apply(&Arc::new(Entry { key, created: 1, modified, text: "".into(), value }));
        }

        fn node(&mut self, number: u32, state: NodeState, declares: &str) {
            let record = NodeRecord {
                nonce: u64::from(number),
                created: Some(1),
                version: String::new(),
                state,
                why: "a reason".to_owned(),
                declares: declares.into(),
                is_auto: None,
                joins: 1,
                peer: String::new(),
                down: Vec::new(),
                refused: Vec::new(),
            };
            self.put(Key::Node(name(number)), Some(Value::Node(record)));
        }

        fn declare(&mut self, digest: &str, addresses: u8, preferred: fn(u8) -> Option<u32>) {
            let piece = (0..addresses).map(|number| (address(number), preferred(number).map(name)));
            self.put(Key::Have(digest.into(), 0), Some(Value::Have(piece.collect())));
        }

        fn claim(&mut self, number: u8, node: &Name) {
            let session = Session { created: 1, nonce: self.0.node(node).map_or(0, |record| record.nonce) };
            let claim = Claim { epoch: 1, node: Arc::clone(node), session, phase: Phase::Held };
            self.put(Key::Claim(address(number)), Some(Value::Claim(claim)));
        }

        /// Everything moves where it belongs. Returns how many moved, and the counts.
        fn perform(&mut self) -> (usize, Vec<usize>) {
            let placement = place(&self.0, true);
            let targets: Vec<(IpAddr, Option<Name>)> =
                placement.targets().map(|(target, node)| (target.address, node.cloned())).collect();
            for (target, node) in &targets {
                let IpAddr::V4(target) = target else { continue };
                match node {
                    Some(node) => self.claim(target.octets()[3], node),
                    None => self.put(Key::Claim((*target).into()), None),
                }
            }
            let count =
                |node: &Name| targets.iter().filter(|(_, other)| other.as_ref() == Some(node)).count();
            (placement.moves(), placement.names.iter().map(count).collect())
        }
    }

    fn name(number: u32) -> Name {
        format!("n{number}").into()
    }

    fn address(number: u8) -> IpAddr {
        [10, 0, 0, number].into()
    }

    #[test]
    fn counts_differ_by_one_and_no_more_moves_than_must() {
        for (nodes, addresses) in [(2, 5), (3, 10), (7, 100), (10, 3), (4, 0)] {
            let mut group = Group::new(nodes, addresses);
            let (moves, counts) = group.perform();
            assert_eq!(moves, 0);
            assert!(counts.iter().max().unwrap() - counts.iter().min().unwrap() <= 1, "{counts:?}");
            assert_eq!(group.perform(), (0, counts.clone()), "placing twice changes nothing");

            group.node(0, NodeState::Gone, "d");
            let (moves, _) = group.perform();
            assert_eq!(moves, 0, "only those of the dead node get another one");
            group.node(0, NodeState::Ready, "d");
            let (moves, after) = group.perform();
            assert_eq!(moves, after[0], "the node that returns gets its share, and nothing else moves");
            assert!(after.iter().max().unwrap() - after.iter().min().unwrap() <= 1, "{after:?}");
        }
    }

    #[test]
    fn a_pin_is_above_a_preference_and_that_above_staying() {
        let mut group = Group::new(3, 1);
        group.declare("d", 1, |_| Some(1));
        group.claim(0, &name(0));
        let placed = |group: &Group, is_auto| {
            let placement = place(&group.0, is_auto);
            (
                placement.node(address(0)).cloned().unwrap(),
                placement.targets[0].why,
                placement.targets[0].is_urgent,
            )
        };
        assert_eq!(placed(&group, true), (name(1), Why::Preferred, false));
        assert_eq!(placed(&group, false), (name(0), Why::Stays, false));
        let want = Want { node: name(2), by: "me".to_owned(), for_ms: None, until: String::new() };
        group.put(Key::Want(address(0)), Some(Value::Want(want)));
        assert_eq!(placed(&group, false), (name(2), Why::Pinned, true));
        group.node(2, NodeState::Sick, "d");
        assert_eq!(
            placed(&group, true),
            (name(1), Why::Preferred, false),
            "a pin to a node that cannot does not count"
        );
        group.put(Key::Freeze, Some(Value::Order(Order::default())));
        assert_eq!(placed(&group, true), (name(0), Why::Stays, false));
    }

    #[test]
    fn an_explanation_has_a_reason_for_each_node() {
        let mut group = Group::new(6, 2);
        group.declare("d", 2, |_| Some(1));
        group.declare("e", 2, |_| Some(2));
        group.declare("f", 0, |_| None);
        group.node(1, NodeState::Sick, "d");
        group.node(2, NodeState::Joining, "e");
        group.node(3, NodeState::Ready, "f");
        group.put(Key::Drain(name(4)), Some(Value::Order(Order { by: "me".to_owned(), ..Order::default() })));
        group.node(5, NodeState::Gone, "d");
        group.claim(0, &name(4));
        let text = explain(&group.0, true, address(0)).unwrap().to_string();
        assert_eq!(
            text,
            "10.0.0.0 belongs to n0: chosen by hash among the nodes with room\n  now held by n4\n  \
             the nodes declare different preferences, so none counts: n1, n2\n  n0: could hold it; 2 addresses belong to it\n  \
             n1: no, sick: a reason\n  n2: no, joined recently and is not mature\n  n3: no, does not declare the address\n  \
             n4: no, drained by me\n"
        );
        assert_eq!(explain(&group.0, true, address(9)), None);
    }

    #[test]
    fn what_cannot_be_read_is_touched_by_nobody() {
        let mut group = Group::new(2, 2);
        group.put(Key::Claim(address(0)), Some(Value::Unreadable("later version".to_owned())));
        let placement = place(&group.0, true);
        assert_eq!((placement.targets[0].why, placement.node(address(0))), (Why::Unreadable, None));
        assert!(placement.node(address(1)).is_some());
    }

    #[test]
    fn any_state_is_at_rest_after_one_placement() {
        const STATES: [NodeState; 5] =
            [NodeState::Ready, NodeState::Ready, NodeState::Joining, NodeState::Sick, NodeState::Gone];
        for seed in 0..300 {
            let mut random = Random(seed);
            let mut group = Group::default();
            group.declare("all", 40, |number| (number < 8).then_some(u32::from(number) % 3));
            group.declare("few", 15, |number| (number < 4).then_some(0));
            for number in 0..8 {
                group.node(number, STATES[random.place(5)], ["all", "few"][random.place(2)]);
            }
            for number in 0..40 {
                if random.below(3) > 0 {
                    group.claim(number, &name(u32::try_from(random.place(8)).unwrap()));
                }
            }
            group.perform();
            assert_eq!(group.perform().0, 0, "seed {seed}");
        }
    }

    #[test]
    fn all_versions_compute_the_same_hash() {
        assert_eq!((hash(b""), hash(b"n0")), (0xf52a_15e9_a9b5_e89b, 735_820_747_266_598_374));
    }
}
