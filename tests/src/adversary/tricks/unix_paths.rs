//! Unix listeners at paths of others, and the credentials that a lent one shows its clients.

use std::os::unix::net::UnixStream;

use portreeve_protocol::Text;
use portreeve_protocol::endpoint::Endpoint;
use portreeve_protocol::message::{Listen, ListenOptions};

use crate::adversary::attacker::path;
use crate::adversary::{Attacker, Trick, Who};

fn request(path: &str, seqpacket: bool) -> Listen {
    let path = Text::truncated(path);
    let endpoint = if seqpacket { Endpoint::UnixSeqpacket(path) } else { Endpoint::UnixStream(path) };
    Listen::new(endpoint, ListenOptions { mode: Some(0o777), ..ListenOptions::default() })
}

/// Requests listeners at the paths of others, in each notation.
pub struct ForeignPaths;

impl Trick for ForeignPaths {
    fn attack(&self, attacker: &mut Attacker<'_>) {
        let (targets, mut open) = (attacker.targets, None);
        let control = targets.control.to_string_lossy().into_owned();
        let taken = targets.endpoints.iter().filter(|endpoint| endpoint.starts_with('/'));
        let name =
            |endpoint: &String| endpoint.rsplit_once('/').map_or(String::new(), |(_, name)| name.to_owned());
        let mut paths: Vec<String> = taken
            .clone()
            .flat_map(|endpoint| {
                let name = name(endpoint);
                [
                    endpoint.clone(),
                    path(targets, format!("./{name}")),
                    path(targets, format!("../peers/{name}")),
                ]
                .into_iter()
                .chain([format!("{}//{name}", targets.directory.display()), format!("{endpoint}/")])
            })
            .collect();
        let other = targets.other_control.iter().map(|other| other.to_string_lossy().into_owned());
        paths.extend(other.chain([control, path(targets, ""), path(targets, "."), path(targets, "..")]));
        paths.extend(
            ["\0abstract", "/proc/self/fd/0", "/run/host/portreeve.conf", "", "a"].map(str::to_owned),
        );
        while attacker.next_round() {
            let Some(mut session) = open.take().or_else(|| attacker.session()) else { continue };
            for path in &paths {
                for seqpacket in [false, true] {
                    if let Ok((id, _)) = session.listen(&request(path, seqpacket)) {
                        attacker.harm(format_args!("a listener at {path:?} was granted"));
                        let _ = session.stop(id); // the harm is already reported
                    }
                }
            }
            open = Some(session);
        }
    }
}

/// Looks at its own listener as a client does: the kernel reports to it who has called listen(2).
pub struct Credentials;

impl Trick for Credentials {
    fn attack(&self, attacker: &mut Attacker<'_>) {
        let (mut open, mut next) = (None, 0);
        while attacker.next_round() {
            let Some(mut session) = open.take().or_else(|| attacker.session()) else { continue };
            let path = path(attacker.targets, format!("{}-{}.sock", attacker.who.number(), next % 64));
            next += 1;
            let Ok((id, socket)) = session.listen(&request(&path, false)) else { continue };
            check(attacker, &path);
            // Clients can connect from now on at the latest.
            if rustix::net::listen(&socket, 16).is_ok() {
                check(attacker, &path);
            }
            if session.stop(id).is_ok() {
                if UnixStream::connect(&path).is_ok() {
                    attacker.harm(format_args!("{path} accepts clients after its stop"));
                }
                open = Some(session);
            }
        }
    }

    fn suits(&self, who: Who) -> bool {
        who != Who::Root
    }
}

fn check(attacker: &Attacker<'_>, path: &str) {
    let Ok(client) = UnixStream::connect(path) else { return };
    match rustix::net::sockopt::socket_peercred(&client) {
        Ok(shown) if shown.uid.as_raw() != attacker.who.uid() => {
            attacker.harm(format_args!(
                "a listener of user {} shows its clients user {} and process {:?}",
                attacker.who.uid(),
                shown.uid.as_raw(),
                shown.pid,
            ));
        }
        _ => {}
    }
}
