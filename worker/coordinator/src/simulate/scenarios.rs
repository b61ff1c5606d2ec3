//! One fault or order at a time, without noise: what the design's table says happens.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use super::{Setup, Simulation};
use crate::core::decide::{Facts, Node, Stage};
use crate::core::record::{Block, Entry, Key, NodeState, Order, Phase, Value};
use crate::core::rules::Rules;
use crate::core::txn::{Operation, Txn};

const SECOND: Duration = Duration::from_secs(1);

pub(super) fn formed(setup: Setup) -> Simulation {
    formed_with(setup, Rules::default())
}

/// A cluster in which each address has a host, and nothing moves.
pub(super) fn formed_with(setup: Setup, rules: Rules) -> Simulation {
    let mut simulation = Simulation::with_rules(setup, rules);
    for host in 0..simulation.setup.nodes {
        simulation.start(host);
        simulation.run_for(Duration::from_millis(100));
    }
    simulation.run_for(2 * simulation.setup.patience() + SECOND);
    assert_eq!(simulation.unowned(), [] as [IpAddr; 0]);
    simulation.expect_quiet(SECOND);
    simulation
}

/// How long it takes until each address has one host.
fn until_owned(simulation: &mut Simulation) -> Duration {
    let start = simulation.now();
    while !simulation.unowned().is_empty() {
        assert!(simulation.now() < start + 60 * SECOND, "{:?} stay without a host", simulation.unowned());
        simulation.run_for(Duration::from_millis(10));
    }
    simulation.now() - start
}

fn host(simulation: &Simulation, number: usize) -> Option<usize> {
    simulation.referee.hosts(simulation.now, Setup::address(number)).first().copied()
}

fn epoch_and_phase(simulation: &Simulation, address: IpAddr) -> (u64, Phase) {
    match simulation.store.get(&Key::Claim(address)).and_then(|entry| entry.value.clone()) {
        Some(Value::Claim(claim)) => (claim.epoch, claim.phase),
        other => panic!("{other:?}"),
    }
}

pub(super) fn verdict(simulation: &Simulation) {
    assert_eq!(simulation.referee.violations, Vec::<String>::new());
}

#[test]
fn after_the_death_of_a_node_its_addresses_are_soon_on_others() {
    // The patience began with the last beat, up to a heartbeat before the death. Then the new broker probes for 0.6 s.
    for (lease, least, most) in [(3, 3.5, 4.25), (6, 6.5, 7.75), (15, 15.5, 18.25)] {
        for seed in 0..20 {
            let mut simulation = formed(Setup { lease: lease * SECOND, seed, ..Setup::default() });
            simulation.run_for(Duration::from_millis(seed * 171));
            simulation.kill(0);
            let failover = until_owned(&mut simulation).as_secs_f64();
            assert!((least..most).contains(&failover), "lease {lease} s, seed {seed}: {failover} s");
            let starts = simulation.referee.starts;
            simulation.run_for(30 * SECOND);
            assert_eq!(simulation.referee.starts, starts, "nothing moves any more");
            verdict(&simulation);
        }
    }
}

#[test]
fn a_short_outage_of_the_engine_interrupts_nothing() {
    for (lease, outage) in [(3, 1), (6, 3), (15, 10)] {
        for seed in 0..20 {
            let mut simulation = formed(Setup { lease: lease * SECOND, seed, ..Setup::default() });
            simulation.run_for(Duration::from_millis(seed * 171));
            let starts = simulation.referee.starts;
            simulation.engine(false);
            simulation.run_for(outage * SECOND);
            simulation.engine(true);
            simulation.run_for(30 * SECOND);
            assert_eq!(simulation.unowned(), [] as [IpAddr; 0], "lease {lease} s, seed {seed}");
            assert_eq!(simulation.referee.starts, starts, "lease {lease} s, seed {seed}");
            verdict(&simulation);
        }
    }
}

/// Returns whether the sessions and the owners outlive a long outage.
fn outlives_an_outage(rules: Rules, seed: u64) -> bool {
    let mut simulation = formed_with(Setup { seed, ..Setup::default() }, rules);
    let hosts = |simulation: &Simulation| (0..10).map(|n| host(simulation, n)).collect::<Vec<_>>();
    let sessions = |simulation: &Simulation| -> Vec<i64> {
        let entries = simulation.store.read().entries;
        entries.iter().filter(|entry| matches!(entry.key, Key::Beat(_))).map(|entry| entry.created).collect()
    };
    let before = (hosts(&simulation), sessions(&simulation));
    simulation.engine(false);
    simulation.run_for(20 * SECOND);
    assert_eq!(simulation.unowned().len(), 10, "every address is gone at the end of its lease");
    simulation.engine(true);
    let back = until_owned(&mut simulation);
    simulation.run_for(30 * SECOND);
    verdict(&simulation);
    back < 3 * SECOND && (hosts(&simulation), sessions(&simulation)) == before
}

