//! `portreeve policy`: the rules that allow this user requests, and the floating addresses.

use std::process::ExitCode;

use portreeve::policy::{FloatingAddress, PolicyPage, PolicyRule, TopologyBlock};
use portreeve::{Client, Text};
use serde_json::json;

use crate::failure::Failure;
use crate::output::{Output, render, table};

/// All pages of the policy.
pub struct Whole {
    nodename: Text<64>,
    lease: u32,
    /// The rules that allow this user requests.
    pub rules: Vec<PolicyRule>,
    topology: Vec<TopologyBlock>,
    floating: Vec<FloatingAddress>,
}

/// Requests all pages.
pub async fn whole(client: &Client) -> Result<Whole, portreeve::Error> {
    let mut page = client.policy(0).await?;
    let (nodename, lease) = (page.nodename.clone(), page.lease);
    let (mut rules, mut topology, mut floating, mut last) = (Vec::new(), Vec::new(), Vec::new(), 0);
    loop {
        let PolicyPage { rules: more, topology: blocks, floating: addresses, next, .. } = page;
        rules.extend(more.into_vec());
        topology.extend(blocks.into_vec());
        floating.extend(addresses.into_vec());
        // Row numbers only increase. A faulty broker that returns a lower one would make this loop endless.
        if next <= last {
            return Ok(Whole { nodename, lease, rules, topology, floating });
        }
        last = next;
        page = client.policy(next).await?;
    }
}

pub async fn run(client: &Client, out: Output) -> Result<ExitCode, Failure> {
    let operations: Vec<String> = client
        .welcome()
        .map(|welcome| welcome.operations.iter().map(|name| name.as_str().to_owned()).collect())
        .unwrap_or_default();
    let Whole { nodename, lease, rules, topology, floating } = whole(client).await?;
    if out.json {
        out.value(&json!({
            "operations": operations,
            "nodename": nodename.as_str(),
            "lease_s": lease,
            "rules": rules,
            "topology": topology,
            "floating": floating,
        }))?;
        return Ok(ExitCode::SUCCESS);
    }
    let operations = if operations.is_empty() { "none".to_owned() } else { operations.join(" ") };
    let mut parts = vec![format!("operations: {operations}")];
    if !rules.is_empty() {
        let mut shown = table(["RULE", "PLACE"]);
        shown.add_rows(rules.iter().map(|rule| [rule.text.to_string(), rule.place.to_string()]));
        parts.push(render(shown));
    }
    if !topology.is_empty() {
        let mut shown = table(["TOPOLOGY", "INTERFACE", "MASK"]);
        shown.add_rows(topology.iter().map(|row| {
            [format!("{}/{}", row.block, row.prefix), row.interface.to_string(), row.mask.to_string()]
        }));
        parts.push(render(shown));
    }
    if !floating.is_empty() {
        let mut shown = table(["FLOATING ADDRESS", "INTERFACE", "DECLARED BY", "PREFERENCE", "FOLLOWS"]);
        shown.add_rows(floating.iter().map(|row| {
            [
                format!("{}/{}", row.address, row.prefix),
                row.interface.to_string(),
                row.name.to_string(),
                row.preference.to_string(),
                row.follows.map_or_else(String::new, |address| address.to_string()),
            ]
        }));
        parts.push(render(shown));
    }
    out.text(parts.join("\n\n"))?;
    Ok(ExitCode::SUCCESS)
}
