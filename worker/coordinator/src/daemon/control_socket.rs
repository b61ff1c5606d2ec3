//! The control socket's file.

use std::io;
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::os::unix::net::UnixStream as Probe;
use std::path::Path;
use std::{fs, io::ErrorKind};

use tokio::net::UnixListener;

use super::failure::Failure;

/// Creates the socket. Its group may connect. A socket that no process serves any more is replaced.
pub fn listen(path: &Path) -> Result<UnixListener, Failure> {
    let failed =
        |error| Failure::System(format!("cannot create the control socket {}", path.display()), error);
    remove_stale(path).map_err(failed)?;
    let listener = UnixListener::bind(path).map_err(failed)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o660)).map_err(failed)?;
    Ok(listener)
}

fn remove_stale(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Ok(file) if file.file_type().is_socket() => {}
        Ok(_) => return Err(io::Error::new(ErrorKind::AlreadyExists, "the file exists and is no socket")),
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    }
    match Probe::connect(path) {
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => fs::remove_file(path),
        _ => Err(io::Error::new(ErrorKind::AddrInUse, "another coordinator serves it")),
    }
}
