//! Listeners of which the broker keeps no copy: their endpoint is free as soon as the program has closed the socket, and they are
//! revoked as exactly as any other.

use std::io::ErrorKind;
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::fd::OwnedFd;

use portreeve_protocol::message::{Listen, ListenMany, ListenMode, ListenOptions, ListenerId};
use portreeve_protocol::reload::Reload;
use portreeve_protocol::{Fault, FaultCode, Trailing};
use portreeve_tests::broker::SOCKET;
use portreeve_tests::chroot::WORKER;
use portreeve_tests::kernel::command_denying;
use portreeve_tests::peer::listen;
use portreeve_tests::reload::{reload, rows};
use portreeve_tests::scripted_worker::WorkerSetup;
use portreeve_tests::service_manager::ServiceManager;
use portreeve_tests::{Broker, Host, Peer, binaries, broker, eventually, isolated, resources, sample};
use rustix::process::Signal;

use super::revocation::{ANYWHERE, NEXT, PREPARATIONS, is_reached, is_udp, misuse, target};

/// An endpoint of each kind of socket that can be requested so.
const ENDPOINTS: [&str; 5] = ["127.0.0.1:25", "[::1]:25", "*:26", "127.0.0.1:53/udp", "[::]:54/udp"];

/// Root, the user [`WORKER`] and the user [`NEXT`] are allowed these endpoints, also without a copy in the broker.
fn config(permits: &str) -> String {
    let next = format!("broker {{ peer \"{NEXT}\" {{ allow = ( listen ) permit = ( any ) }}");
    sample::control(permits)
        .replace("broker {", &next)
        .replace("listen = ( \"", "unkept = true listen = ( \"")
}

/// The same, after a reload that allows [`WORKER`] nothing.
fn narrowed() -> String {
    config(ANYWHERE).replace("peer nobody { allow = ( status listen ) permit = ( any ) }", "")
}

fn unkept(endpoint: &str) -> Listen {
    Listen { mode: Trailing(Some(ListenMode { kept: false, intercepted: false })), ..listen(endpoint) }
}

fn request(peer: &mut Peer, request: &Listen) -> Result<(ListenerId, OwnedFd), Fault> {
    let (listening, mut sockets) = peer.request(request)?;
    Ok((listening.id, sockets.remove(0)))
}

fn listen_unkept(peer: &mut Peer, endpoint: &str) -> Result<(ListenerId, OwnedFd), Fault> {
    request(peer, &unkept(endpoint))
}

/// Starts a broker. `None` if the kernel lets it keep no allowlist, as in a user namespace: it then refuses such requests.
fn start(host: &Host, text: &str) -> Option<Broker> {
    let broker = Broker::start(host, text);
    if broker.has_allowlist() {
        return Some(broker);
    }
    let fault = listen_unkept(&mut user(0), "127.0.0.1:25").unwrap_err();
    assert_eq!((fault.code, &*fault.subject), (FaultCode::Unsupported, "kept"), "{fault}");
    assert!(resources::tcp_listeners().is_empty());
    None
}

fn user(uid: u32) -> Peer {
    Peer::of_user(uid, uid)
}

fn await_no_listener(broker: &Broker) {
    eventually("the end of the listeners", || (broker.peer().status().listeners_held == 0).then_some(()));
}

/// Whether another program can bind the endpoint now.
fn is_free(endpoint: &str) -> bool {
    match is_udp(endpoint) {
        true => UdpSocket::bind(target(endpoint)).is_ok(),
        false => TcpListener::bind(target(endpoint)).is_ok(),
    }
}

