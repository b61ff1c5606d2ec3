//! Requests in flight: executed in tasks of their own; each reply is sent when its request ends.
//!
//! Promises: a peer has at most `max_in_flight` of them, in all its sessions, those that have ended, and with the replies
//! that it did not read. A session that ends gets no more replies, but its requests are executed.

use portreeve_protocol::Fault;

use super::session::Session;

impl Session {
    /// Counts a request that begins, or returns the fault if there are too many.
    pub fn begin_in_flight(&self) -> Result<(), Fault> {
        self.account.begin_in_flight()?;
        self.in_flight.update(|count| count + 1);
        self.export.request_started();
        Ok(())
    }

    /// Sends the reply to a request that has ended, if the peer expects one. A session that has ended gets none.
    pub async fn end_in_flight(&self, frame: Option<Vec<u8>>) {
        // A takeover waits for the requests, but not for peers that do not read.
        self.export.request_ended();
        if let Some(frame) = frame
            && let Err(reason) = self.send_in_time(&frame).await
        {
            self.account.notice(|| {
                tracing::info!(session = self.number, reason, "a reply was not sent: closing the session");
            });
            self.hang_up();
        }
        self.in_flight.update(|count| count.saturating_sub(1));
        self.account.end_in_flight();
    }
}
