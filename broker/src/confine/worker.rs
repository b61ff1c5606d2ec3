//! What the launcher does to itself, and with it to every worker: the identity, the chroot, and no right left.
//!
//! Runs in the launcher only, once, and for good. Afterwards it has tried to get back and could not.

use std::os::fd::OwnedFd;

use nix::unistd::{chdir, fchdir, setgroups, setresgid, setresuid, setsid};
use portreeve_protocol::List;
use portreeve_protocol::status::Credentials;

use super::identity::Identity;
use super::{keyring, limits, locks};
use crate::capability::{CapabilitySet, State};
use crate::config;
use crate::failure::{Exit, Failure};
use crate::inject;

const STEP: &str = "confining the worker";

/// What the worker is held to.
#[derive(Debug)]
pub struct Confinement {
    /// Who it is.
    pub identity: Identity,
    /// Its root, opened before; none leaves it the host's.
    pub root: Option<OwnedFd>,
    /// The limits that the configuration sets.
    pub limits: Vec<config::Limit>,
    /// The descriptor limit that the broker was started with.
    pub descriptors: limits::Limit,
    /// The seccomp mode that the broker was started in, by a container for example: nobody leaves one.
    pub seccomp: u8,
}

impl Confinement {
    /// Confines this process. Capabilities are needed down to the last step but one, so the order matters:
    /// what needs a capability, then the locks, then the identity, then the sets.
    pub fn apply(self) -> Result<(), Failure> {
        let os = |call: &'static str| move |error: nix::Error| Failure::os(STEP, call, error);
        inject::point("worker.session")?;
        setsid().map_err(os("setsid"))?;
        inject::point("worker.keyring")?;
        keyring::leave()?;
        inject::point("worker.limits")?;
        limits::restore_descriptors(self.descriptors)?;
        self.limits.iter().try_for_each(limits::set)?;
        let chrooted = self.root.is_some();
        inject::point("worker.chroot")?;
        if let Some(root) = self.root {
            fchdir(&root).map_err(os("fchdir to security.chroot"))?;
            nix::unistd::chroot(".").map_err(os("chroot to security.chroot"))?;
        }
        chdir("/").map_err(os("chdir /"))?;
        let identity = &self.identity;
        let Identity { user, group, groups } = identity;
        inject::point("worker.groups")?;
        setgroups(groups).map_err(os("setgroups"))?;
        inject::point("worker.group")?;
        setresgid(*group, *group, *group).map_err(os("setresgid"))?;
        inject::point("worker.bounding")?;
        locks::bounding(CapabilitySet::default())?;
        inject::point("worker.securebits")?;
        locks::securebits()?;
        inject::point("worker.user")?;
        setresuid(*user, *user, *user).map_err(os("setresuid"))?;
        inject::point("worker.sets")?;
        locks::sets(&State::default())?;
        inject::point("worker.no_new_privs")?;
        locks::no_new_privs()?;
        inject::point("worker.private")?;
        limits::make_private()?;
        inject::point("worker.getting_back")?;
        identity.cannot_get_back(chrooted)
    }

    /// The resource limits that it sets, by the names that setrlimit(2) gives them.
    pub fn expected_limits(&self) -> Vec<(&'static str, String)> {
        let own = |limit: &&config::Limit| limit.resource.name() != "core";
        let mut limits: Vec<_> = self
            .limits
            .iter()
            .filter(own)
            .map(|limit| {
                let value = limit.value.map_or_else(|| "unlimited".to_owned(), |value| value.to_string());
                (limit.resource.name(), value)
            })
            .collect();
        if limits.iter().all(|(name, _)| *name != "nofile") {
            limits.push(("nofile", "as portreeved is started with".to_owned()));
        }
        limits.push(("core", "0".to_owned()));
        limits
    }

    /// What the kernel must say of a process that was confined so.
    pub fn expected(&self) -> Credentials {
        let mut groups: Vec<u32> = self.identity.groups.iter().map(|group| group.as_raw()).collect();
        groups.sort_unstable();
        groups.dedup();
        Credentials {
            uid: [self.identity.user.as_raw(); 4],
            gid: [self.identity.group.as_raw(); 4],
            groups: List::first_of(groups),
            no_new_privs: true,
            seccomp: self.seccomp,
            ..Credentials::default()
        }
    }
}

impl Identity {
    /// Tries what a worker that was taken over would try first.
    fn cannot_get_back(&self, chrooted: bool) -> Result<(), Failure> {
        let root = nix::unistd::ROOT;
        let attempts = [
            ("setresuid(0)", !self.user.is_root() && setresuid(root, root, root).is_ok()),
            ("chroot", nix::unistd::chroot("/").is_ok()),
            (
                "capset",
                locks::sets(&State { permitted: CapabilitySet::from_bits(1), ..State::default() }).is_ok(),
            ),
        ];
        if let Some((what, _)) = attempts.iter().find(|(_, succeeded)| *succeeded) {
            return Err(Failure::os(STEP, what, "it succeeded after confinement, and must not"));
        }
        // access(2) asks with the real user id, which is the worker's by now; it knows ACLs and read-only mounts.
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