/// The holder gets no packet any more. As long as it keeps the socket, the endpoint is in use, and the fault names it; as soon as
/// it has closed the socket, the next peer gets the endpoint.
#[track_caller]
fn is_revoked_and_free_once_closed(socket: OwnedFd, endpoint: &str, what: &str) {
    misuse(&socket);
    assert!(!is_reached(&socket, endpoint), "{endpoint} after {what}");
    let mut next = user(NEXT);
    // A holder that has shut its socket down does not keep the endpoint from others.
    if let Err(fault) = next.listen(endpoint) {
        let expected = (FaultCode::InUse, format!("user {WORKER}"));
        assert_eq!((fault.code, fault.subject.to_string()), expected, "{endpoint} after {what}: {fault}");
    }
    assert!(!is_reached(&socket, endpoint), "{endpoint} after {what}");
    drop(socket);
    let (id, socket) =
        next.listen(endpoint).unwrap_or_else(|fault| panic!("{endpoint} after {what}: {fault}"));
    assert!(is_reached(&socket, endpoint), "{endpoint} after {what}");
    assert!(next.stop(&[id]).unknown.is_empty());
}

#[test]
fn the_endpoint_is_free_as_soon_as_the_program_closes_its_socket() {
    isolated(|host| {
        let Some(broker) = start(host, &config(ANYWHERE)) else { return };
        let before = broker.descriptors();
        let mut peer = user(WORKER);
        for endpoint in ENDPOINTS {
            let mut last = ListenerId(0);
            for _ in 0..3 {
                let (id, socket) = listen_unkept(&mut peer, endpoint).unwrap();
                assert!(id > last, "each socket is a new listener");
                last = id;
                assert!(is_reached(&socket, endpoint), "{endpoint}");
                assert!(!is_free(endpoint), "{endpoint}");
                let copy = socket.try_clone().unwrap();
                drop(socket);
                let fault = listen_unkept(&mut peer, endpoint).unwrap_err();
                assert_eq!(
                    (fault.code, &*fault.subject),
                    (FaultCode::InUse, "this peer"),
                    "{endpoint}: {fault}"
                );
                assert!(is_reached(&copy, endpoint), "{endpoint}: the refused request changes nothing");
                drop(copy);
                assert!(is_free(endpoint), "{endpoint}");
                if !is_udp(endpoint) {
                    let refused = TcpStream::connect(target(endpoint)).unwrap_err();
                    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused, "{endpoint}");
                }
            }
        }
        // The broker keeps no copy of any of them.
        drop(peer);
        broker.await_no_leak(&before);
    });
}

#[test]
fn another_peer_gets_the_endpoint_when_it_is_closed_and_not_before() {
    isolated(|host| {
        let Some(broker) = start(host, &config(ANYWHERE)) else { return };
        let (mut first, mut next) = (user(WORKER), user(NEXT));
        for (held, wanted) in [
            ("127.0.0.1:25", "127.0.0.1:25"),
            ("127.0.0.1:25", "*:25"),
            ("*:26", "127.0.0.1:26"),
            ("127.0.0.1:53/udp", "*:53/udp"),
        ] {
            for share in [false, true] {
                let (id, socket) = listen_unkept(&mut first, held).unwrap();
                let options = ListenOptions { reuse_port: share, ..ListenOptions::default() };
                let wanted = Listen { options, ..listen(wanted) };
                rustix::net::sockopt::set_socket_reuseport(&socket, true).unwrap();
                let fault = request(&mut next, &wanted).unwrap_err();
                assert_eq!(fault.code, FaultCode::InUse, "{fault}");
                assert!(fault.message.contains("of this broker"), "{fault}");
                assert!(is_reached(&socket, held), "{held}");
                drop(socket);
                let (other, _socket) = request(&mut next, &wanted).unwrap();
                assert_eq!(first.stop(&[id]).unknown.into_vec(), [id], "the closed listener has ended");
                assert!(next.stop(&[other]).unknown.is_empty());
            }
        }
        assert_eq!(broker.peer().status().listeners_held, 0);
    });
}

