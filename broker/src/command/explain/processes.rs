//! The privileges of broker, launcher, worker and reader, computed by the code that also verifies the confinement.

use std::path::PathBuf;

use portreeve_protocol::status::Credentials;
use serde_json::{Value, json};

use crate::capability::CapabilitySet;
use crate::config::{Bind, Config};
use crate::confine::broker::{self, Confinement};
use crate::confine::landlock::Listed;
use crate::confine::seccomp::Seccomp;
use crate::confine::verify::ProcStatus;
use crate::confine::{limits, locks, reader, seccomp, worker};
use crate::failure::Failure;
use crate::plan::{self, Plan};
use crate::policy::Policy;

const WORKER: &str = "worker";

/// One process that portreeved would start.
pub(super) struct Process {
    role: &'static str,
    credentials: Credentials,
    root: String,
    /// Directories of the host that are visible in its root.
    reaches: Vec<String>,
    /// Landlock and seccomp restrictions as text.
    locks: Vec<String>,
    /// Whether its securebits are set and locked.
    securebits: bool,
    /// Restrictions that this kernel does not support.
    lacking: Vec<String>,
    calls: Vec<(&'static str, &'static str)>,
    limits: Vec<(&'static str, String)>,
}

/// The broker; launcher and worker if a worker is configured, and its supervisor if there is one; and, if reloads are enabled, the reader, which can read
/// below the `readable` directories.
pub(super) fn all(config: &Config, plan: &Plan, readable: &[PathBuf]) -> Result<Vec<Process>, Failure> {
    // Assume that portreeved is started from this process.
    let seccomp = ProcStatus::open("self")?.read()?.seccomp;
    let mut all = vec![broker(config, plan, seccomp)?];
    if let Some(scope) = &config.worker {
        let confinement = worker::Confinement {
            identity: plan.identity.clone(),
            root: None,
            limits: scope.limits.iter().map(|limit| limit.value).collect(),
            descriptors: limits::AS_STARTED,
            seccomp,
        };
        let chroot = config.security.chroot.as_ref();
        let root = chroot.map_or_else(|| "/".to_owned(), |chroot| chroot.value.display().to_string());
        let roles: &[_] = match scope.bind {
            Bind::Direct => &["launcher", WORKER],
            Bind::Brokered => &["launcher", "supervisor", WORKER],
        };
        let restrictions = |role| {
            let launcher = (confinement.expected(), confinement.locks());
            if role == WORKER { worker::of_worker(scope.bind, launcher) } else { launcher }
        };
        let of_role = |role: &&'static str| (*role, restrictions(*role));
        all.extend(roles.iter().map(of_role).map(|(role, (credentials, locks))| Process {
            role,
            credentials,
            root: root.clone(),
            reaches: Vec::new(),
            locks,
            securebits: plan.identity.namespace.is_none(),
            lacking: Vec::new(),
            calls: Vec::new(),
            limits: confinement.expected_limits(),
        }));
    }
    if config.broker.reload {
        all.push(reader(readable, seccomp)?);
    }
    Ok(all)
}

fn reader(readable: &[PathBuf], seccomp_mode: u8) -> Result<Process, Failure> {
    let confinement = reader::Confinement { directories: readable.to_vec(), seccomp: seccomp_mode };
    Ok(Process {
        role: "reader",
        credentials: confinement.expected()?,
        root: "/".to_owned(),
        reaches: readable.iter().map(|path| path.display().to_string()).collect(),
        locks: confinement.predict()?,
        securebits: true,
        lacking: Vec::new(),
        calls: match seccomp::probe_for_reader()? {
            Seccomp::Absent => Vec::new(),
            Seccomp::Enforced { .. } => seccomp::allowed_to_reader().collect(),
        },
        limits: vec![("core", "0".to_owned()), ("nofile", "the hard limit at the start".to_owned())],
    })
}

fn broker(config: &Config, plan: &Plan, seccomp_mode: u8) -> Result<Process, Failure> {
    let reaches = plan::socket_directories(config).into_keys();
    let reaches: Vec<String> = reaches.map(|path| path.display().to_string()).collect();
    let confinement = Confinement {
        retained: plan.retained,
        policy: &plan.policy,
        require_landlock: config.broker.require_landlock,
        require_seccomp: config.broker.require_seccomp,
        landlock_listed: Listed::read(),
        seccomp: seccomp_mode,
    };
    let predicted = confinement.predict(reaches.len())?;
    let needs = broker::needs(&plan.policy, reaches.len());
    Ok(Process {
        role: "broker",
        root: "empty, read-only".to_owned(),
        calls: match seccomp::probe(&needs)? {
            Seccomp::Absent => Vec::new(),
            Seccomp::Enforced { .. } => seccomp::allowed(&needs).collect(),
        },
        credentials: predicted.credentials,
        locks: predicted.locks,
        securebits: true,
        lacking: predicted.lacking,
        reaches,
        limits: vec![("core", "0".to_owned()), ("nofile", "the hard limit at the start".to_owned())],
    })
}

impl Process {
    fn sets(&self) -> [(&'static str, CapabilitySet); 5] {
        let credentials = &self.credentials;
        [
            ("inheritable", credentials.inheritable),
            ("permitted", credentials.permitted),
            ("effective", credentials.effective),
            ("bounding", credentials.bounding),
            ("ambient", credentials.ambient),
        ]
        .map(|(name, bits)| (name, CapabilitySet::from_bits(bits)))
    }

    /// The securebits, as a number and by name.
    fn securebits(&self) -> (u32, Vec<String>) {
        match self.securebits {
            true => (locks::SECUREBITS.bits(), locks::securebits_names()),
            false => (0, Vec::new()),
        }
    }

    /// As JSON.
    pub fn json(&self, verbose: bool) -> Value {
        let credentials = &self.credentials;
        let sets = self.sets().map(|(name, set)| {
            let names: Vec<String> = set.names().collect();
            (name.to_owned(), json!({ "hex": format!("{:016x}", set.bits()), "names": names }))
        });
        let mut seccomp = json!({ "mode": credentials.seccomp, "calls": self.calls.len() });
        if let Some(seccomp) = seccomp.as_object_mut().filter(|_| verbose) {
            let calls = self.calls.iter().map(|(name, why)| json!({ "name": name, "why": why }));
            seccomp.insert("allowed".into(), calls.collect());
        }
        let limits = self.limits.iter().map(|(name, value)| ((*name).to_owned(), value.clone().into()));
        json!({
            "role": self.role,
            "uid": credentials.uid,
            "gid": credentials.gid,
            "groups": credentials.groups.to_vec(),
            "root": self.root,
            "root_reaches": self.reaches,
            "capabilities": sets.into_iter().collect::<serde_json::Map<_, _>>(),
            "securebits": { "hex": format!("{:#x}", self.securebits().0), "names": self.securebits().1 },
            "no_new_privs": credentials.no_new_privs,
            "seccomp": seccomp,
            "locks": self.locks,
            "lacking": self.lacking,
            "limits": limits.collect::<serde_json::Map<_, _>>(),
        })
    }

    /// As text; processes with the same privileges share a table.
    pub fn tables(processes: &[Self], verbose: bool) -> Vec<String> {
        let mut tables: Vec<(String, String)> = Vec::new();
        for process in processes {
            let table = process.table(verbose);
            match tables.last_mut() {
                Some((roles, last)) if *last == table => *roles += &format!(" and {}", process.role),
                _ => tables.push((process.role.to_owned(), table)),
            }
        }
        tables.into_iter().map(|(roles, table)| format!("{roles}\n{table}")).collect()
    }

    fn table(&self, verbose: bool) -> String {
        let credentials = &self.credentials;
        let mut out = String::new();
        let mut row = |name: &str, value: &str| out += &format!("  {name:<14}{value}\n");
        row("user", &ids(credentials.uid));
        row("group", &ids(credentials.gid));
        let groups: Vec<String> = credentials.groups.iter().map(u32::to_string).collect();
        row("groups", &if groups.is_empty() { "none".to_owned() } else { groups.join(" ") });
        row(
            "root",
            &match self.reaches.as_slice() {
                [] => self.root.clone(),
                some if self.root == "/" => format!("/, readable: {}", some.join(" ")),
                some => format!("{} except {}", self.root, some.join(" ")),
            },
        );
        for (name, set) in self.sets() {
            row(name, &format!("{:016x}  {set}", set.bits()));
        }
        let (bits, names) = self.securebits();
        row("securebits", format!("{bits:#x}  {}", names.join(",")).trim_end());
        row("no_new_privs", if credentials.no_new_privs { "yes" } else { "no" });
        row("seccomp", if credentials.seccomp == 0 { "none" } else { "filter" });
        for (number, lock) in self.locks.iter().enumerate() {
            row(if number == 0 { "locks" } else { "" }, lock);
        }
        for lacking in &self.lacking {
            row("lacking", lacking);
        }
        for (number, (name, value)) in self.limits.iter().enumerate() {
            row(if number == 0 { "limits" } else { "" }, &format!("{name} {value}"));
        }
        for (number, (name, why)) in self.calls.iter().enumerate().filter(|_| verbose) {
            row(if number == 0 { "system calls" } else { "" }, &format!("{name:<16} {why}"));
        }
        out
    }
}

/// The four ids, or one number if all are the same.
fn ids(ids: [u32; 4]) -> String {
    match ids {
        [real, rest @ ..] if rest == [real; 3] => real.to_string(),
        other => format!("{other:?}"),
    }
}

/// The TCP ports that the policy allows, as ranges.
pub(super) fn ports(policy: &Policy) -> Vec<[u16; 2]> {
    policy.tcp_ports().iter().map(|range| [*range.start(), *range.end()]).collect()
}
