//! A configuration as a snapshot: the value of each option of each scope, by name, so that two configurations can be
//! compared however their files are written.
//!
//! Every scope is destructured in full, without `..`: an option that is added to a scope does not compile here until it
//! is compared, or named as one that is not.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{Debug, Display};

use super::source::Spanned;
use super::{
    Binding, Broker, Cluster, Config, Coordinator, DuraVip, Engine, HealthCheck, Listener, OnNarrow, Peer,
    Permit, Quotas, Security, SocketOptions, Topology, Worker,
};

/// The values of a configuration, defaults among them: `broker retain` is `30`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot(BTreeMap<String, String>);

impl Snapshot {
    /// The snapshot of a configuration.
    pub fn of(config: &Config) -> Self {
        let mut snapshot = Snapshot::default();
        let Config { security, listeners, bindings, cluster, broker, worker, skipped: _, sources: _ } =
            config;
        snapshot.add_security(security);
        worker.iter().for_each(|scope| snapshot.add_worker(scope));
        snapshot.add_broker(broker);
        snapshot.add_cluster(cluster);
        listeners.iter().for_each(|scope| snapshot.add_listener(scope));
        // The others are the MTA's own.
        bindings.iter().filter(|scope| scope.duravip.floats()).for_each(|scope| snapshot.add_binding(scope));
        snapshot
    }

    /// A value by its name.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    /// The names that are in this snapshot, in the other, or in both.
    pub fn names<'s>(&'s self, other: &'s Snapshot) -> BTreeSet<&'s str> {
        self.0.keys().chain(other.0.keys()).map(String::as_str).collect()
    }

    /// Adds a value. Scopes of the same name are compared together.
    pub fn add(&mut self, name: String, value: String) {
        let values = self.0.entry(name).or_default();
        if !values.is_empty() {
            values.push_str("; ");
        }
        values.push_str(&value);
    }

    fn add_security(&mut self, security: &Security) {
        let Security {
            user: _,
            group: _,
            supplemental_groups,
            user_namespace,
            chroot,
            capabilities,
            privileges,
            span: _,
        } = security;
        let mut add = |name: &str, value: String| self.add(format!("security {name}"), value);
        // With their defaults.
        add("user", security.user_name().to_owned());
        add("group", security.group_name().to_owned());
        add("supplemental_groups", words(supplemental_groups));
        add(
            "user_namespace",
            user_namespace.as_ref().map_or_else(String::new, |range| range.value.to_string()),
        );
        add("chroot", chroot.as_ref().map_or_else(String::new, |path| path.value.display().to_string()));
        add("capabilities", text(capabilities));
        add("privileges", text(privileges));
    }

    fn add_worker(&mut self, worker: &Worker) {
        let Worker {
            command,
            environment,
            limits,
            umask,
            bind,
            stdin,
            restart,
            stable_after,
            stop_signal,
            stop_timeout,
            orphan_timeout,
            end_descendants,
            span: _,
        } = worker;
        let mut add = |name: &str, value: String| self.add(format!("worker {name}"), value);
        add("command", quoted_words(command.iter().map(|word| &word.value)));
        let variables = environment.iter().map(|(key, value)| format!("{}={}", key.value, value.value));
        add("environment", quoted_words(variables));
        add("limit", words(limits));
        add("umask", format!("{umask:04o}"));
        add("bind", bind.name().to_owned());
        add("stdin", stdin.as_ref().map_or_else(String::new, |endpoint| endpoint.value.to_string()));
        add("restart", restart.to_string());
        add("stable_after", stable_after.as_secs().to_string());
        add("stop_signal", stop_signal.to_string());
        add("stop_timeout", stop_timeout.as_secs().to_string());
        add("orphan_timeout", orphan_timeout.as_secs().to_string());
        add("end_descendants", end_descendants.to_string());
    }

