//! The checks of this node: commands whose exit status says whether the node can serve.

use std::process::Stdio;
use std::time::Duration;

use portreeve::cluster::HealthCheck;
use tokio::process::Command;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};

/// Runs a check again and again, and reports each change of its result: `Some` with the reason for which it fails. The first run
/// decides alone. A run that takes longer than the interval, at least one second, has failed.
pub async fn run(check: HealthCheck, mut report: impl FnMut(Option<String>)) {
    let every = Duration::from_millis(check.interval_ms.into());
    let limit = every.max(Duration::from_secs(1));
    let mut ticks = interval(every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut is_failed, mut in_row) = (false, 0);
    let mut is_first = true;
    loop {
        ticks.tick().await;
        let begin = Instant::now();
        let result = run_once(&check, limit).await;
        tracing::debug!(check = %check.name, ?result, took = ?begin.elapsed(), "ran a check");
        in_row = if result.is_err() == is_failed { 0 } else { in_row + 1 };
        let needed = match (std::mem::take(&mut is_first), is_failed) {
            (true, _) => 1,
            (false, true) => check.rise,
            (false, false) => check.fall,
        };
        if in_row >= needed {
            (is_failed, in_row) = (!is_failed, 0);
            report(result.err().map(|why| format!("check {} {why}", check.name)));
        }
    }
}

async fn run_once(check: &HealthCheck, limit: Duration) -> Result<(), String> {
    let mut words = check.command.iter();
    let Some(program) = words.next() else { return Ok(()) };
    let mut command = Command::new(&**program);
    command.args(words.map(|word| &**word)).stdin(Stdio::null()).stdout(Stdio::null()).kill_on_drop(true);
    let mut child = command.spawn().map_err(|error| format!("cannot run {program}: {error}"))?;
    match timeout(limit, child.wait()).await {
        Ok(Ok(status)) if status.success() => Ok(()),
        Ok(Ok(status)) => Err(format!("failed: {status}")),
        Ok(Err(error)) => Err(format!("cannot be awaited: {error}")),
        Err(_) => Err(format!("took longer than {} s", limit.as_secs_f64())),
    }
}
