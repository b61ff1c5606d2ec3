//! What the broker does to itself before it serves: the configured capabilities and nothing else.

use portreeve_protocol::status::Credentials;

use super::locks;
use super::verify::ProcStatus;
use crate::capability::State;
use crate::failure::Failure;

const STEP: &str = "confining the broker";

/// Confines this process for good and reads back from the kernel that it holds exactly this.
///
/// The empty root, Landlock and seccomp have their places here: the root first, while the capability to
/// mount is there, the other two last.
pub fn confine(retained: &State, status: &ProcStatus) -> Result<Credentials, Failure> {
    let os = |call: &'static str| move |error: nix::Error| Failure::os(STEP, call, error);
    let (user, group) = (nix::unistd::ROOT, nix::unistd::Gid::from_raw(0));
    nix::unistd::setgroups(&[]).map_err(os("setgroups"))?;
    nix::unistd::setresgid(group, group, group).map_err(os("setresgid"))?;
    nix::unistd::setresuid(user, user, user).map_err(os("setresuid"))?;
    locks::bounding(retained.permitted)?;
    locks::securebits()?;
    locks::sets(retained)?;
    locks::no_new_privs()?;
    let expected = Credentials {
        inheritable: retained.inheritable.bits(),
        permitted: retained.permitted.bits(),
        effective: retained.effective.bits(),
        bounding: retained.permitted.bits(),
        ambient: 0,
        no_new_privs: true,
        ..Credentials::default()
    };
    status.expect("broker", &expected)
}