    fn add_broker(&mut self, broker: &Broker) {
        let Broker {
            socket,
            socket_mode,
            socket_group,
            retain,
            lease,
            require_landlock,
            require_seccomp,
            reload,
            log_level,
            on_narrow,
            quotas,
            permits,
            peers,
            span: _,
        } = broker;
        let mut add = |name: &str, value: String| self.add(format!("broker {name}"), value);
        add("socket", socket.as_ref().map_or_else(String::new, |path| path.value.display().to_string()));
        add("socket_mode", format!("{socket_mode:04o}"));
        add("socket_group", text(socket_group));
        add("require_landlock", require_landlock.to_string());
        add("require_seccomp", require_seccomp.to_string());
        add("reload", reload.to_string());
        add("retain", retain.as_secs().to_string());
        add("lease", lease.as_secs().to_string());
        add("log_level", log_level.word().to_owned());
        let on_narrow = match on_narrow {
            OnNarrow::Close => "close",
            OnNarrow::Keep => "keep",
        };
        add("on_narrow", on_narrow.to_owned());
        for (name, limit) in Quotas::named(quotas) {
            add(name, limit.to_string());
        }
        permits.iter().for_each(|scope| self.add_permit(scope));
        peers.iter().for_each(|scope| self.add_peer(scope));
    }

    fn add_permit(&mut self, permit: &Permit) {
        let Permit { name, listen, unkept, address, permanent, interface, limit } = permit;
        let mut add = |option: &str, value| self.add(format!("permit {:?} {option}", name.value), value);
        add("listen", words(listen));
        add("unkept", unkept.to_string());
        add("address", words(address));
        add("permanent", permanent.to_string());
        add("interface", words(interface));
        add("limit", words(limit));
    }

    fn add_peer(&mut self, peer: &Peer) {
        let Peer { name, allow, permit } = peer;
        let mut add =
            |option: &str, value| self.add(format!("peer {:?} {option}", name.value.to_string()), value);
        add("allow", words(allow));
        add("permit", words(permit));
    }

    fn add_cluster(&mut self, cluster: &Cluster) {
        let Cluster {
            nodename,
            arp_all_hosts,
            if_check_interval,
            if_down_limit,
            ipv6_as_source,
            topology,
            coordinator,
            span: _,
        } = cluster;
        let mut add = |name: &str, value: String| self.add(format!("cluster {name}"), value);
        add("nodename", text(nodename));
        add("arp_all_hosts", arp_all_hosts.to_string());
        add("if_check_interval", if_check_interval.as_secs().to_string());
        add("if_down_limit", if_down_limit.to_string());
        add("ipv6_as_source", ipv6_as_source.to_string());
        for Topology { block, interface, mask } in topology {
            let value = format!("interface {}, cidrmask {mask}", interface.value);
            self.add(format!("topology \"{}\"", block.value), value);
        }
        self.add_coordinator(coordinator);
    }

    fn add_coordinator(&mut self, coordinator: &Coordinator) {
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
        let mut add = |name: &str, value: String| self.add(format!("cluster {name}"), value);
        add("cluster_group", text(group));
        add("lease", lease.as_secs().to_string());
        add("heartbeats_per_sec", format!("one in {} s", heartbeat.as_secs_f64()));
        add("view_mature_time", view_mature_time.as_secs().to_string());
        add("view_balance_interval", view_balance_interval.as_secs().to_string());
        add("duravip_balance_set_size", balance_set_size.to_string());
        add("failback", failback.name().to_owned());
        add("on_engine_loss", on_engine_loss.name().to_owned());
        let peer_listen = peer_listen.as_ref().map_or_else(String::new, |at| at.value.to_string());
        add("peer_listen", peer_listen);
        engine.iter().for_each(|scope| self.add_engine(scope));
        checks.iter().for_each(|scope| self.add_health_check(scope));
    }

    fn add_engine(&mut self, engine: &Engine) {
        let Engine { endpoints, ca, certificate, key, user, password_file, compaction } = engine;
        let mut add = |name: &str, value: String| self.add(format!("engine {name}"), value);
        add("endpoints", words(endpoints));
        for (name, path) in
            [("ca", ca), ("certificate", certificate), ("key", key), ("password_file", password_file)]
        {
            add(name, path.as_ref().map_or_else(String::new, |path| path.value.display().to_string()));
        }
        add("user", text(user));
        add("compaction", compaction.to_string());
    }