#[test]
fn status_does_not_list_a_listener_that_its_program_has_closed() {
    isolated(|host| {
        let Some(broker) = start(host, &config(ANYWHERE)) else { return };
        let mut peer = user(WORKER);
        let [closed, open] =
            ["127.0.0.1:25", "127.0.0.1:26"].map(|endpoint| listen_unkept(&mut peer, endpoint).unwrap());
        assert_eq!(broker.peer().status().listeners_held, 2);
        drop(closed.1);
        let listed: Vec<_> = broker.peer().status().listeners.iter().map(|listener| listener.id).collect();
        assert_eq!(listed, [open.0]);
    });
}

#[test]
fn nothing_that_the_holder_does_keeps_a_listener_after_its_end() {
    isolated(|host| {
        let Some(broker) = start(host, &config(ANYWHERE)) else { return };
        for endpoint in ENDPOINTS {
            for (what, prepare) in PREPARATIONS {
                let mut holder = user(WORKER);
                let (id, socket) = listen_unkept(&mut holder, endpoint).unwrap();
                prepare(&socket);
                let stopped = holder.stop(&[id]);
                assert!(stopped.unknown.is_empty() && stopped.not_revoked.is_empty(), "{what}: {stopped:?}");
                is_revoked_and_free_once_closed(socket, endpoint, &format!("{what}, stop"));

                let (id, socket) = listen_unkept(&mut holder, endpoint).unwrap();
                prepare(&socket);
                assert!(broker.peer().stop(&[id]).unknown.is_empty());
                is_revoked_and_free_once_closed(socket, endpoint, &format!("{what}, stop by root"));

                let (_, socket) = listen_unkept(&mut holder, endpoint).unwrap();
                prepare(&socket);
                drop(holder);
                await_no_listener(&broker);
                is_revoked_and_free_once_closed(socket, endpoint, &format!("{what}, end of the session"));
            }
        }
    });
}

#[test]
fn nothing_that_the_holder_does_keeps_a_listener_after_a_reload() {
    isolated(|host| {
        let Some(broker) = start(host, &config(ANYWHERE)) else { return };
        // The endpoint is not permitted any more, or only with a copy in the broker.
        for narrowed in [narrowed(), config(ANYWHERE).replace("unkept = true", "")] {
            for (what, prepare) in PREPARATIONS {
                let mut holder = user(WORKER);
                let sockets = ENDPOINTS.map(|endpoint| {
                    let (_, socket) = listen_unkept(&mut holder, endpoint).unwrap();
                    prepare(&socket);
                    socket
                });
                let (_, kept) = user(0).listen("127.0.0.1:99").unwrap();
                drop(kept);
                reload(host, &broker, &narrowed);
                assert_eq!(listen_unkept(&mut holder, ENDPOINTS[0]).unwrap_err().code, FaultCode::Denied);
                for (endpoint, socket) in ENDPOINTS.iter().zip(sockets) {
                    is_revoked_and_free_once_closed(socket, endpoint, what);
                }
                reload(host, &broker, &config(ANYWHERE));
            }
        }
    });
}

#[test]
fn a_takeover_revokes_it_and_the_successor_does_not_have_it() {
    isolated(|host| {
        let Some(mut first) = start(host, &config(ANYWHERE)) else { return };
        let mut holder = user(WORKER);
        let sockets = ENDPOINTS.map(|endpoint| listen_unkept(&mut holder, endpoint).unwrap().1);
        let (_, kept) = holder.listen("127.0.0.1:80").unwrap();
        let second = first.start_successor(host, &config(ANYWHERE));
        assert!(first.wait_for_exit().success());
        assert_eq!(second.peer().status().listeners_held, 1);
        assert!(is_reached(&kept, "127.0.0.1:80"));
        for (endpoint, socket) in ENDPOINTS.iter().zip(sockets) {
            misuse(&socket);
            assert!(!is_reached(&socket, endpoint), "{endpoint}");
            let fault = user(NEXT).listen(endpoint).err().filter(|_| !is_udp(endpoint));
            assert!(fault.is_none_or(|fault| fault.code == FaultCode::InUse), "{endpoint}");
            drop(socket);
            user(NEXT).listen(endpoint).unwrap_or_else(|fault| panic!("{endpoint}: {fault}"));
        }
    });
}

