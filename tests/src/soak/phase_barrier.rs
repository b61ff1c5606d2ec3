//! The barrier that pauses the load: each actor passes it before each step, and the auditor closes it.
//!
//! While paused, each actor is between two steps and keeps what it holds. While idle, each has released everything.

use std::sync::{Condvar, Mutex, MutexGuard};

/// What the actors are to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Perform steps.
    Run,
    /// Wait.
    Paused,
    /// Release everything and wait.
    Idle,
    /// Release everything and return.
    Finished,
}

struct State {
    phase: Phase,
    active: usize,
    idle: usize,
    /// How many steps each actor has completed.
    steps: Vec<u64>,
}

/// The index of an actor.
pub struct Participant(usize);

/// See the module.
pub struct PhaseBarrier {
    state: Mutex<State>,
    changed: Condvar,
    actors: usize,
}

impl PhaseBarrier {
    /// An open barrier for `actors` actors.
    pub fn new(actors: usize) -> Self {
        let state = State { phase: Phase::Run, active: 0, idle: 0, steps: Vec::new() };
        Self { state: Mutex::new(state), changed: Condvar::new(), actors }
    }

    fn wait_while(&self, condition: impl FnMut(&mut State) -> bool) -> MutexGuard<'_, State> {
        self.changed.wait_while(self.state.lock().unwrap(), condition).unwrap()
    }

    /// Called by an actor: registers it.
    pub fn join(&self) -> Participant {
        let mut state = self.state.lock().unwrap();
        state.steps.push(0);
        Participant(state.steps.len() - 1)
    }

    /// Called by an actor: waits while paused and returns the phase. [`PhaseBarrier::end_step`] ends each step.
    pub fn begin_step(&self) -> Phase {
        let mut state = self.wait_while(|state| state.phase == Phase::Paused);
        if state.phase == Phase::Run {
            state.active += 1;
        }
        state.phase
    }

    /// Called by an actor: ends a step.
    pub fn end_step(&self, participant: &Participant) {
        let mut state = self.state.lock().unwrap();
        state.active -= 1;
        state.steps[participant.0] += 1;
        drop(state);
        self.changed.notify_all();
    }

    /// Called by the scheduler: waits until every actor has begun and completed a step.
    pub fn wait_for_round(&self) {
        let before = self.state.lock().unwrap().steps.clone();
        // The first step that ends may have begun earlier, so two must end.
        let waits = |state: &State| before.iter().zip(&state.steps).any(|(before, now)| *now < before + 2);
        drop(self.wait_while(|state| waits(state)));
    }

    /// Called by an actor that has released everything: waits until the phase is no longer idle.
    pub fn wait_while_idle(&self) {
        self.state.lock().unwrap().idle += 1;
        self.changed.notify_all();
        let mut state = self.wait_while(|state| state.phase == Phase::Idle);
        state.idle -= 1;
    }

    /// Called by the auditor: pauses the actors, and returns when all have paused.
    pub fn pause(&self) {
        self.set(Phase::Paused);
        drop(self.wait_while(|state| state.active > 0));
    }

    /// Called by the auditor: makes the actors release everything, and returns when all have done so.
    pub fn make_idle(&self) {
        // An actor may still be waking up from the last idle phase.
        drop(self.wait_while(|state| state.idle > 0));
        self.set(Phase::Idle);
        drop(self.wait_while(|state| state.idle < self.actors));
    }

    /// Called by the auditor: sets the next phase.
    pub fn set(&self, phase: Phase) {
        self.state.lock().unwrap().phase = phase;
        self.changed.notify_all();
    }
}
