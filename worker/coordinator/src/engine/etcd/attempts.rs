//! Which endpoints get a request, and when: one after the other, without waiting for the first to time out.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout_at};

use super::endpoint::Endpoint;
use super::problem::Problem;
use crate::core::patience::ATTEMPT;

/// How long the next endpoint waits for the reply of the one before.
const HEDGE: Duration = Duration::from_millis(300);

/// By how much the last attempt may end late.
pub(super) const LATE: Duration = Duration::from_millis(100);

/// The pause after all endpoints have failed at once, as during an election.
pub(super) const PAUSE: Duration = Duration::from_millis(100);

/// The endpoints, and which of them answered last.
pub(super) struct Endpoints {
    all: Vec<Arc<Endpoint>>,
    preferred: AtomicUsize,
}

impl Endpoints {
    pub(super) fn new(all: Vec<Arc<Endpoint>>) -> Self {
        Endpoints { all, preferred: AtomicUsize::new(0) }
    }

    /// In the order of the settings.
    pub(super) fn all(&self) -> &[Arc<Endpoint>] {
        &self.all
    }

    /// The number of the endpoint that answered last.
    pub(super) fn preferred(&self) -> usize {
        self.preferred.load(Ordering::Relaxed)
    }

    /// The endpoint with that number, counted on past the last one.
    pub(super) fn get(&self, number: usize) -> Option<&Arc<Endpoint>> {
        self.all.get(number.checked_rem(self.all.len())?)
    }

    /// Sends a request until an endpoint replies. `act` sends it to one endpoint. Ends without a reply when all
    /// endpoints have had their time, and not much earlier: the caller sends the next request then.
    pub(super) async fn request<T, F>(&self, act: impl Fn(Arc<Endpoint>) -> F) -> Result<T, Vec<Problem>>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, Problem>> + Send + 'static,
    {
        let begin = Instant::now();
        let hedges = u32::try_from(self.all.len().saturating_sub(1)).unwrap_or(u32::MAX).min(2);
        let end = begin + ATTEMPT + HEDGE * hedges + LATE;
        loop {
            let problems = match timeout_at(end, self.round(&act)).await {
                Ok(Ok(reply)) => return Ok(reply),
                Ok(Err(problems)) => problems,
                Err(_) => return Err(vec![Problem::TimedOut]),
            };
            if problems.iter().any(|problem| matches!(problem, Problem::Compacted | Problem::TooLarge)) {
                return Err(problems);
            }
            let again = Instant::now() + PAUSE;
            if again >= begin + ATTEMPT || !problems.iter().any(Problem::is_transient) {
                sleep_until(begin + ATTEMPT).await;
                return Err(problems);
            }
            sleep_until(again).await;
        }
    }

    /// Sends a request to one endpoint after the other, until the first replies.
    async fn round<T, F>(&self, act: impl Fn(Arc<Endpoint>) -> F) -> Result<T, Vec<Problem>>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, Problem>> + Send + 'static,
    {
        let mut next = self.preferred();
        let end = next + self.all.len();
        let (mut attempts, mut problems) = (JoinSet::new(), Vec::new());
        loop {
            let hedge_at = Instant::now() + HEDGE;
            if next < end
                && let Some(endpoint) = self.get(next)
            {
                let (number, attempt) = (next, act(Arc::clone(endpoint)));
                attempts.spawn(async move { (number, attempt.await) });
                next += 1;
            }
            tokio::select! {
                ended = attempts.join_next() => match ended {
                    Some(Ok((number, Ok(reply)))) => {
                        self.preferred.store(number % self.all.len().max(1), Ordering::Relaxed);
                        // The others end as attempts do, so that it becomes known that they do not answer.
                        attempts.detach_all();
                        return Ok(reply);
                    }
                    Some(Ok((_, Err(problem)))) => problems.push(problem),
                    Some(Err(_)) => {} // the program ends
                    None => return Err(problems),
                },
                () = sleep_until(hedge_at), if next < end => {}
            }
        }
    }
}