#[test]
fn it_survives_no_restart_and_is_not_in_the_descriptor_store() {
    isolated(|host| {
        let path = broker::config(host, &config(ANYWHERE));
        let mut manager = ServiceManager::new(host);
        let mut service = manager.start(&host.binary(binaries::BROKER), &path, 64);
        manager.await_notification("READY=1");
        let mut holder = user(WORKER);
        let Ok((_, unkept)) = listen_unkept(&mut holder, "127.0.0.1:25") else { return };
        let (_, kept) = holder.listen("127.0.0.1:26").unwrap();
        manager.receive_until("the kept listener", |manager| manager.fdstore.len() == 1);
        service.signal(Signal::TERM);
        assert!(service.wait_for_exit().success());
        assert!(!is_reached(&unkept, "127.0.0.1:25"));
        let _service = manager.start(&host.binary(binaries::BROKER), &path, 64);
        manager.await_notification("READY=1");
        assert!(is_reached(&kept, "127.0.0.1:26") && !is_reached(&unkept, "127.0.0.1:25"));
        assert_eq!(user(WORKER).status().listeners_held, 1);
        assert_eq!(manager.fdstore.len(), 1);
    });
}

#[test]
fn a_killed_broker_leaves_the_socket_to_its_program_and_the_next_one_waits_for_its_end() {
    isolated(|host| {
        let Some(mut first) = start(host, &config(ANYWHERE)) else { return };
        let mut holder = user(WORKER);
        let (_, socket) = listen_unkept(&mut holder, "127.0.0.1:25").unwrap();
        first.signal(Signal::KILL);
        first.wait_for_exit();
        assert!(is_reached(&socket, "127.0.0.1:25"));
        let _second = Broker::start(host, &config(ANYWHERE));
        let mut holder = user(WORKER);
        let fault = listen_unkept(&mut holder, "127.0.0.1:25").unwrap_err();
        assert_eq!((fault.code, &*fault.subject), (FaultCode::InUse, "another program"), "{fault}");
        assert!(is_reached(&socket, "127.0.0.1:25"));
        drop(socket);
        listen_unkept(&mut holder, "127.0.0.1:25").unwrap();
    });
}

#[test]
fn no_other_worker_adopts_it_and_it_ends_with_its_worker() {
    isolated(|host| {
        let setup = WorkerSetup::new(host, "chroot");
        let rest = format!(
            r#"broker {{
                socket = "{SOCKET}"
                socket_mode = 0666
                permit "any" {{ unkept = true listen = ( "127.0.0.1:1-65535" ) }}
                peer "{NEXT}" {{ allow = ( listen status ) permit = ( any ) }}
            }}"#
        );
        let text = sample::worker(&setup.chroot, "( /run/host/bin/scripted_worker )", &rest);
        let broker = Broker::start(host, &text);
        let (_worker, mut channel) = setup.accept();
        channel.hello();
        if !broker.has_allowlist() {
            return;
        }
        let (_, unkept) = listen_unkept(&mut channel, "127.0.0.1:25").unwrap();
        let (_, kept) = channel.listen("127.0.0.1:26").unwrap();
        rustix::process::kill_process(
            rustix::process::Pid::from_raw(broker.worker() as i32).unwrap(),
            Signal::KILL,
        )
        .unwrap();
        let (_worker, mut channel) = setup.accept();
        channel.hello();
        // The test still has a copy, as a descendant of the last worker could.
        assert!(!is_reached(&unkept, "127.0.0.1:25") && is_reached(&kept, "127.0.0.1:26"));
        let fault = listen_unkept(&mut channel, "127.0.0.1:25").unwrap_err();
        assert_eq!((fault.code, &*fault.subject), (FaultCode::InUse, "the worker"), "{fault}");
        drop(unkept);
        listen_unkept(&mut channel, "127.0.0.1:25").unwrap();
        channel.listen("127.0.0.1:26").unwrap();
    });
}

