//! Clusters whose nodes keep their addresses without the engine while all who could take them promise not to.

use std::net::IpAddr;
use std::time::Duration;

use super::random::Random;
use super::scenarios::{formed, formed_with, verdict};
use super::seeds::{assert_none, each_is_needed, fault, settle};
use super::{Event, Setup, Simulation};
use crate::core::decide::Stage;
use crate::core::record::Key;
use crate::core::rules::Rules;
use crate::core::txn::{Operation, Txn};

const SECOND: Duration = Duration::from_secs(1);

fn holding(nodes: usize) -> Setup {
    Setup { nodes, holders: nodes, ..Setup::default() }
}

#[test]
fn an_outage_of_the_engine_interrupts_and_moves_nothing() {
    for (nodes, lease, seed) in [(1, 6, 1), (2, 3, 2), (3, 6, 3), (3, 6, 4), (5, 15, 5), (16, 6, 6)] {
        let mut simulation = formed(Setup { lease: lease * SECOND, seed, ..holding(nodes) });
        let starts = simulation.referee.starts;
        simulation.engine(false);
        for _ in 0..120 {
            simulation.run_for(SECOND);
            assert_eq!(simulation.unowned(), [] as [IpAddr; 0], "{nodes} nodes, lease {lease} s");
        }
        simulation.engine(true);
        simulation.run_for(60 * SECOND);
        assert_eq!((simulation.referee.starts, simulation.unowned().len()), (starts, 0));
        verdict(&simulation);
    }
}

#[test]
fn a_node_that_does_not_hold_promises_all_the_same() {
    let mut simulation = formed(Setup { holders: 1, addresses: 9, ..Setup::default() });
    let before = simulation.counts();
    simulation.engine(false);
    simulation.run_for(30 * SECOND);
    assert_eq!(simulation.counts(), [before[0], 0, 0]);
    simulation.engine(true);
    simulation.run_for(10 * SECOND);
    assert_eq!((simulation.counts(), simulation.unowned().len()), (before, 0));
    verdict(&simulation);
}

#[test]
fn all_end_when_one_node_cannot_promise() {
    let faults: [fn(&mut Simulation); 5] = [
        |simulation| simulation.peers(2, false, false),
        |simulation| simulation.peers(2, true, false),
        |simulation| simulation.peers(2, false, true),
        |simulation| simulation.kill(2),
        |simulation| {
            // Its successor has seen no beat, and what the one before it requested may be on its way.
            simulation.kill_coordinator(2);
            simulation.start_coordinator(2);
        },
    ];
    for cut in faults {
        let mut simulation = formed(holding(3));
        simulation.engine(false);
        simulation.run_for(20 * SECOND);
        assert_eq!(simulation.unowned(), [] as [IpAddr; 0]);
        cut(&mut simulation);
        simulation.run_for(simulation.setup.patience());
        assert_eq!(simulation.unowned().len(), 10, "no node may hold any more");
        simulation.engine(true);
        simulation.heal();
        simulation.run_for(2 * simulation.setup.patience() + 3 * SECOND);
        assert_eq!(simulation.unowned(), [] as [IpAddr; 0]);
        verdict(&simulation);
    }
}

#[test]
fn a_node_that_alone_is_cut_off_from_the_engine_does_not_hold() {
    for seed in 0..20 {
        let mut simulation = formed(Setup { seed, ..holding(3) });
        simulation.run_for(Duration::from_millis(seed * 171));
        simulation.link(0, false, false);
        simulation.run_for(simulation.setup.patience() + 2 * SECOND);
        assert_eq!((simulation.counts()[0], simulation.unowned().len()), (0, 0), "seed {seed}");
        verdict(&simulation);
    }
}

