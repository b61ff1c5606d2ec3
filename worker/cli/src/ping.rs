//! `portreeve ping`: measures the round trip of a request without effect.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use portreeve::Client;
use serde_json::json;

use crate::failure::Failure;
use crate::output::Output;

#[derive(clap::Args)]
pub struct Arguments {
    /// Number of requests.
    #[arg(short, long, default_value_t = 5, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    count: u32,
}

pub async fn run(client: &Client, out: Output, arguments: &Arguments) -> Result<ExitCode, Failure> {
    let (mut min, mut max, mut sum) = (Duration::MAX, Duration::ZERO, Duration::ZERO);
    for number in 1..=arguments.count {
        let begin = Instant::now();
        client.ping().await?;
        let time = begin.elapsed();
        (min, max, sum) = (min.min(time), max.max(time), sum + time);
        if !out.json {
            out.text(format_args!("reply {number}: {}", microseconds(time)))?;
        }
    }
    let mean = sum / arguments.count;
    if out.json {
        out.value(&json!({
            "count": arguments.count,
            "least_us": min.as_secs_f64() * 1e6,
            "mean_us": mean.as_secs_f64() * 1e6,
            "most_us": max.as_secs_f64() * 1e6,
        }))?;
    } else {
        let [min, mean, max] = [min, mean, max].map(microseconds);
        out.text(format_args!("minimum {min}, mean {mean}, maximum {max}"))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn microseconds(time: Duration) -> String {
    format!("{:.1} µs", time.as_secs_f64() * 1e6)
}