#[test]
fn closed_listeners_do_not_count_against_the_quota_and_open_ones_do() {
    isolated(|host| {
        let text = config(ANYWHERE).replace("broker {", "broker { max_listeners = 100");
        let Some(_broker) = start(host, &text) else { return };
        let mut peer = user(WORKER);
        let endpoint = |number: u32| format!("127.0.0.1:{}", 2000 + number);
        let mut held: Vec<_> =
            (0..100).map(|number| listen_unkept(&mut peer, &endpoint(number)).unwrap()).collect();
        for round in 0..3 {
            let fault = listen_unkept(&mut peer, &endpoint(500)).unwrap_err();
            assert_eq!(fault.code, FaultCode::Quota, "round {round}: {fault}");
        }
        // The broker probes some of them at a time.
        held.truncate(99);
        let granted = || listen_unkept(&mut peer, &endpoint(500)).ok();
        held.push(eventually("the closed listener does not count", granted));
        assert_eq!(listen_unkept(&mut peer, &endpoint(501)).unwrap_err().code, FaultCode::Quota);
        held.clear();
        for number in 600..700 {
            held.push(listen_unkept(&mut peer, &endpoint(number)).unwrap());
        }
    });
}

#[test]
fn it_needs_a_permit_that_allows_it_an_inet_socket_and_an_allowlist() {
    isolated(|host| {
        let permits = r#"( "127.0.0.1:25" "[::]:26" "/run/host/*" )"#;
        let broker = Broker::start(host, &sample::control(permits));
        let fault = listen_unkept(&mut user(WORKER), "127.0.0.1:25").unwrap_err();
        assert_eq!(fault.code, FaultCode::Denied);
        assert_eq!(
            &*fault.message,
            "user 65534 is not allowed to listen on 127.0.0.1:25 without a copy of the socket in the broker"
        );
        assert!(fault.remedy.contains("add unkept = true to a permit"), "{fault}");
        drop(broker);

        let broker = Broker::start(host, &config(permits));
        let fault = listen_unkept(&mut user(WORKER), "/run/host/mail.sock").unwrap_err();
        assert_eq!((fault.code, &*fault.subject), (FaultCode::Unsupported, "kept"), "{fault}");
        assert!(!host.path("mail.sock").exists());
        // A socket that serves IPv4 too needs both endpoints.
        let both = Listen {
            options: ListenOptions { dual_stack: true, ..ListenOptions::default() },
            ..unkept("[::]:26")
        };
        assert_eq!(request(&mut user(WORKER), &both).unwrap_err().code, FaultCode::Denied);
        drop(broker);

        let path = broker::config(host, &config(permits));
        let broker =
            Broker::start_command(host, command_denying(host, &["bpf=EPERM"], binaries::BROKER, &path));
        let fault = listen_unkept(&mut user(WORKER), "127.0.0.1:25").unwrap_err();
        assert_eq!((fault.code, &*fault.subject), (FaultCode::Unsupported, "kept"), "{fault}");
        assert!(fault.message.contains("the kernel refused the broker an allowlist"), "{fault}");
        assert!(resources::tcp_listeners().is_empty());
        drop(broker);
    });
}

