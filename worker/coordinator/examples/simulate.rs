//! Scratch.
use std::time::*;
use portreeve_coordinator::simulate::*;
fn main() {
    let nodes = std::env::args().nth(1).unwrap().parse().unwrap();
    let addresses = std::env::args().nth(2).unwrap().parse().unwrap();
    let mut s = Simulation::new(Setup { nodes, addresses, ..Setup::default() });
    let t0 = Instant::now();
    for i in 0..nodes { s.start(i); s.run_for(Duration::from_millis(1)); }
    for t in 1..40 {
        s.run_for(Duration::from_secs(1));
        if t == 20 { s.kill(0); }
        println!("{t}: unowned {} {:?} events {} wall {:?}", s.unowned().len(), s.referee.violations, s.processed, t0.elapsed());
    }
    println!("{}", std::fs::read_to_string("/proc/self/status").unwrap().lines().find(|l| l.starts_with("VmHWM")).unwrap());
}
