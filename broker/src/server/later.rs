//! Requests that take a while: carried out beside the session's own task, and answered when they are done.
//!
//! Promises: a session has at most so many of them as the option `max_in_flight` says; one that is over misses its answers and does not end its requests.

use std::net::Shutdown;

use super::session::Session;

impl Session {
    /// Begins to carry out a request beside the session's own task; false when there are too many.
    pub fn begin_later(&self) -> bool {
        let may = self.later.get() < self.in_flight;
        if may {
            self.later.update(|count| count + 1);
            self.handover.begin_later();
        }
        may
    }

    /// Answers a request that was begun so, where it wants an answer. A session that is over misses it.
    pub async fn end_later(&self, frame: Option<Vec<u8>>) {
        self.later.update(|count| count.saturating_sub(1));
        self.handover.end_later();
        if let Some(frame) = frame
            && let Err(why) = self.send_in_time(&frame, &[]).await
        {
            tracing::info!(session = self.number, why, "an answer was not sent");
            let _it_is_over_already = self.channel.shutdown(Shutdown::Both);
        }
    }
}
