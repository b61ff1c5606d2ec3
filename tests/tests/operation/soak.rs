//! A short soak test: the checks of a long one must hold from the first second.

use std::time::Duration;

use portreeve_tests::isolated;
use portreeve_tests::soak::{Settings, run};

#[test]
fn mixed_load_with_random_kills_and_takeovers_refuses_loses_and_leaks_nothing() {
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