#[test]
fn after_a_long_outage_of_the_engine_each_address_is_back_where_it_was() {
    assert!((0..20).all(|seed| outlives_an_outage(Rules::default(), seed)));
    let rules = Rules { settle: false, ..Rules::default() };
    assert!(!(0..20).all(|seed| outlives_an_outage(rules, seed)), "the rule is needed");
}

#[test]
fn records_that_another_program_overwrites_or_deletes_are_written_again_and_nothing_moves() {
    let mut simulation = formed(Setup::default());
    let starts = simulation.referee.starts;
    let is_record = |entry: &&Arc<Entry>| matches!(entry.key, Key::Node(_) | Key::Have(..));
    let records = |simulation: &Simulation| -> Vec<(Key, Arc<str>)> {
        let entries = simulation.store.read().entries;
        entries.iter().filter(is_record).map(|entry| (entry.key.clone(), Arc::clone(&entry.text))).collect()
    };
    let before = records(&simulation);
    assert!(before.len() > simulation.setup.nodes);
    for (key, _) in &before {
        for damage in [Operation::Put(key.clone(), "garbage".into()), Operation::Delete(key.clone())] {
            simulation.txn(&Txn { success: vec![damage], ..Txn::default() });
            simulation.run_for(5 * SECOND);
            assert_eq!(records(&simulation), before, "{key}");
        }
    }
    assert_eq!(simulation.referee.starts, starts);
    simulation.expect_owned();
    // Others evict a node whose record was damaged.
    simulation.kill(0);
    simulation.run_for(simulation.setup.patience() + 2 * SECOND);
    simulation.expect_owned();
    verdict(&simulation);
}

#[test]
fn a_coordinator_that_is_killed_and_restarted_moves_nothing() {
    let mut simulation = formed(Setup::default());
    let starts = simulation.referee.starts;
    for host in 0..3 {
        simulation.kill_coordinator(host);
        simulation.run_for(2 * SECOND);
        simulation.start_coordinator(host);
        simulation.expect_quiet(10 * SECOND);
    }
    assert_eq!((simulation.unowned().len(), simulation.referee.starts), (0, starts));
    verdict(&simulation);
}

/// Whether a node whose broker hangs loses its addresses to others.
fn gives_way(rules: Rules) -> bool {
    let mut simulation = formed_with(Setup::default(), rules);
    simulation.pause_broker(0, 60 * SECOND);
    simulation.run_for(SECOND);
    assert_eq!(simulation.unowned(), [] as [IpAddr; 0], "the kernel still has them");
    simulation.run_for(8 * SECOND);
    verdict(&simulation);
    assert_eq!(simulation.counts().first(), Some(&0));
    simulation.unowned().is_empty()
}

#[test]
fn a_broker_that_hangs_does_not_keep_its_addresses_from_others() {
    assert!(gives_way(Rules::default()));
    assert!(!gives_way(Rules { broker_answers: false, ..Rules::default() }), "it is the beat that ends");
}

#[test]
fn a_sick_node_hands_its_addresses_over_at_once() {
    let mut simulation = formed(Setup::default());
    simulation.facts(0, Facts { sick: Some("no carrier".to_owned()), down: Vec::new() });
    simulation.run_for(Duration::from_millis(50));
    assert_eq!((simulation.unowned().len(), simulation.counts().first()), (0, Some(&0)));
    verdict(&simulation);
}

#[test]
fn addresses_leave_an_interface_that_is_down() {
    let mut simulation = formed(Setup::default());
    let down = vec![Block { address: Setup::address(0), prefix: 29 }];
    for host in [0, 1] {
        simulation.facts(host, Facts { sick: None, down: down.clone() });
    }
    simulation.run_for(SECOND);
    assert!(
        (0..7).all(|number| host(&simulation, number) == Some(2)),
        "10.0.0.1 to 10.0.0.7 are in the block"
    );
    assert_eq!(simulation.unowned(), [] as [IpAddr; 0]);
    verdict(&simulation);
}

#[test]
fn a_node_that_stops_hands_everything_over_and_leaves() {
    let mut simulation = formed(Setup::default());
    for (host, left) in [(0, 0), (1, 0), (2, 10)] {
        simulation.stop_coordinator(host);
        simulation.run_for(SECOND);
        assert_eq!(simulation.node(host).map(|node| node.stage().clone()), Some(Stage::Left));
        assert_eq!(simulation.unowned().len(), left, "after n{host}");
    }
    verdict(&simulation);
}

