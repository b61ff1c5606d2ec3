//! Confines the launcher, and with it every worker: identity, chroot, no capability.
//!
//! Runs once, in the launcher, and is irrevocable. Afterwards it tries to regain privileges and must fail.

use std::os::fd::OwnedFd;

use nix::unistd::{Gid, Uid, chdir, fchdir, setgroups, setresgid, setresuid, setsid};
use portreeve_protocol::List;
use portreeve_protocol::status::Credentials;

use super::identity::Identity;
use super::{keyring, limits, locks, user_namespace};
use crate::capability::{CapabilitySet, State};
use crate::config::{self, Bind};
use crate::failure::{Exit, Failure};
use crate::inject;

const STEP: &str = "confining the worker";

/// The worker's restrictions.
#[derive(Debug)]
pub struct Confinement {
    /// Its identity.
    pub identity: Identity,
    /// Its root directory, already open; `None`: the host's.
    pub root: Option<OwnedFd>,
    /// The configured resource limits.
    pub limits: Vec<config::Limit>,
    /// The descriptor limit of the broker at its start.
    pub descriptors: limits::Limit,
    /// The seccomp mode of the broker at its start, for example of a container; it cannot be changed back.
    pub seccomp: u8,
}

impl Confinement {
    /// Confines this process. The order matters: first the steps that need a capability, then the bounding set and
    /// securebits, then the identity, then the capability sets.
    pub fn apply(self) -> Result<(), Failure> {
        let os = |call: &'static str| move |error: nix::Error| Failure::os(STEP, call, error);
        inject::point("worker.session")?;
        setsid().map_err(os("setsid"))?;
        inject::point("worker.keyring")?;
        keyring::replace_session_keyring()?;
        inject::point("worker.limits")?;
        limits::restore_descriptors(self.descriptors)?;
        self.limits.iter().try_for_each(limits::set)?;
        let (kept, chrooted) = (self.capabilities(), self.root.is_some());
        inject::point("worker.chroot")?;
        if let Some(range) = self.identity.namespace {
            user_namespace::enter(range, self.root)?;
        } else if let Some(root) = self.root {
            fchdir(&root).map_err(os("fchdir to security.chroot"))?;
            nix::unistd::chroot(".").map_err(os("chroot to security.chroot"))?;
        }
        chdir("/").map_err(os("chdir /"))?;
        let identity = &self.identity;
        let Identity { groups, .. } = identity;
        let (user, group) = match identity.namespace {
            Some(_) => (Uid::from_raw(0), Gid::from_raw(0)),
            None => (identity.user, identity.group),
        };
        inject::point("worker.groups")?;
        setgroups(groups).map_err(os("setgroups"))?;
        inject::point("worker.group")?;
        setresgid(group, group, group).map_err(os("setresgid"))?;
        inject::point("worker.bounding")?;
        locks::bounding(kept)?;
        inject::point("worker.securebits")?;
        if identity.namespace.is_none() {
            locks::securebits()?;
        }
        inject::point("worker.user")?;
        setresuid(user, user, user).map_err(os("setresuid"))?;
        inject::point("worker.sets")?;
        locks::sets(&State { permitted: kept, effective: kept, ..State::default() })?;
        inject::point("worker.no_new_privs")?;
        locks::no_new_privs()?;
        inject::point("worker.private")?;
        match self.limits.iter().any(is_core) {
            true => limits::make_private_before_the_worker()?,
            false => limits::make_private()?,
        }
        inject::point("worker.getting_back")?;
        identity.verify_irrevocable(chrooted)
    }

    /// The capabilities of the worker: those over its own user namespace.
    fn capabilities(&self) -> CapabilitySet {
        self.identity.namespace.map_or_else(CapabilitySet::default, |_| user_namespace::capabilities())
    }

    /// Further restrictions, one line each.
    pub fn locks(&self) -> Vec<String> {
        self.identity.namespace.into_iter().map(user_namespace::describe).collect()
    }

