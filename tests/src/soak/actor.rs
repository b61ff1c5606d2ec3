//! Actors, which generate the load: each performs steps, and passes the barrier before each.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use super::model::Model;
use super::phase_barrier::{Phase, PhaseBarrier};

/// A source of load.
pub trait Actor {
    /// Performs one step, of about a second at most.
    fn step(&mut self, model: &Model);

    /// Releases everything that the actor holds.
    fn release(&mut self, model: &Model);

    /// How long to wait after a step.
    fn pause(&mut self) -> Duration;
}

/// Runs an actor until the soak test ends. A panic in a step is recorded as a violation.
pub fn run_actor(mut actor: impl Actor, barrier: &PhaseBarrier, model: &Model) {
    let mut catch_panic = |step: &mut dyn FnMut(&mut dyn Actor)| {
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| step(&mut actor))) {
            model.violation(message(&*panic));
        }
        actor.pause()
    };
    let participant = barrier.join();
    loop {
        match barrier.begin_step() {
            Phase::Run => {
                let pause = catch_panic(&mut |actor| actor.step(model));
                barrier.end_step(&participant);
                std::thread::sleep(pause);
            }
            Phase::Idle => {
                catch_panic(&mut |actor| actor.release(model));
                barrier.wait_while_idle();
            }
            Phase::Paused | Phase::Finished => {
                catch_panic(&mut |actor| actor.release(model));
                return;
            }
        }
    }
}

/// The message of a panic.
pub fn message(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("a panic").to_owned()
}
