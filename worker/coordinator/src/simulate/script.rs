//! Scripts of simulations: what happens when, one event a line.
//!
//! ```text
//! # seconds  event
//! 30         kill 0
//! 60         start 0
//! 75.5       engine down
//! 80         engine up
//! 120        end
//! ```

use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use serde::Serialize;

use super::{Setup, Simulation};
use crate::core::decide::Facts;
use crate::core::record::{Key, Order, Value};

/// What can happen, as in the usage of the program: NODE is its number.
const EVENTS: &str = "kill NODE, start NODE, cut NODE, join NODE, sick NODE, well NODE, drain NODE [release], undrain NODE, \
    coordinator NODE kill|start|stop|pause SECONDS, broker NODE kill|start|pause SECONDS, pin ADDRESS NODE, unpin ADDRESS, \
    freeze, thaw, engine down|up|stall SECONDS|backup|restore|wipe, heal, end";

/// A mistake in a script.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScriptError {
    line: usize,
    message: String,
}

impl fmt::Display for ScriptError {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "line {}: {}", self.line, self.message)
    }
}

impl std::error::Error for ScriptError {}

type Act = Box<dyn Fn(&mut Simulation)>;

struct Step {
    at: Duration,
    text: String,
    /// `None`: the end.
    act: Option<Act>,
}

/// A script for a cluster.
pub struct Script {
    setup: Setup,
    steps: Vec<Step>,
}

/// How a simulation went.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    /// How many nodes the cluster has.
    pub nodes: usize,
    /// How many addresses it has.
    pub addresses: usize,
    /// One row for the formation of the cluster and one for each event.
    pub rows: Vec<Row>,
    /// What must not happen, and did.
    pub violations: Vec<String>,
    /// How many inputs and messages were processed.
    pub processed: u64,
}

/// What followed from one event, until the next one.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Row {
    /// The time of the event in seconds.
    pub at: f64,
    /// The event.
    pub event: String,
    /// How many addresses had not exactly one host, at most.
    pub unowned: usize,
    /// How long that lasted in seconds, to a tenth; `None`: until the next event.
    pub lasted: Option<f64>,
    /// How often a host began to answer for an address.
    pub moves: u64,
    /// How many addresses the hosts have at the end, at least and at most.
    pub least: usize,
    /// The same, at most.
    pub most: usize,
}

impl Script {
    /// Parses a script.
    ///
    /// # Errors
    /// The first line that is not an event, or is earlier than the one before.
    pub fn parse(text: &str, setup: Setup) -> Result<Self, ScriptError> {
        let mut steps: Vec<Step> = Vec::new();
        for (number, line) in (1..).zip(text.lines()) {
            let error = |message: String| ScriptError { line: number, message };
            let line = line.split('#').next().unwrap_or_default().trim();
            if line.is_empty() {
                continue;
            }
            let mut words = line.split_whitespace();
            let time = words.next().unwrap_or_default();
            let at = time.parse().ok().and_then(|time| Duration::try_from_secs_f64(time).ok());
            let at = at.ok_or_else(|| error(format!("{time:?} is not a time; write it in seconds first")))?;
            if steps.last().is_some_and(|last| at < last.at) {
                return Err(error(format!("{time} s is before the previous event; write events in order")));
            }
            let words: Vec<&str> = words.collect();
            let act = act(&words, &setup).map_err(error)?;
            steps.push(Step { at, text: words.join(" "), act });
        }
        Ok(Script { setup, steps })
    }

    /// Runs it. All nodes start at the beginning, within a second.
    pub fn run(&self) -> Report {
        let mut simulation = Simulation::new(self.setup.clone());
        let pause = Duration::from_secs(1) / u32::try_from(self.setup.nodes).unwrap_or(u32::MAX).max(1);
        for host in 0..self.setup.nodes {
            simulation.start(host);
            simulation.run_for(pause);
        }
        let formation = Step { at: Duration::ZERO, text: "the cluster starts".to_owned(), act: None };
        let mut rows = Vec::new();
        let mut last = &formation;
        let mut moves = 0;
        for step in &self.steps {
            rows.push(observe(&mut simulation, last, step.at, moves));
            moves = simulation.referee.starts;
            last = step;
            match &step.act {
                Some(act) => act(&mut simulation),
                None => break,
            }
        }
        if last.act.is_some() || self.steps.is_empty() {
            let end = last.at + self.setup.patience() * 2 + Duration::from_secs(3);
            rows.push(observe(&mut simulation, last, end, moves));
        }
        Report {
            nodes: self.setup.nodes,
            addresses: self.setup.addresses,
            rows,
            violations: simulation.referee.violations.clone(),
            processed: simulation.processed,
        }
    }
}

