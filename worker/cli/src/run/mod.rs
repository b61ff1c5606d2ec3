//! `portreeve run`: runs an unmodified program, and answers its bind(2) with the broker's sockets where policy permits that.

mod answer;
mod program;
mod supervise;

use std::ffi::OsString;
use std::process::ExitCode;
use std::time::Duration;

use portreeve::Client;
use portreeve::policy::PolicyRule;
use portreeve_intercept::Rules;
use rustix::process::{DumpableBehavior, set_child_subreaper, set_dumpable_behavior};
use serde_json::json;

use crate::broker::Broker;
use crate::failure::Failure;
use crate::output::{Output, render, table};
use crate::policy;

#[derive(clap::Args)]
pub struct Arguments {
    /// Show which listeners of a program the broker would open, and do not run it.
    #[arg(long)]
    dry_run: bool,
    /// Free an endpoint as soon as the program closes its socket: for a program that closes and opens listeners while it runs. Needs
    /// a permit with `unkept = true`. The broker then keeps no copy, so a listener survives neither the end of the program nor a
    /// replacement of the broker.
    #[arg(long)]
    unkept: bool,
    /// Run a set-user-id or set-group-id program as this user, without the privileges of its owner, instead of refusing it: for
    /// example a mail server that is installed set-user-id root and is configured to need no root.
    #[arg(long)]
    ignore_set_id: bool,
    /// The program and its arguments.
    #[arg(value_name = "PROGRAM", trailing_var_arg = true, required_unless_present = "dry_run")]
    command: Vec<OsString>,
}

pub async fn run(broker: &Broker, out: Output, arguments: Arguments) -> Result<ExitCode, Failure> {
    // Before anything secret is in memory: other processes of this user, and so the program, may not look into this one.
    let not_dumpable = set_dumpable_behavior(DumpableBehavior::NotDumpable);
    not_dumpable.map_err(|error| Failure::System("cannot protect this process".to_owned(), error.into()))?;
    let client = broker.open_inherited_or_reconnecting().await?;
    let (rules, shown) = rules(&client).await?;
    if arguments.dry_run {
        return show(&shown, out);
    }
    if rules.is_empty() {
        let message = "policy permits this user no TCP or UDP listener, so the broker could answer no bind of the program. Add \
                       a permit with listen to its peer scope, see portreeve.conf(5), or run the program without portreeve";
        return Err(Failure::NotPermitted(message.to_owned()));
    }
    // A program that leaves its parent is still a descendant of this process, which Yama demands, and is reaped.
    let subreaper = set_child_subreaper(Some(rustix::process::getpid()));
    subreaper
        .map_err(|error| Failure::System("cannot adopt the program's processes".to_owned(), error.into()))?;
    let answers =
        answer::Answers::new(client, rules, !arguments.unkept, Duration::from_secs(broker.timeout.into()));
    supervise::run(&arguments.command, arguments.ignore_set_id, answers).await
}

/// Reads the rules about TCP and UDP listeners, and returns them also as the broker shows them.
async fn rules(client: &Client) -> Result<(Rules, Vec<PolicyRule>), portreeve::Error> {
    let (mut rules, mut shown) = (Rules::default(), Vec::new());
    for rule in policy::whole(client).await?.rules {
        if rules.add(&rule.text) {
            shown.push(rule);
        }
    }
    Ok((rules, shown))
}

fn show(rules: &[PolicyRule], out: Output) -> Result<ExitCode, Failure> {
    if out.json {
        out.value(&json!({ "rules": rules }))?;
        return Ok(ExitCode::SUCCESS);
    }
    if rules.is_empty() {
        out.text("the broker would open no listener: policy permits none to this user")?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut shown = table(["THE BROKER OPENS", "PLACE"]);
    shown.add_rows(rules.iter().map(|rule| [rule.text.to_string(), rule.place.to_string()]));
    out.text(render(shown))?;
    Ok(ExitCode::SUCCESS)
}
