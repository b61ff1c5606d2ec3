//! A short soak: what a long one looks for has to hold from the first second on.

use std::time::Duration;

use portreeve_tests::isolated;
use portreeve_tests::soak::{Settings, run};

#[test]
fn under_mixed_load_with_everything_killed_or_replaced_at_random_nothing_is_refused_lost_or_left() {
    isolated(|host| {
        let report = run(host, &Settings { duration: Duration::from_secs(20), seed: 1 });
        report.print();
        assert!(report.violations.is_empty());
        for what in [
            "clients served",
            "listeners verified",
            "leases granted",
            "workers killed",
            "takeovers",
            "reloads",
            "idle audits",
        ] {
            assert!(report.counts.get(what).is_some_and(|count| *count > 0), "no {what}");
        }
    });
}
