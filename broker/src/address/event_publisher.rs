//! Publishes events about addresses and interfaces.

use std::rc::Rc;
use std::time::Duration;

use portreeve_protocol::{Event, EventCode, Text};

use super::lease::Lease;
use crate::events::{Audience, Events};
use crate::holder::Holder;
use crate::sys::Interface;

/// Publishes events about addresses and interfaces.
pub(super) struct EventPublisher {
    events: Rc<Events>,
}

impl EventPublisher {
    pub fn new(events: Rc<Events>) -> Self {
        Self { events }
    }

    /// Publishes an event about an address.
    pub fn address(&self, lease: &Lease, code: EventCode, detail: &str) {
        let event = Event { code, detail: Text::truncated(detail), ..event_for(lease) };
        self.events.publish(Audience::Holder(lease.holder), event);
    }

    /// Publishes that an address will be removed. Returns whether its holder is subscribed.
    pub fn removal_notice(&self, lease: &Lease, remaining: Duration) -> bool {
        let count = u64::try_from(remaining.as_millis()).unwrap_or(u64::MAX);
        let event = Event { code: EventCode::AddressLeaving, count, ..event_for(lease) };
        self.events.publish(Audience::Holder(lease.holder), event)
    }

    /// Publishes an event about an interface, to the holders of its addresses and to the peers that are allowed to change
    /// it.
    pub fn interface(&self, interface: &Interface, holders: Vec<Holder>, code: EventCode, detail: &str) {
        let event = Event {
            code,
            interface: Text::truncated(&interface.name),
            index: interface.index,
            detail: Text::truncated(detail),
            ..Event::default()
        };
        self.events.publish(Audience::Interface(holders), event);
    }
}

fn event_for(lease: &Lease) -> Event {
    Event {
        address: Some(lease.placement.address),
        interface: lease.interface.clone(),
        index: lease.placement.index,
        epoch: lease.epoch,
        ..Event::default()
    }
}
