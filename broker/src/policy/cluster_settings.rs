//! The settings of the cluster, as a coordinator gets them. They are the same for every peer that is allowed to read them.

use std::path::PathBuf;
use std::time::Duration;

use portreeve_protocol::cluster::{self, ClusterSettings};
use portreeve_protocol::{List, Text};

use super::Policy;
use crate::config::{Cluster, Coordinator, Engine, HealthCheck, Spanned};

impl Policy {
    /// The settings of the configuration. Nothing is truncated: the configuration has the same maximum lengths.
    pub fn cluster_settings(&self) -> ClusterSettings {
        let Cluster { nodename, coordinator, .. } = &*self.topology;
        let Coordinator {
            group,
            lease,
            heartbeat,
            view_mature_time,
            view_balance_interval,
            balance_set_size,
            failback,
            on_engine_loss,
            engine,
            checks,
            peer_listen,
        } = coordinator;
        ClusterSettings {
            group: text(group.as_ref()),
            nodename: text(nodename.as_ref()),
            lease_ms: milliseconds(*lease),
            heartbeat_ms: milliseconds(*heartbeat),
            view_mature_ms: milliseconds(*view_mature_time),
            view_balance_ms: milliseconds(*view_balance_interval),
            balance_set_size: *balance_set_size,
            failback: *failback,
            on_engine_loss: *on_engine_loss,
            engine: engine.as_ref().map(self::engine),
            checks: List::truncated(checks.iter().map(check)),
            peer_listen: peer_listen
                .as_ref()
                .map_or_else(Text::default, |at| Text::truncated(&at.value.to_string())),
        }
    }
}

fn engine(engine: &Engine) -> cluster::Engine {
    let Engine { endpoints, ca, certificate, key, user, password_file, compaction } = engine;
    let urls = endpoints.iter().map(|endpoint| Text::truncated(&endpoint.value.to_string()));
    cluster::Engine {
        endpoints: List::truncated(urls),
        ca: path(ca.as_ref()),
        certificate: path(certificate.as_ref()),
        key: path(key.as_ref()),
        user: text(user.as_ref()),
        password_file: path(password_file.as_ref()),
        compaction: *compaction,
    }
}

fn check(check: &HealthCheck) -> cluster::HealthCheck {
    let HealthCheck { name, command, interval, fall, rise } = check;
    cluster::HealthCheck {
        name: Text::truncated(&name.value),
        command: List::truncated(command.iter().map(|word| Text::truncated(&word.value))),
        interval_ms: milliseconds(*interval),
        fall: *fall,
        rise: *rise,
    }
}

fn text<const MAX: usize>(value: Option<&Spanned<String>>) -> Text<MAX> {
    value.map_or_else(Text::default, |value| Text::truncated(&value.value))
}

fn path<const MAX: usize>(value: Option<&Spanned<PathBuf>>) -> Text<MAX> {
    // The configuration is UTF-8, so no path is changed.
    value.map_or_else(Text::default, |value| Text::truncated(&value.value.to_string_lossy()))
}

fn milliseconds(duration: Duration) -> u32 {
    u32::try_from(duration.as_millis()).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use portreeve_protocol::cluster::*;
    use portreeve_protocol::frame::MAX_BODY;
    use portreeve_protocol::{Kind, codec};

    use super::*;
    use crate::config::parse_text;

    fn settings(text: &str) -> ClusterSettings {
        let (config, _) = parse_text("c.conf", text).unwrap();
        Policy::new(&config, &mut |_| None).unwrap().cluster_settings()
    }

    #[test]
    fn a_configuration_without_a_cluster_has_the_defaults() {
        let defaults = settings("");
        assert_eq!((defaults.lease_ms, defaults.heartbeat_ms), (6_000, 1_000));
        assert_eq!((defaults.view_mature_ms, defaults.view_balance_ms), (5_000, 10_000));
        assert_eq!(defaults.balance_set_size, 10);
        assert_eq!((defaults.failback, defaults.on_engine_loss), (Failback::Auto, OnEngineLoss::Release));
        assert_eq!((defaults.engine, defaults.checks.len()), (None, 0));
    }

    #[test]
    fn the_longest_configuration_is_told_in_full_and_fits_in_a_frame() {
        let word = |length| "x".repeat(length);
        let path = |length: usize| format!("/{}", word(length - 1));
        let host = [word(63), word(63), word(63), word(58)].join(".");
        let endpoints: Vec<_> =
            (1..=MAX_ENGINE_ENDPOINTS).map(|number| format!("\"https://{host}.m{number}:65535\"")).collect();
        let command = [vec![path(MAX_COMMAND_WORD)], vec![word(MAX_COMMAND_WORD); MAX_COMMAND_WORDS - 1]];
        let command = command.concat().join(" ");
        let check = |number: usize| {
            let name = format!("{number:02}{}", word(MAX_CHECK_NAME - 2));
            format!("check {name} {{ command = ( {command} ) interval = 3600 fall = 100 rise = 100 }}\n")
        };
        let checks: String = (0..MAX_CHECKS).map(check).collect();
        let files: String = ["ca", "certificate", "key", "password_file"]
            .map(|option| format!("{option} = {}\n", path(MAX_FILE_PATH)))
            .concat();
        let longest = "[2001:db8:1111:2222:3333:4444:5555:6666]:65535";
        let text = format!(
            "cluster {{ cluster_group = {} nodename = {} peer_listen = \"{longest}\" engine {{ endpoints = ( {} ) user = {} {files} }} {checks} }}",
            word(MAX_KEY_PART),
            word(MAX_KEY_PART),
            endpoints.join(" "),
            word(MAX_ENGINE_USER),
        );
        let settings = settings(&text);
        let engine = settings.engine.as_ref().unwrap();
        assert!(
            endpoints.iter().map(|url| url.trim_matches('"')).eq(engine.endpoints.iter().map(|url| &**url))
        );
        assert_eq!(&*engine.password_file, path(MAX_FILE_PATH));
        assert_eq!(&*settings.peer_listen, longest);
        let last = settings.checks.last().unwrap();
        assert_eq!((settings.checks.len(), last.command.len()), (MAX_CHECKS, MAX_COMMAND_WORDS));
        assert_eq!(&*last.command[1], word(MAX_COMMAND_WORD));
        let mut buffer = codec::frame_buffer();
        let frame = codec::encode(&mut buffer, Kind(0x8015), 1, 0, &settings).unwrap();
        assert!(frame.len() <= MAX_BODY);
    }
}