/// Runs until the next event.
fn observe(simulation: &mut Simulation, step: &Step, end: Duration, moves: u64) -> Row {
    const SAMPLE: Duration = Duration::from_millis(100);
    let (mut unowned, mut lasted) = (0, None);
    loop {
        let missing = simulation.unowned().len();
        unowned = unowned.max(missing);
        match missing {
            0 => lasted = lasted.or(Some(simulation.now().saturating_sub(step.at))),
            _ => lasted = None,
        }
        if simulation.now() >= end {
            break;
        }
        simulation.run_until((simulation.now() + SAMPLE).min(end));
    }
    let counts = simulation.counts();
    Row {
        at: step.at.as_secs_f64(),
        event: step.text.clone(),
        unowned,
        lasted: lasted.map(|lasted| (lasted.as_secs_f64() * 10.0).round() / 10.0),
        moves: simulation.referee.starts - moves,
        least: counts.iter().copied().min().unwrap_or_default(),
        most: counts.iter().copied().max().unwrap_or_default(),
    }
}

fn act(words: &[&str], setup: &Setup) -> Result<Option<Act>, String> {
    let node = |text: &str| {
        let node = text.parse().ok().filter(|node| *node < setup.nodes);
        node.ok_or_else(|| format!("{text:?} is not a node; write a number from 0 to {}", setup.nodes - 1))
    };
    let address = |text: &str| {
        let address =
            text.parse::<IpAddr>().ok().filter(|address| setup.addresses().any(|own| own == *address));
        address.ok_or_else(|| {
            let last = Setup::address(setup.addresses.saturating_sub(1));
            format!("{text:?} is not an address of the cluster; they are {} to {last}", Setup::address(0))
        })
    };
    let duration = |text: &str| {
        let duration = text.parse().ok().and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
        duration.ok_or_else(|| format!("{text:?} is not a duration in seconds"))
    };
    fn on(node: usize, act: fn(&mut Simulation, usize)) -> Act {
        Box::new(move |simulation| act(simulation, node))
    }
    let plain = |act: fn(&mut Simulation)| -> Act { Box::new(act) };
    let sick = || Facts { sick: Some("the script says so".to_owned()), down: Vec::new() };
    let act = match words {
        ["kill", at] => on(node(at)?, Simulation::kill),
        ["start", at] => on(node(at)?, Simulation::start),
        ["cut", at] => on(node(at)?, |simulation, at| simulation.link(at, false, false)),
        ["join", at] => on(node(at)?, |simulation, at| simulation.link(at, true, true)),
        ["sick", at] => {
            let at = node(at)?;
            Box::new(move |simulation: &mut Simulation| simulation.facts(at, sick()))
        }
        ["well", at] => on(node(at)?, |simulation, at| simulation.facts(at, Facts::default())),
        ["drain", at] => on(node(at)?, |simulation, at| simulation.drain(at, true, false)),
        ["drain", at, "release"] => on(node(at)?, |simulation, at| simulation.drain(at, true, true)),
        ["undrain", at] => on(node(at)?, |simulation, at| simulation.drain(at, false, false)),
        ["coordinator", at, "kill"] => on(node(at)?, Simulation::kill_coordinator),
        ["coordinator", at, "start"] => on(node(at)?, Simulation::start_coordinator),
        ["coordinator", at, "stop"] => on(node(at)?, Simulation::stop_coordinator),
        ["coordinator", at, "pause", seconds] => {
            let (at, duration) = (node(at)?, duration(seconds)?);
            Box::new(move |simulation: &mut Simulation| simulation.pause_coordinator(at, duration))
        }
        ["broker", at, "kill"] => on(node(at)?, Simulation::kill_broker),
        ["broker", at, "start"] => on(node(at)?, Simulation::start_broker),
        ["broker", at, "pause", seconds] => {
            let (at, duration) = (node(at)?, duration(seconds)?);
            Box::new(move |simulation: &mut Simulation| simulation.pause_broker(at, duration))
        }
        ["pin", text, at] => {
            let (address, at) = (address(text)?, node(at)?);
            Box::new(move |simulation: &mut Simulation| simulation.pin(address, at, None))
        }
        ["unpin", text] => {
            let address = address(text)?;
            Box::new(move |simulation: &mut Simulation| simulation.order(Key::Want(address), None))
        }
        ["freeze"] => plain(|simulation| {
            simulation.order(Key::Freeze, Some(&Value::Order(Order::default())));
        }),
        ["thaw"] => plain(|simulation| simulation.order(Key::Freeze, None)),
        ["engine", "down"] => plain(|simulation| simulation.engine(false)),
        ["engine", "up"] => plain(|simulation| simulation.engine(true)),
        ["engine", "stall", seconds] => {
            let duration = duration(seconds)?;
            Box::new(move |simulation: &mut Simulation| simulation.stall(duration))
        }
        ["engine", "backup"] => plain(Simulation::back_up),
        ["engine", "restore"] => plain(Simulation::restore),
        ["engine", "wipe"] => plain(Simulation::wipe),
        ["heal"] => plain(Simulation::heal),
        ["end"] => return Ok(None),
        _ => return Err(format!("{:?} is not an event; there are {EVENTS}", words.join(" "))),
    };
    Ok(Some(act))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_script_tells_what_followed_from_each_event() {
        let text = "20 kill 0 # power off\n\n40 start 0\n80 engine down\n100 engine up\n130 end";
        let report = Script::parse(text, Setup::default()).unwrap().run();
        let events: Vec<&str> = report.rows.iter().map(|row| row.event.as_str()).collect();
        assert_eq!(events, ["the cluster starts", "kill 0", "start 0", "engine down", "engine up"]);
        assert_eq!(report.violations, Vec::<String>::new());
        let [formation, kill, start, down, up] = report.rows.as_slice() else { panic!("{report:?}") };
        assert_eq!((formation.unowned, formation.moves, formation.least, formation.most), (10, 10, 3, 4));
        assert!(kill.unowned >= 3 && kill.lasted.is_some_and(|lasted| lasted < 8.0), "{report:?}");
        assert_eq!((start.moves, start.least, start.most), (3, 3, 4), "{report:?}");
        assert_eq!((down.unowned, down.lasted), (10, None), "{report:?}");
        assert_eq!((up.lasted.is_some(), up.least, up.most), (true, 3, 4), "{report:?}");
        assert!(
            serde_json::to_string(&report)
                .unwrap()
                .starts_with(r#"{"nodes":3,"addresses":10,"rows":[{"at":0.0"#)
        );
    }

    #[test]
    fn a_mistake_is_reported_with_its_line() {
        for (text, expected) in [
            ("kill 0", "line 1: \"kill\" is not a time; write it in seconds first"),
            ("\n5 kill 3", "line 2: \"3\" is not a node; write a number from 0 to 2"),
            ("5 freeze\n4 thaw", "line 2: 4 s is before the previous event; write events in order"),
            ("5 engine stall x", "line 1: \"x\" is not a duration in seconds"),
            (
                "5 unpin 10.0.0.11",
                "line 1: \"10.0.0.11\" is not an address of the cluster; they are 10.0.0.1 to 10.0.0.10",
            ),
        ] {
            let error = Script::parse(text, Setup::default()).err().unwrap();
            assert_eq!(error.to_string(), expected);
        }
        let error = Script::parse("1 explode", Setup::default()).err().unwrap().to_string();
        assert!(error.starts_with("line 1: \"explode\" is not an event; there are kill NODE, "), "{error}");
    }
}