/// Whether no address is on two nodes when two nodes of three stop almost at once, and the first one grants its addresses to the
/// second one while that asks to leave. It has joined a moment ago, so it does not pass them on at once.
fn leaves_without_addresses(rules: Rules) -> bool {
    (0..20).all(|seed| {
        let setup = Setup { mature: 60 * SECOND, seed, ..Setup::default() };
        let mut formed = Simulation::with_rules(setup, rules);
        for (host, duration) in
            [(0, 2 * formed.setup.patience()), (2, 2 * formed.setup.patience()), (1, SECOND)]
        {
            formed.start(host);
            formed.run_for(duration);
        }
        assert_eq!(formed.counts(), [10, 0, 0], "the others are not mature");
        (0..40).all(|step| {
            let mut simulation = formed.clone();
            simulation.stop_coordinator(0);
            simulation.run_for(step * Duration::from_micros(500));
            simulation.stop_coordinator(1);
            simulation.run_for(3 * SECOND);
            simulation.referee.violations.is_empty()
        })
    })
}

#[test]
fn a_node_that_leaves_takes_no_address_that_was_granted_to_it_at_the_last_moment() {
    assert!(leaves_without_addresses(Rules::default()));
    assert!(!leaves_without_addresses(Rules { nothing_new_when_stopping: false, ..Rules::default() }));
}

#[test]
fn a_drained_node_keeps_what_nobody_else_can_hold_unless_told_to_release() {
    let mut simulation = formed(Setup { nodes: 2, ..Setup::default() });
    simulation.drain(0, true, false);
    simulation.run_for(SECOND);
    assert_eq!(simulation.counts(), [0, 10]);
    simulation.drain(1, true, false);
    simulation.run_for(SECOND);
    assert_eq!(simulation.counts(), [0, 10]);
    simulation.drain(1, true, true);
    simulation.run_for(SECOND);
    assert_eq!(simulation.counts(), [0, 0]);
    simulation.drain(1, false, false);
    simulation.run_for(SECOND);
    assert_eq!(simulation.counts(), [0, 10]);
    verdict(&simulation);
}

#[test]
fn a_pin_moves_an_address_even_in_a_frozen_group_and_ends_by_itself() {
    let mut simulation = formed(Setup { has_preferences: true, ..Setup::default() });
    simulation.order(Key::Freeze, Some(&Value::Order(Order::default())));
    simulation.pin(Setup::address(0), 2, Some(20 * SECOND));
    simulation.run_for(SECOND);
    assert_eq!(host(&simulation, 0), Some(2));
    simulation.order(Key::Freeze, None);
    simulation.run_for(18 * SECOND);
    assert_eq!(host(&simulation, 0), Some(2));
    simulation.run_for(12 * SECOND);
    assert_eq!((host(&simulation, 0), simulation.store.get(&Key::Want(Setup::address(0)))), (Some(0), None));
    verdict(&simulation);
}

#[test]
fn a_node_that_returns_gets_its_addresses_in_sets_when_it_is_mature() {
    let mut simulation = formed(Setup { nodes: 2, addresses: 50, ..Setup::default() });
    simulation.kill(0);
    simulation.run_for(20 * SECOND);
    assert_eq!(simulation.counts(), [50]);
    simulation.start(0);
    let mut counts = Vec::new();
    for _ in 0..60 {
        simulation.run_for(SECOND);
        let count = simulation.counts()[0];
        if counts.last() != Some(&count) {
            counts.push(count);
        }
    }
    assert_eq!(counts, [0, 10, 20, 25]);
    verdict(&simulation);
}

#[test]
fn with_manual_failback_and_in_a_frozen_group_nothing_returns() {
    for is_auto in [true, false] {
        let mut simulation = formed(Setup { nodes: 2, is_auto, has_preferences: true, ..Setup::default() });
        if is_auto {
            simulation.order(Key::Freeze, Some(&Value::Order(Order::default())));
        }
        simulation.kill(0);
        simulation.run_for(10 * SECOND);
        simulation.start(0);
        simulation.run_for(60 * SECOND);
        assert_eq!(simulation.counts(), [0, 10], "only failover moves addresses");
        verdict(&simulation);
    }
}