    fn add_health_check(&mut self, check: &HealthCheck) {
        let HealthCheck { name, command, interval, fall, rise } = check;
        let mut add = |option: &str, value| self.add(format!("check {:?} {option}", name.value), value);
        add("command", quoted_words(command.iter().map(|word| &word.value)));
        add("interval", interval.as_secs().to_string());
        add("fall", fall.to_string());
        add("rise", rise.to_string());
    }

    fn add_listener(&mut self, listener: &Listener) {
        let Listener { scope, endpoint, name, socket, duravip } = listener;
        let SocketOptions {
            enable,
            backlog,
            receive_buffer,
            send_buffer,
            no_delay,
            mode,
            free_bind,
            optional,
        } = socket;
        let options = format!(
            "enable {enable}, listen_backlog {backlog}, tcp_recv_buffer_size {receive_buffer}, \
             tcp_send_buffer_size {send_buffer}, disable_nagle_algorithm {no_delay}, file_mode {mode:04o}, \
             free_bind {free_bind}, optional {optional}{}",
            duravip_options(duravip)
        );
        let name = name.as_ref().map_or_else(String::new, |name| format!(", name {name:?}"));
        let options = options + &name;
        self.add(format!("{scope} Listen {:?}", endpoint.value.to_string()), options);
    }

    fn add_binding(&mut self, binding: &Binding) {
        let Binding { name, address, duravip } = binding;
        let address = address.as_ref().map_or_else(|| "none".to_owned(), |it| it.value.to_string());
        let options = format!("bind_address {address}{}", duravip_options(duravip));
        self.add(format!("binding {:?}", name.value), options);
    }
}

fn duravip_options(duravip: &DuraVip) -> String {
    let DuraVip { enable, preference, follow } = duravip;
    let mut options = String::new();
    if *enable {
        options += ", enable_duravip true";
    }
    if let Some(preference) = preference {
        options += &format!(", duravip_preference {:?}", preference.value);
    }
    if let Some(follow) = follow {
        options += &format!(", duravip_follow {:?}", follow.value);
    }
    options
}

fn text(value: &Option<Spanned<String>>) -> String {
    value.as_ref().map_or_else(String::new, |value| value.value.clone())
}

fn words<T: Display>(values: &[Spanned<T>]) -> String {
    let words: Vec<String> = values.iter().map(|value| value.value.to_string()).collect();
    words.join(" ")
}

fn quoted_words<T: Debug>(values: impl Iterator<Item = T>) -> String {
    let words: Vec<String> = values.map(|value| format!("{value:?}")).collect();
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use super::Snapshot;
    use crate::config::parse_text;

    fn snapshot(text: &str) -> Snapshot {
        Snapshot::of(&parse_text("s.conf", text).unwrap().0)
    }

    #[test]
    fn a_change_of_permanent_alone_is_a_change() {
        let permit = |more: &str| format!("broker {{ permit vip {{ address = ( 10.1.1.0/24 ) {more} }} }}");
        let (before, after) = (snapshot(&permit("")), snapshot(&permit("permanent = true")));
        let changed: Vec<_> =
            before.names(&after).into_iter().filter(|name| before.get(name) != after.get(name)).collect();
        assert_eq!(changed, ["permit \"vip\" permanent"]);
    }

    #[test]
    fn a_change_of_the_user_namespace_is_a_change() {
        let security = |range: &str| snapshot(&format!("security {{ user_namespace = \"{range}\" }}"));
        assert_ne!(security("200000:65536"), security("200000:65535"));
        assert_ne!(security("200000:65536"), snapshot("security { }"));
    }

    #[test]
    fn a_change_of_unkept_alone_is_a_change() {
        let permit = |more: &str| format!("broker {{ permit mail {{ listen = ( \"*:25\" ) {more} }} }}");
        let (before, after) = (snapshot(&permit("")), snapshot(&permit("unkept = true")));
        let changed: Vec<_> =
            before.names(&after).into_iter().filter(|name| before.get(name) != after.get(name)).collect();
        assert_eq!(changed, ["permit \"mail\" unkept"]);
    }

    #[test]
    fn the_layout_of_the_file_does_not_count_as_a_change() {
        assert_eq!(snapshot("broker { retain = 5 }"), snapshot("\n\nbroker\n{\n  Retain = 5\n}\n"));
    }
}