#[test]
fn a_node_that_dies_without_engine_is_evicted_when_the_engine_is_back() {
    let mut simulation = formed(holding(3));
    simulation.engine(false);
    simulation.run_for(20 * SECOND);
    simulation.kill(0);
    simulation.run_for(20 * SECOND);
    simulation.engine(true);
    simulation.run_for(simulation.setup.patience() + 5 * SECOND);
    assert_eq!(simulation.unowned(), [] as [IpAddr; 0]);
    verdict(&simulation);
}

/// The last beats of all name all, so whoever returns may evict the others, and itself.
#[test]
fn one_host_that_returns_after_a_power_cut_gets_all_addresses() {
    let mut simulation = formed(holding(3));
    (0..3).for_each(|host| simulation.kill(host));
    simulation.run_for(10 * SECOND);
    simulation.start(1);
    simulation.run_for(3 * simulation.setup.patience() + 5 * SECOND);
    assert_eq!((simulation.counts(), simulation.unowned().len()), (vec![10], 0));
    verdict(&simulation);
}

#[test]
fn a_node_that_joined_after_the_last_beat_evicts_nobody() {
    let run = |rules| {
        let mut simulation = Simulation::with_rules(holding(3), rules);
        simulation.start(0);
        simulation.start(1);
        simulation.run_for(30 * SECOND);
        // The engine's network fails for the two, who hear each other.
        simulation.link(0, false, false);
        simulation.link(1, false, false);
        simulation.run_for(SECOND);
        simulation.start(2);
        simulation.run_for(60 * SECOND);
        simulation
    };
    let simulation = run(Rules::default());
    assert_eq!((simulation.counts()[2], simulation.unowned().len()), (0, 0), "the two hold");
    verdict(&simulation);
    let simulation = run(Rules { roster_only: false, ..Rules::default() });
    assert!(!simulation.referee.violations.is_empty(), "the rule is needed");
}

/// A request to evict n0 that the engine performs only when the process that sent it is gone, and its successor promised.
#[test]
fn the_successor_of_a_process_promises_nothing_that_the_process_may_have_broken() {
    let run = |rules| {
        let mut simulation = formed_with(holding(2), rules);
        simulation.link(0, false, false);
        let evicts = |event: &Event| {
            let is_deletion = |operation: &Operation| matches!(operation, Operation::Delete(Key::Beat(_)));
            matches!(event, Event::ToEngine(1, _, _, Some(Txn { success, .. })) if success.iter().any(is_deletion))
        };
        let place = loop {
            let mut events = simulation.events.iter();
            if let Some((place, _)) = events.find(|(_, event)| evicts(event)) {
                break *place;
            }
            simulation.run_for(Duration::from_micros(100));
        };
        let request = simulation.events.remove(&place).unwrap();
        let performed = simulation.now() + 10 * SECOND;
        simulation.at(super::nanoseconds(performed), request);
        simulation.kill_coordinator(1);
        simulation.start_coordinator(1);
        simulation.run_for(SECOND / 5);
        simulation.engine(false);
        simulation.run_until(performed - SECOND / 100);
        simulation.engine(true);
        simulation.run_for(5 * SECOND);
        simulation
    };
    verdict(&run(Rules::default()));
    let simulation = run(Rules { promise_seen: false, ..Rules::default() });
    assert!(!simulation.referee.violations.is_empty(), "the rule is needed");
}

#[test]
fn a_cluster_that_is_too_large_for_a_roster_releases() {
    let mut simulation = formed(Setup { addresses: 20, ..holding(17) });
    simulation.engine(false);
    simulation.run_for(20 * SECOND);
    assert_eq!(simulation.unowned().len(), 20);
    simulation.engine(true);
    simulation.run_for(20 * SECOND);
    assert_eq!(simulation.unowned(), [] as [IpAddr; 0]);
    verdict(&simulation);
}

