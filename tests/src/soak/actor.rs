//! Whoever makes load: one act after the other, each between two passes of the gate.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use super::gate::{Gate, Phase};
use super::ledger::Ledger;

/// One who acts.
pub trait Actor {
    /// One act, of a second or so at most.
    fn act(&mut self, ledger: &Ledger);

    /// Gives back everything.
    fn give_back(&mut self, ledger: &Ledger);

    /// How long to wait after an act.
    fn pause(&mut self) -> Duration;
}

/// Acts until it is over. What fails in an act as a test fails is a violation.
pub fn perform(mut actor: impl Actor, gate: &Gate, ledger: &Ledger) {
    let mut guarded = |act: &mut dyn FnMut(&mut dyn Actor)| {
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| act(&mut actor))) {
            ledger.violation(message(&*panic));
        }
        actor.pause()
    };
    let seat = gate.seat();
    loop {
        match gate.enter() {
            Phase::Run => {
                let pause = guarded(&mut |actor| actor.act(ledger));
                gate.leave(&seat);
                std::thread::sleep(pause);
            }
            Phase::Calm => {
                guarded(&mut |actor| actor.give_back(ledger));
                gate.rest();
            }
            Phase::Frozen | Phase::Over => {
                guarded(&mut |actor| actor.give_back(ledger));
                return;
            }
        }
    }
}

/// What a panic said.
pub fn message(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("a panic").to_owned()
}