#[test]
fn a_node_that_joins_again_and_again_matures_later_each_time() {
    let mut simulation = formed(Setup { nodes: 2, ..Setup::default() });
    let mut mature_after = Vec::new();
    for _ in 0..4 {
        simulation.kill(0);
        simulation.run_for(10 * SECOND);
        simulation.start(0);
        let mut joined = None;
        let state = |simulation: &Simulation| {
            simulation.node(0)?.state().node(&Simulation::name(0)).map(|record| record.state)
        };
        while state(&simulation) != Some(NodeState::Ready) {
            simulation.run_for(Duration::from_millis(100));
            if state(&simulation) == Some(NodeState::Joining) {
                joined = joined.or(Some(simulation.now()));
            }
        }
        mature_after.push((simulation.now() - joined.unwrap()).as_secs());
    }
    assert!(matches!(mature_after[..], [9..=10, 19..=20, 39..=40, 79..=80]), "{mature_after:?}");
    verdict(&simulation);
}

#[test]
fn an_address_that_one_broker_refuses_goes_to_the_next_node() {
    let mut simulation = formed(Setup { has_preferences: true, ..Setup::default() });
    simulation.kill(0);
    simulation.refuse(1, Some(Setup::address(0)));
    simulation.run_for(10 * SECOND);
    assert_eq!((simulation.unowned().len(), host(&simulation, 0)), (0, Some(2)));
    verdict(&simulation);
}

#[test]
fn an_engine_that_lost_everything_gets_it_back_although_brokers_remember_higher_epochs() {
    let mut simulation = formed(Setup { nodes: 2, addresses: 4, ..Setup::default() });
    for _ in 0..8 {
        for host in [0, 1] {
            simulation.drain(host, true, false);
            simulation.run_for(SECOND);
            simulation.drain(host, false, false);
        }
    }
    let (epoch, _) = epoch_and_phase(&simulation, Setup::address(0));
    assert!(epoch > 10, "{epoch}");
    simulation.wipe();
    simulation.run_for(2 * SECOND);
    assert_eq!(simulation.unowned().len(), 4, "the quarantine lasts");
    simulation.run_for(simulation.setup.patience() + 8 * SECOND);
    assert_eq!(simulation.unowned(), [] as [IpAddr; 0]);
    assert!(epoch_and_phase(&simulation, Setup::address(0)).0 > 10);
    verdict(&simulation);
}

#[test]
fn a_second_host_with_the_name_of_a_node_is_refused() {
    let mut simulation = formed(Setup::default());
    // The second host is a copy of the first one that booted on its own.
    let mut twin = simulation.hosts[0].clone();
    twin.boot = 77;
    twin.node = None;
    simulation.hosts.push(twin);
    let at = simulation.hosts.len() - 1;
    simulation.start_coordinator_named(at, "n0");
    simulation.run_for(10 * SECOND);
    let stage = simulation.node(at).map(|node| node.stage().clone());
    assert!(matches!(&stage, Some(Stage::Refused(why)) if why.contains("is the node n0")), "{stage:?}");
    verdict(&simulation);
}

#[test]
fn a_node_gets_more_addresses_than_its_broker_can_probe_for_within_a_lease() {
    let setup = Setup { nodes: 1, addresses: 2_000, lease: 3 * SECOND, ..Setup::default() };
    let frames = 2_000 * super::FRAME;
    assert!(frames > setup.lease);
    let mut simulation = Simulation::new(setup);
    simulation.start(0);
    let time = until_owned(&mut simulation);
    let quarantine = simulation.setup.patience();
    assert!((frames..2 * frames + quarantine).contains(&time), "{time:?}");
    verdict(&simulation);
}

#[test]
fn the_node_that_gets_an_address_by_hand_does_not_probe() {
    let mut simulation = formed(Setup::default());
    let at = host(&simulation, 0).unwrap();
    simulation.drain(at, true, false);
    simulation.run_for(Duration::from_millis(100));
    assert_eq!(
        (simulation.unowned().len(), epoch_and_phase(&simulation, Setup::address(0))),
        (0, (2, Phase::Granted))
    );
    verdict(&simulation);
}

#[test]
fn a_host_that_reboots_waits_until_its_old_session_is_over() {
    let mut simulation = formed(Setup::default());
    simulation.kill(0);
    simulation.run_for(SECOND);
    simulation.start(0);
    simulation.run_for(simulation.setup.patience() - 2 * SECOND);
    assert_eq!(simulation.node(0).map(Node::stage), Some(&Stage::Outside));
    simulation.run_for(4 * SECOND);
    assert_eq!(simulation.node(0).map(Node::stage), Some(&Stage::Member));
    assert_eq!(simulation.unowned(), [] as [IpAddr; 0]);
    verdict(&simulation);
}