#[test]
fn a_holder_whose_broker_hangs_asks_for_nothing() {
    let mut simulation = formed(holding(3));
    let before = simulation.counts();
    simulation.engine(false);
    simulation.run_for(10 * SECOND);
    simulation.pause_broker(0, 60 * SECOND);
    simulation.run_for(2 * simulation.setup.patience());
    assert_eq!(simulation.counts(), [0, before[1], before[2]]);
    simulation.engine(true);
    simulation.run_for(2 * simulation.setup.patience());
    assert_eq!((simulation.counts()[0], simulation.unowned().len()), (0, 0));
    verdict(&simulation);
}

#[test]
fn a_node_that_stops_without_engine_gives_its_addresses_up() {
    let mut simulation = formed(holding(2));
    simulation.engine(false);
    simulation.run_for(10 * SECOND);
    simulation.stop_coordinator(0);
    simulation.run_for(simulation.setup.lease);
    assert_eq!(simulation.counts()[0], 0);
    simulation.engine(true);
    simulation.run_for(3 * SECOND);
    assert_eq!(simulation.node(0).map(|node| node.stage().clone()), Some(Stage::Left));
    assert_eq!(simulation.unowned(), [] as [IpAddr; 0]);
    verdict(&simulation);
}

/// The cluster of a seed, with long outages of the engine and faults of the network between the nodes among all other faults.
fn run(seed: u64, rules: Rules) -> Simulation {
    let mut random = Random(seed);
    let lease = [3, 6, 6, 15][random.place(4)];
    let nodes = 2 + random.place(4);
    let setup = Setup {
        nodes,
        addresses: 1 + random.place(6),
        holders: nodes - random.place(2),
        lease: Duration::from_secs(lease),
        noise: [0, 0, 10, 50, 200][random.place(5)],
        seed: seed ^ 0x5eed,
        ..Setup::default()
    };
    let mut simulation = Simulation::with_rules(setup, rules);
    for host in 0..simulation.setup.nodes {
        simulation.start(host);
        simulation.run_for(Duration::from_millis(random.below(500)));
    }
    simulation.run_for(Duration::from_secs(random.below(2 * lease + 5)));
    let end = simulation.now() + 90 * SECOND;
    while simulation.now() < end && simulation.referee.violations.is_empty() {
        let host = random.place(nodes);
        let (some, more) = (random.below(4_000), random.below(16_000));
        match random.below(20) {
            0..=2 => simulation.engine(false),
            3 | 4 => simulation.engine(true),
            5 => {
                // All but one lose the engine: that one can take their addresses.
                (0..nodes).for_each(|other| simulation.link(other, other == host, other == host));
            }
            6 => simulation.link(host, true, random.below(2) == 0),
            7 => (0..nodes).for_each(|host| simulation.link(host, true, true)),
            8 => simulation.peers(host, random.below(2) == 0, random.below(2) == 0),
            9..=11 => (0..nodes).for_each(|host| simulation.peers(host, true, true)),
            12 => simulation.stall(Duration::from_millis(more)),
            13 => {
                simulation.kill_coordinator(host);
                simulation.start_coordinator(host);
            }
            14 => {
                simulation.pause_coordinator(host, Duration::from_millis(some));
                simulation.engine(random.below(2) == 0);
            }
            _ => fault(&mut simulation, &mut random),
        }
        let most = [200, 2_000, 2_000, 8_000][random.place(4)];
        simulation.run_for(Duration::from_millis(random.below(most)));
    }
    settle(&mut simulation);
    simulation
}

#[test]
#[ignore = "a tool: PORTREEVE_SEED=N prints how a seed ends"]
fn show_seed() {
    let seed = std::env::var("PORTREEVE_SEED").unwrap().parse().unwrap();
    let simulation = run(seed, Rules::default());
    println!("{:?} {:?}", simulation.setup, simulation.referee.violations);
}

#[test]
fn no_address_is_ever_on_two_nodes() {
    assert_none(run);
}

// Without `promise_seen`, a scenario fails.
each_is_needed! {
    super::run: roster_only every_promise every_roster promise_from_sending promise_binds promise_unless_evicting
}