#[test]
fn several_are_requested_at_once_all_or_none() {
    isolated(|host| {
        let Some(broker) = start(host, &config(ANYWHERE)) else { return };
        let before = broker.descriptors();
        let mut peer = user(WORKER);
        let mode = Trailing(Some(ListenMode { kept: false, intercepted: true }));
        let many = |all_or_nothing, endpoints: &[&str]| {
            let listeners = endpoints.iter().map(|endpoint| listen(endpoint));
            ListenMany { mode, ..ListenMany::truncated(all_or_nothing, listeners) }
        };
        let (reply, sockets) = peer.request(&many(true, &ENDPOINTS)).unwrap();
        assert!(reply.results.iter().all(|result| result.fault().is_none()), "{reply:?}");
        for (endpoint, socket) in ENDPOINTS.iter().zip(&sockets) {
            assert!(is_reached(socket, endpoint), "{endpoint}");
        }
        broker.log.wait_for(&[
            "done",
            "listen-many",
            " via=\"bind\"",
            "127.0.0.1:25 not kept, [::1]:25 not kept",
        ]);
        // One is open: none is opened, and the open ones stay.
        let (reply, none) = peer.request(&many(true, &["127.0.0.1:80", "127.0.0.1:25"])).unwrap();
        assert!(none.is_empty() && reply.results.iter().all(|result| result.fault().is_some()), "{reply:?}");
        assert!(is_free("127.0.0.1:80") && is_reached(&sockets[0], "127.0.0.1:25"));
        drop(sockets);
        let (reply, sockets) = peer.request(&many(false, &ENDPOINTS)).unwrap();
        assert_eq!(sockets.len(), ENDPOINTS.len(), "{reply:?}");
        drop((peer, sockets));
        broker.await_no_leak(&before);
    });
}

#[test]
fn the_audit_line_says_that_a_bind_was_intercepted() {
    isolated(|host| {
        let broker = Broker::start(host, &config(ANYWHERE));
        let mut peer = user(WORKER);
        let intercepted = Listen {
            mode: Trailing(Some(ListenMode { kept: true, intercepted: true })),
            ..listen("127.0.0.1:25")
        };
        request(&mut peer, &intercepted).unwrap();
        broker.log.wait_for(&["done", "operation=\"listen\" via=\"bind\" arguments=127.0.0.1:25 "]);
        peer.listen("127.0.0.1:26").unwrap();
        let line = broker.log.wait_for(&["done", "arguments=127.0.0.1:26 "]);
        assert!(!line.contains("via="), "{line}");
    });
}

#[test]
fn a_reload_makes_no_endpoint_static_whose_socket_the_program_has_open() {
    isolated(|host| {
        let setup = WorkerSetup::new(host, "chroot");
        let text = |listeners: &str| {
            let rest = format!(
                r#"broker {{
                    socket = "{SOCKET}"
                    socket_mode = 0666
                    permit "any" {{ unkept = true listen = ( "127.0.0.1:1-65535" ) }}
                    peer root {{ allow = ( listen status reload ) permit = ( any ) }}
                    peer "{NEXT}" {{ allow = ( listen ) permit = ( any ) }}
                }}
                {listeners}"#
            );
            sample::worker(&setup.chroot, "( /run/host/bin/scripted_worker )", &rest)
        };
        let broker = Broker::start(host, &text(""));
        let (_worker, mut channel) = setup.accept();
        channel.hello();
        if !broker.has_allowlist() {
            return;
        }
        let with_static = text(r#"ESMTP_Listener { Listen "127.0.0.1:25" {} }"#);
        let mut next = user(NEXT);
        for (peer, owner) in [(&mut channel, "the worker"), (&mut next, "session")] {
            let (_, socket) = listen_unkept(peer, "127.0.0.1:25").unwrap();
            broker::config(host, &with_static);
            let fault = broker.peer().request(&Reload { last: false, force: Trailing(None) }).unwrap_err();
            assert!(fault.message.contains(owner), "{fault}");
            assert!(is_reached(&socket, "127.0.0.1:25"), "the refused reload changes nothing");
        }
        let reloaded = reload(host, &broker, &with_static);
        assert_eq!(rows(&reloaded, "opened"), ["listener 127.0.0.1:25"]);
        // The configured listener is kept, whatever the worker requests.
        let (_, socket) = listen_unkept(&mut channel, "127.0.0.1:25").unwrap();
        drop(socket);
        assert!(!is_free("127.0.0.1:25"));
    });
}
