//! Requests in flight: executed in tasks of their own; each reply is sent when its request ends.
//!
//! Promises: a session has at most `max_in_flight` of them. A session that ends gets no more replies, but its requests are
//! executed.

use std::net::Shutdown;

use portreeve_protocol::{Fault, FaultCode};

use super::session::Session;

impl Session {
    /// Counts a request that begins, or returns the fault if there are too many.
    pub fn begin_in_flight(&self) -> Result<(), Fault> {
        if self.in_flight.get() >= self.max_in_flight {
            let message = format!("{} requests of this session are in flight", self.max_in_flight);
            let remedy = "wait for a reply first, or raise max_in_flight in the broker scope";
            return Err(Fault::new(FaultCode::Busy, &message).remedy(remedy));
        }
        self.in_flight.update(|count| count + 1);
        self.export.request_started();
        Ok(())
    }

    /// Sends the reply to a request that has ended, if the peer expects one. A session that has ended gets none.
    pub async fn end_in_flight(&self, frame: Option<Vec<u8>>) {
        self.in_flight.update(|count| count.saturating_sub(1));
        self.export.request_ended();
        if let Some(frame) = frame
            && let Err(reason) = self.send_in_time(&frame, &[]).await
        {
            tracing::info!(session = self.number, reason, "a reply was not sent: closing the session");
            let _ = self.channel.shutdown(Shutdown::Both); // the session may have ended already
        }
    }
}
