//! The events of a simulated cluster, as one of its nodes sees them.
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use portreeve_coordinator::core::decide::Facts;
use portreeve_coordinator::core::news::{Event, Journal, Kind, News, REMEMBERED};
use portreeve_coordinator::core::time::BootTime;
use portreeve_coordinator::simulate::{Setup, Simulation};

/// What the first node reports while something happens, as words.
fn news(cluster: &mut Simulation, seconds: u64, act: impl FnOnce(&mut Simulation)) -> Vec<String> {
    act(cluster);
    cluster.run_for(Duration::from_secs(seconds));
    let word = |news: News| {
        let node = news.node.map_or(String::new(), |node| format!(" {node}"));
        format!("{}{node}", news.kind.name())
    };
    let mut words: Vec<String> = cluster.node_mut(0).unwrap().take_news().into_iter().map(word).collect();
    words.dedup();
    words
}

fn cluster() -> Simulation {
    let mut cluster = Simulation::new(Setup { addresses: 3, ..Setup::default() });
    (0..3).for_each(|node| cluster.start(node));
    cluster.node_mut(0).unwrap().collect_news();
    cluster
}

#[test]
fn each_change_is_one_event() {
    let mut cluster = cluster();
    let words = news(&mut cluster, 60, |_| {});
    for expected in
        ["session-began n0", "node-joined n2", "node-ready n1", "address-taken n0", "address-taken n2"]
    {
        assert!(words.iter().any(|word| word == expected), "{expected} is not in {words:?}");
    }
    assert_eq!(news(&mut cluster, 60, |_| {}), [""; 0], "nothing happens");

    let sick = Facts { sick: Some("check".to_owned()), ..Facts::default() };
    let words = news(&mut cluster, 5, |cluster| cluster.facts(1, sick));
    assert_eq!(words[0], "node-sick n1");
    assert!(words[1].starts_with("address-granted n"), "{words:?}");
    let words = news(&mut cluster, 30, |cluster| cluster.facts(1, Facts::default()));
    assert_eq!(words, ["node-ready n1", "address-granted n1"]);

    let words = news(&mut cluster, 10, |cluster| cluster.kill(1));
    assert_eq!(words[0], "node-evicted n1");
    assert!(words[1].starts_with("address-taken n") && words.len() == 2, "{words:?}");
    let words = news(&mut cluster, 60, |cluster| cluster.start(1));
    assert_eq!(words, ["node-joined n1", "node-ready n1", "address-granted n1"]);
    let words = news(&mut cluster, 10, |cluster| cluster.stop_coordinator(1));
    assert_eq!(words[0], "node-leaving n1");
    assert_eq!(words.last().unwrap(), "node-left n1");

    let words = news(&mut cluster, 5, |cluster| cluster.drain(2, true, false));
    assert_eq!(words, ["drained n2", "address-granted n0"]);
    let words = news(&mut cluster, 5, |cluster| cluster.drain(2, false, false));
    assert_eq!(words[0], "undrained n2");
}

#[test]
fn a_lost_engine_and_a_restored_one_are_events() {
    let mut cluster = cluster();
    news(&mut cluster, 60, |_| {});
    let words = news(&mut cluster, 20, |cluster| cluster.engine(false));
    assert_eq!(words, ["engine-lost", "withdrawn n0"]);
    let words = news(&mut cluster, 20, |cluster| cluster.engine(true));
    assert_eq!(words[0], "engine-back");
    let words = news(&mut cluster, 60, Simulation::wipe);
    assert_eq!(words[..2], ["engine-reset", "session-lost n0"], "{words:?}");
    assert!(words.iter().any(|word| word == "session-began n0"), "{words:?}");
    cluster.kill_coordinator(0);
    cluster.start_coordinator(0);
    cluster.node_mut(0).unwrap().collect_news();
    assert_eq!(news(&mut cluster, 5, |_| {})[0], "session-resumed n0");
    let counts = cluster.node(0).unwrap().beat_counts();
    let p99_us = counts.p99_us.unwrap();
    assert!(counts.sent >= 4 && counts.failed == 0 && (500..20_000).contains(&p99_us), "{counts:?}");
}

#[test]
fn a_journal_remembers_the_last_events() {
    let mut journal = Journal::default();
    for number in 1..=300 {
        let recorded = journal.record(BootTime(number), number, vec![News::new(Kind::Frozen, "")]);
        assert_eq!(recorded, [Event { number, time_ms: number, news: News::new(Kind::Frozen, "") }]);
    }
    let numbers: Vec<u64> = journal.events().map(|event| event.number).collect();
    assert_eq!((numbers.len(), numbers[0], numbers[255]), (REMEMBERED, 45, 300));
    let json = serde_json::to_value(journal.events().next().unwrap()).unwrap();
    assert_eq!(json, serde_json::json!({ "number": 45, "time_ms": 45, "event": "frozen" }));
}
