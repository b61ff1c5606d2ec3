//! Attempts to gain privileges: ids, capabilities, namespaces, the kernel itself.

use super::Attack;
use super::call::{Word, address, address_mut, call, word};

pub const ATTACKS: &[Attack] = &[
    Attack { name: "become another user", attempt: other_user },
    Attack { name: "join a group", attempt: join_group },
    Attack { name: "raise a capability", attempt: raise_capability },
    Attack { name: "raise an ambient capability", attempt: raise_ambient },
    Attack { name: "clear the securebits", attempt: clear_securebits },
    Attack { name: "make a user namespace", attempt: user_namespace },
    Attack { name: "make a mount namespace", attempt: mount_namespace },
    Attack { name: "load a kernel module", attempt: load_module },
    Attack { name: "load a tracing program", attempt: load_program },
    Attack { name: "forge the credentials of a message", attempt: forge_credentials },
];

fn other_user() -> nix::Result<i64> {
    call(libc::SYS_setresuid, [65534, 65534, 65534])
}

fn join_group() -> nix::Result<i64> {
    call(libc::SYS_setgroups, [1, address(&42_u32)])
}

fn raise_capability() -> nix::Result<i64> {
    const SYS_ADMIN: u32 = 1 << 21;
    // struct __user_cap_header_struct of version 3, and two words of each set.
    let header = [0x2008_0522_u32, 0];
    let data = [[SYS_ADMIN, SYS_ADMIN, 0], [0; 3]];
    call(libc::SYS_capset, [address(&header), address(&data)])
}

fn raise_ambient() -> nix::Result<i64> {
    const NET_BIND_SERVICE: Word = 10;
    // An ambient capability must be inheritable too; capset(2) lets any permitted one be that.
    let header = [0x2008_0522_u32, 0];
    let mut data = [[0_u32; 3]; 2];
    call(libc::SYS_capget, [address(&header), address_mut(&mut data)])?;
    let [[_, permitted, inheritable], _] = &mut data;
    *inheritable |= *permitted & (1 << NET_BIND_SERVICE);
    call(libc::SYS_capset, [address(&header), address(&data)])?;
    call(libc::SYS_prctl, [word(libc::PR_CAP_AMBIENT), word(libc::PR_CAP_AMBIENT_RAISE), NET_BIND_SERVICE])
}

fn clear_securebits() -> nix::Result<i64> {
    call(libc::SYS_prctl, [word(libc::PR_SET_SECUREBITS), 0])
}

fn user_namespace() -> nix::Result<i64> {
    call(libc::SYS_unshare, [word(libc::CLONE_NEWUSER)])
}

fn mount_namespace() -> nix::Result<i64> {
    call(libc::SYS_unshare, [word(libc::CLONE_NEWNS)])
}

fn load_module() -> nix::Result<i64> {
    call(libc::SYS_init_module, [0, 0, address(c"")])
}

fn load_program() -> nix::Result<i64> {
    const PROG_LOAD: Word = 5;
    const KPROBE: u32 = 2;
    // The beginning of union bpf_attr: the type of program, and no instruction.
    call(libc::SYS_bpf, [PROG_LOAD, address(&[KPROBE, 0]), 8])
}

fn forge_credentials() -> nix::Result<i64> {
    use nix::sys::socket::{
        AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, UnixCredentials, sendmsg, socketpair,
    };
    use std::os::fd::AsRawFd as _;
    let (one, _other) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?;
    let pid = nix::unistd::getpid().as_raw();
    let forged: UnixCredentials = libc::ucred { pid, uid: 65534, gid: 65534 }.into();
    let message = [ControlMessage::ScmCredentials(&forged)];
    let sent =
        sendmsg::<()>(one.as_raw_fd(), &[std::io::IoSlice::new(b"x")], &message, MsgFlags::empty(), None)?;
    Ok(i64::try_from(sent).unwrap_or_default())
}
