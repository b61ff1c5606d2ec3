//! Scratch.
use portreeve_coordinator::simulate::*;
use std::time::Duration;
fn main() {
    let mut s = Simulation::new(Setup::default());
    for i in 0..3 {
        s.start(i);
    }
    for t in 1..60 {
        s.run_until(Duration::from_secs(t));
        if t == 30 {
            s.kill(0);
        }
        println!(
            "{t}: unowned {} counts {:?} {:?} events {}",
            s.unowned().len(),
            s.referee.counts(t * 1_000_000_000),
            s.referee.violations,
            s.processed
        );
    }
}
