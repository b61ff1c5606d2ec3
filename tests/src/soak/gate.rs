//! Holding the load still: everyone who acts passes a gate before each act, and the auditor closes it.
//!
//! Frozen, everyone stands between two acts and keeps what it has. Calm, everyone has given back what it had.

use std::sync::{Condvar, Mutex, MutexGuard};

/// What those who act are to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Act.
    Run,
    /// Stand still.
    Frozen,
    /// Give everything back and stand still.
    Calm,
    /// Give everything back and leave.
    Over,
}

struct State {
    phase: Phase,
    acting: usize,
    calm: usize,
    /// How many acts each has ended.
    acts: Vec<u64>,
}

/// The place of one who acts.
pub struct Seat(usize);

/// The gate.
pub struct Gate {
    state: Mutex<State>,
    changed: Condvar,
    actors: usize,
}

impl Gate {
    /// A gate that so many pass. It is open.
    pub fn new(actors: usize) -> Self {
        let state = State { phase: Phase::Run, acting: 0, calm: 0, acts: Vec::new() };
        Self { state: Mutex::new(state), changed: Condvar::new(), actors }
    }

    fn wait_while(&self, condition: impl FnMut(&mut State) -> bool) -> MutexGuard<'_, State> {
        self.changed.wait_while(self.state.lock().unwrap(), condition).unwrap()
    }

    /// For one who acts: takes a place.
    pub fn seat(&self) -> Seat {
        let mut state = self.state.lock().unwrap();
        state.acts.push(0);
        Seat(state.acts.len() - 1)
    }

    /// For one who acts: waits while frozen, then says what to do. [`Gate::leave`] ends each act.
    pub fn enter(&self) -> Phase {
        let mut state = self.wait_while(|state| state.phase == Phase::Frozen);
        if state.phase == Phase::Run {
            state.acting += 1;
        }
        state.phase
    }

    /// Ends an act.
    pub fn leave(&self, seat: &Seat) {
        let mut state = self.state.lock().unwrap();
        state.acting -= 1;
        state.acts[seat.0] += 1;
        drop(state);
        self.changed.notify_all();
    }

    /// For the conductor: returns when everyone has begun and ended an act since now.
    pub fn round(&self) {
        let before = self.state.lock().unwrap().acts.clone();
        // The first that ends may have begun before.
        let waits = |state: &State| before.iter().zip(&state.acts).any(|(before, now)| *now < before + 2);
        drop(self.wait_while(|state| waits(state)));
    }

    /// For one who has given back everything: waits until the calm is over.
    pub fn rest(&self) {
        self.state.lock().unwrap().calm += 1;
        self.changed.notify_all();
        let mut state = self.wait_while(|state| state.phase == Phase::Calm);
        state.calm -= 1;
    }

    /// For the auditor: has everyone stand still, and returns when they do.
    pub fn freeze(&self) {
        self.set(Phase::Frozen);
        drop(self.wait_while(|state| state.acting > 0));
    }

    /// For the auditor: has everyone give back what they have, and returns when they did.
    pub fn calm(&self) {
        // Who rests from the last calm has to be up again first.
        drop(self.wait_while(|state| state.calm > 0));
        self.set(Phase::Calm);
        drop(self.wait_while(|state| state.calm < self.actors));
    }

    /// For the auditor: lets everyone go on, or leave.
    pub fn set(&self, phase: Phase) {
        self.state.lock().unwrap().phase = phase;
        self.changed.notify_all();
    }
}
