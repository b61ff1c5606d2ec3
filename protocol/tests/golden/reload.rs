//! The messages about reading the configuration again.

use portreeve_protocol::reload::*;

use super::{Golden, list, text};

pub fn pin(golden: &Golden) {
    golden.request("reload", 18, &Reload { last: true });
    let change = Change { outcome: text("applied"), what: text("broker retain"), detail: text("30 -> 5") };
    let finding = Finding {
        severity: text("warning"),
        file: text("a.conf"),
        line: 1,
        column: 2,
        end_line: 3,
        end_column: 4,
        message: text("m"),
        help: text("h"),
        rendered: text("s"),
    };
    let reloaded = Reloaded {
        number: 2,
        age_ms: 1_000,
        requester: text("SIGHUP"),
        accepted: true,
        files: 3,
        changes: list([change]),
        changes_omitted: 4,
        findings: list([finding]),
        findings_omitted: 5,
    };
    golden.reply::<Reload>("reload-reply", 18, 0, &reloaded);
}
