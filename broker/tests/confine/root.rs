//! The empty root file system.

use std::fs;
use std::io::Read as _;
use std::os::unix::fs::DirBuilderExt as _;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::statvfs::FsFlags;
use portreeve_broker::confine::root;

use crate::child::{self, End};

/// Creates socket directories in a temporary directory: `a`, `a/inner`, `deep/er/b`.
fn socket_directories() -> (tempfile::TempDir, Vec<PathBuf>) {
    let base = tempfile::Builder::new().prefix("portreeve-root-").tempdir().unwrap();
    // The path of a temporary directory may contain a symbolic link, which the broker refuses.
    let real = base.path().canonicalize().unwrap();
    let paths: Vec<PathBuf> = ["a", "a/inner", "deep/er/b"].iter().map(|name| real.join(name)).collect();
    for path in &paths {
        fs::DirBuilder::new().recursive(true).mode(0o755).create(path).unwrap();
    }
    (base, paths)
}

/// Gains root's rights over namespaces: an ordinary user enters a user namespace first.
fn become_root() {
    let (uid, gid) = (nix::unistd::geteuid(), nix::unistd::getegid());
    if uid.is_root() {
        return;
    }
    unshare(CloneFlags::CLONE_NEWUSER)
        .expect("this test needs root, or a kernel that allows unprivileged user namespaces");
    fs::write("/proc/self/setgroups", "deny").unwrap();
    fs::write("/proc/self/uid_map", format!("0 {uid} 1")).unwrap();
    fs::write("/proc/self/gid_map", format!("0 {gid} 1")).unwrap();
}

fn without_socket_directories_the_root_is_empty_and_read_only() {
    become_root();
    assert!(root::enter(&[]).unwrap().is_empty());
    assert_eq!(fs::read_dir("/").unwrap().count(), 0);
    assert_eq!(std::env::current_dir().unwrap(), Path::new("/"));
    for path in ["/etc/shadow", "/proc/1/root", "/proc/self/exe", "/../etc/passwd", "etc/passwd"] {
        assert_eq!(fs::metadata(path).unwrap_err().kind(), std::io::ErrorKind::NotFound, "{path}");
    }
    assert_eq!(fs::write("/x", "").unwrap_err().raw_os_error(), Some(libc::EROFS));
    assert_eq!(fs::create_dir("/x").unwrap_err().raw_os_error(), Some(libc::EROFS));
    assert!(UnixListener::bind("/x").is_err());
    let flags = nix::sys::statvfs::statvfs("/").unwrap().flags();
    assert!(flags.contains(FsFlags::ST_RDONLY | FsFlags::ST_NOSUID | FsFlags::ST_NODEV | FsFlags::ST_NOEXEC));
}

fn only_the_socket_directories_remain_and_sockets_can_be_created_there() {
    let (base, paths) = socket_directories();
    fs::write(base.path().join("secret"), "not for the broker").unwrap();
    fs::write(paths[0].join("existing"), "before").unwrap();
    become_root();
    let opened = root::enter(&paths).unwrap();
    assert_eq!(
        opened.iter().map(|directory| &directory.path).collect::<Vec<_>>(),
        paths.iter().collect::<Vec<_>>()
    );
    assert!(!base.path().canonicalize().unwrap().join("secret").exists());
    for directory in &opened {
        let socket = directory.path.join("socket");
        let listener = UnixListener::bind(&socket).unwrap();
        assert!(
            nix::sys::stat::fstatat(&directory.descriptor, "socket", nix::fcntl::AtFlags::empty()).is_ok()
        );
        drop(listener);
        fs::remove_file(&socket).unwrap();
        let flags = nix::sys::statvfs::fstatvfs(&directory.descriptor).unwrap().flags();
        assert!(flags.contains(FsFlags::ST_NOSUID | FsFlags::ST_NODEV | FsFlags::ST_NOEXEC));
        // The parents of the directory end at the empty root.
        let outside = nix::sys::stat::fstatat(
            &directory.descriptor,
            "../../../../../../../etc",
            nix::fcntl::AtFlags::empty(),
        );
        assert_eq!(outside, Err(nix::errno::Errno::ENOENT));
    }
    assert_eq!(fs::read_to_string(paths[0].join("existing")).unwrap(), "before");
    // The parents of a socket directory are part of the read-only root.
    assert_eq!(
        fs::write(paths[2].parent().unwrap().join("x"), "").unwrap_err().raw_os_error(),
        Some(libc::EROFS)
    );
    assert_eq!(fs::read_dir("/").unwrap().count(), 1);
    // The files are on the host, where their owner removes them; this process no longer can.
    std::mem::forget(base);
}

fn a_mount_below_a_socket_directory_is_visible_only_if_configured() {
    let (base, mut paths) = socket_directories();
    become_root();
    unshare(CloneFlags::CLONE_NEWNS).unwrap();
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>).unwrap();
    for name in ["named", "other"] {
        let path = paths[0].join(name);
        fs::create_dir(&path).unwrap();
        mount(Some("t"), &path, Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
        fs::write(path.join("mounted"), "").unwrap();
    }
    paths.push(paths[0].join("named"));
    root::enter(&paths).unwrap();
    assert!(paths[0].join("named/mounted").exists());
    assert!(!paths[0].join("other/mounted").exists());
    std::mem::forget(base);
}

fn the_host_sees_none_of_the_mounts() {
    let parent = format!("/proc/{}/mountinfo", nix::unistd::getppid());
    let before = fs::read_to_string(&parent).unwrap();
    let mut after = fs::File::open(&parent).unwrap();
    let (base, paths) = socket_directories();
    become_root();
    root::enter(&paths).unwrap();
    let mut seen = String::new();
    after.read_to_string(&mut seen).unwrap();
    assert_eq!(seen, before);
    std::mem::forget(base);
}

fn a_symbolic_link_in_the_path_of_a_socket_directory_is_refused() {
    let (base, paths) = socket_directories();
    let link = base.path().canonicalize().unwrap().join("link");
    std::os::unix::fs::symlink(&paths[0], &link).unwrap();
    become_root();
    let failure = root::enter(&[link.join("inner")]).unwrap_err().to_string();
    assert!(failure.contains("link/inner contains a symbolic link"), "{failure}");
}

fn a_process_that_cannot_mount_gets_an_error_that_names_the_capability() {
    caps::clear(None, caps::CapSet::Effective).unwrap();
    let failure = root::enter(&[]).unwrap_err().to_string();
    assert_eq!(
        failure,
        "empty root: unshare CLONE_NEWNS failed: EPERM: Operation not permitted: start portreeved with \
             CAP_SYS_ADMIN; portreeved drops it afterwards unless security.capabilities contains it"
    );
}

child::tests! {
    End::Success => [
        without_socket_directories_the_root_is_empty_and_read_only,
        only_the_socket_directories_remain_and_sockets_can_be_created_there,
        a_mount_below_a_socket_directory_is_visible_only_if_configured,
        the_host_sees_none_of_the_mounts,
        a_symbolic_link_in_the_path_of_a_socket_directory_is_refused,
        a_process_that_cannot_mount_gets_an_error_that_names_the_capability,
    ],
}