    /// The resource limits that are set, by the names of setrlimit(2).
    pub fn expected_limits(&self) -> Vec<(&'static str, String)> {
        let mut limits: Vec<_> = self
            .limits
            .iter()
            .map(|limit| {
                let value = limit.value.map_or_else(|| "unlimited".to_owned(), |value| value.to_string());
                (limit.resource.name(), value)
            })
            .collect();
        if limits.iter().all(|(name, _)| *name != "nofile") {
            limits.push(("nofile", "the limit at the start of portreeved".to_owned()));
        }
        if !self.limits.iter().any(is_core) {
            limits.push(("core", "0".to_owned()));
        }
        limits
    }

    /// The credentials that the kernel must report.
    pub fn expected(&self) -> Credentials {
        let mut groups: Vec<u32> = self.identity.groups.iter().map(|group| group.as_raw()).collect();
        groups.sort_unstable();
        groups.dedup();
        Credentials {
            uid: [self.identity.user.as_raw(); 4],
            gid: [self.identity.group.as_raw(); 4],
            groups: List::truncated(groups),
            permitted: self.capabilities().bits(),
            effective: self.capabilities().bits(),
            bounding: self.capabilities().bits(),
            no_new_privs: true,
            seccomp: self.seccomp,
            ..Credentials::default()
        }
    }
}

/// SECCOMP_MODE_FILTER, as /proc shows it. See proc_pid_status(5).
const SECCOMP_MODE_FILTER: u8 = 2;

/// Credentials, and further restrictions, one line each.
pub type Restrictions = (Credentials, Vec<String>);

/// The restrictions of a worker, whose launcher has these.
pub fn of_worker(bind: Bind, (mut credentials, mut locks): Restrictions) -> Restrictions {
    if bind == Bind::Brokered {
        credentials.seccomp = SECCOMP_MODE_FILTER;
        // Only its supervisor may look into other processes.
        let tracing = caps::Capability::CAP_SYS_PTRACE.bitmask();
        credentials.permitted &= !tracing;
        credentials.effective &= !tracing;
        locks.push("seccomp: bind(2) is answered by the supervisor, with the broker's sockets".to_owned());
    }
    (credentials, locks)
}

fn is_core(limit: &config::Limit) -> bool {
    limit.resource.name() == "core"
}

impl Identity {
    /// Tries what a compromised worker would try first.
    fn verify_irrevocable(&self, chrooted: bool) -> Result<(), Failure> {
        let root = nix::unistd::ROOT;
        let raised = |capability: caps::Capability| {
            let permitted = CapabilitySet::from_bits(capability.bitmask());
            locks::sets(&State { permitted, ..State::default() }).is_ok()
        };
        let attempts = match self.namespace {
            Some(_) => {
                user_namespace::verify_irrevocable()?;
                vec![("capset", raised(caps::Capability::CAP_SYS_ADMIN))]
            }
            None => vec![
                ("setresuid(0)", !self.user.is_root() && setresuid(root, root, root).is_ok()),
                ("chroot", nix::unistd::chroot("/").is_ok()),
                ("capset", raised(caps::Capability::CAP_CHOWN)),
            ],
        };
        if let Some((what, _)) = attempts.iter().find(|(_, succeeded)| *succeeded) {
            return Err(Failure::os(STEP, what, "it succeeded after confinement, but must fail"));
        }
        // access(2) uses the real uid, now the worker's, and respects ACLs and read-only mounts.
        let writable = nix::unistd::access("/", nix::unistd::AccessFlags::W_OK).is_ok();
        if chrooted && writable && !self.user.is_root() {
            return Err(Failure::new(
                Exit::Config,
                STEP,
                "security.chroot is writable by the worker",
                "chown it to root and chmod it 0755; give the worker writable directories inside it",
            ));
        }
        Ok(())
    }
}
