//! No trick: the scene itself must pass.

use crate::adversary::{Attacker, Trick};

/// See the module.
pub struct Idle;

impl Trick for Idle {
    fn attack(&self, attacker: &mut Attacker<'_>) {
        attacker.hold();
    }
}
