//! Pins the bytes of every message and fault: each value encodes to the bytes in `golden/frames.txt`, and these bytes
//! decode to the value. A changed frame breaks every deployed client.

#![allow(clippy::unwrap_used, clippy::panic)] // test helpers may panic

mod golden_frames;
#[path = "golden/samples.rs"]
mod samples;

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;

use portreeve_protocol::address::*;
use portreeve_protocol::message::*;
use portreeve_protocol::status::{Credentials, Listener, Process, Quota, Session, Status};
use portreeve_protocol::{Endpoint, Fault, FaultCode, Header, Kind, List, Text, Trailing, codec};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// The golden frames, and the names of those that were compared.
struct Golden {
    frames: BTreeMap<String, Vec<u8>>,
    compared: RefCell<BTreeSet<String>>,
}

impl Golden {
    fn pin<T>(&self, name: &str, kind: Kind, request: u32, descriptors: u8, value: &T)
    where
        T: Serialize + DeserializeOwned + PartialEq + Debug,
    {
        let mut buffer = codec::frame_buffer();
        let encoded = codec::encode(&mut buffer, kind, request, descriptors, value).unwrap();
        let Some(golden) = self.frames.get(name) else {
            panic!("golden/frames.txt lacks this frame:\n\n[{name}]\n{}", golden_frames::hex(encoded));
        };
        assert_eq!(golden_frames::hex(encoded), golden_frames::hex(golden), "{name}: encoded");
        let (header, body) = Header::decode(golden).unwrap();
        let expected = Header { kind, request, descriptors, body: u16::try_from(golden.len() - 16).unwrap() };
        assert_eq!(header, expected, "{name}: header");
        assert_eq!(&codec::decode::<T>(body).unwrap(), value, "{name}: decoded");
        assert!(self.compared.borrow_mut().insert(name.to_owned()), "{name} is pinned twice");
    }

    fn request<O: Operation + PartialEq + Debug>(&self, name: &str, request: u32, value: &O) {
        self.pin(name, O::KIND, request, 0, value);
    }

    fn reply<O: Operation>(&self, name: &str, request: u32, descriptors: u8, value: &O::Reply)
    where
        O::Reply: PartialEq + Debug,
    {
        self.pin(name, O::KIND.reply(), request, descriptors, value);
    }

    fn fault(&self, name: &str, request: u32, value: &Fault) {
        self.pin(name, Kind::FAULT, request, 0, value);
    }
}

fn text<const MAX: usize>(text: &str) -> Text<MAX> {
    Text::new(text).unwrap()
}

fn list<T, const MAX: usize>(items: impl Into<Vec<T>>) -> List<T, MAX> {
    List::new(items.into()).unwrap()
}

fn listen(endpoint: &str, options: ListenOptions) -> Listen {
    Listen::new(endpoint.parse::<Endpoint>().unwrap(), options)
}

fn every_option() -> ListenOptions {
    ListenOptions {
        backlog: Some(1024),
        reuse_port: true,
        dual_stack: true,
        free_bind: true,
        device: text("eth0"),
        receive_buffer: Some(0),
        send_buffer: Some(262_144),
        no_delay: Some(false),
        defer_accept: 30,
        fast_open: 16,
        mode: Some(0o660),
    }
}

fn state() -> Status {
    Status {
        release: text("0.1.0"),
        uptime_ms: 86_400_000,
        processes: list([Process {
            role: text("worker"),
            pid: 4711,
            restarts: 2,
            root: text("/srv/mail"),
            credentials: Credentials {
                uid: [8, 9, 10, 11],
                gid: [12, 13, 14, 15],
                groups: list([100, 101]),
                inheritable: 1,
                permitted: 2,
                effective: 4,
                bounding: 8,
                ambient: 16,
                no_new_privs: true,
                seccomp: 2,
            },
            locks: list([text("landlock 7")]),
        }]),
        warnings: list([text("this kernel has no Landlock")]),
        quotas: list([Quota { name: text("max_sessions"), limit: 64 }]),
        listeners_held: 200,
        sessions: list([Session {
            id: 3,
            peer: text("user 0"),
            client: text("portreeve"),
            pid: 99,
            listeners: 1,
            refused: 5,
        }]),
        listeners: list([Listener {
            id: ListenerId(7),
            endpoint: text("*:25"),
            owner: text("worker"),
            retained: true,
        }]),
        next: 7,
    }
}

fn pin_operations(golden: &Golden) {
    let hello = Hello { client: text("smtpd"), features: 0 };
    golden.request("hello", 1, &hello);
    let welcome = Welcome {
        broker: 1234,
        release: text("0.1.0"),
        features: 0,
        capabilities: 1 << 10,
        peer: text("user 8"),
        operations: list([text("hello"), text("ping"), text("listen")]),
    };
    golden.reply::<Hello>("hello-reply", 1, 0, &welcome);

    golden.request("ping", 0xfedc_ba98, &Ping {});
    golden.reply::<Ping>("ping-reply", 0xfedc_ba98, 0, &Pong {});

    golden.request("listen", 2, &listen("*:25", ListenOptions::default()));
    golden.request("listen-tcp6", 2, &listen("[2001:db8::1]:465", every_option()));
    golden.request("listen-udp", 2, &listen("[fe80::1%eth0]:53/udp", ListenOptions::default()));
    golden.request("listen-unix-stream", 2, &listen("/run/mail.sock", ListenOptions::default()));
    golden.request("listen-unix-seqpacket", 2, &listen("seqpacket:/run/mail.sock", ListenOptions::default()));
    let mode = Trailing(Some(ListenMode { kept: false, intercepted: true }));
    golden.request("listen-mode", 2, &Listen { mode, ..listen("*:25", ListenOptions::default()) });
    golden.reply::<Listen>("listen-reply", 2, 1, &Listening { id: ListenerId(7) });

    let many = ListenMany::truncated(
        true,
        ["192.0.2.1:25", "192.0.2.2:25"].map(|endpoint| listen(endpoint, ListenOptions::default())),
    );
    golden.request("listen-many", 3, &many);
    let mode = Trailing(Some(ListenMode { kept: true, intercepted: true }));
    golden.request("listen-many-mode", 3, &ListenMany { mode, ..many });
    let results = ListeningMany {
        results: list([
            Outcome::Done(Listening { id: ListenerId(8) }),
            Outcome::Fault(Fault::new(FaultCode::NotLocal, "no")),
        ]),
    };
    golden.reply::<ListenMany>("listen-many-reply", 3, 1, &results);

    let stop = Stop { listeners: list([ListenerId(7), ListenerId(u64::MAX)]) };
    golden.request("stop", 4, &stop);
    let stopped = Stopped { unknown: list([ListenerId(u64::MAX)]), not_revoked: list([ListenerId(7)]) };
    golden.reply::<Stop>("stop-reply", 4, 0, &stopped);

    golden.request("status", 5, &StatusRequest { after: 128 });
    golden.reply::<StatusRequest>("status-reply", 5, 0, &state());
}

fn pin_addresses(golden: &Golden) {
    let addresses = || list(["192.0.2.1".parse().unwrap(), "2001:db8::1".parse().unwrap()]);
    let lease = Lease {
        address: "192.0.2.1".parse().unwrap(),
        interface: text("eth1"),
        prefix: 32,
        remaining_ms: 9_999,
        epoch: 42,
        follows: Some("192.0.2.9".parse().unwrap()),
    };
    let results = list([Outcome::Done(lease.clone()), Outcome::Fault(Fault::new(FaultCode::Conflict, "no"))]);
    let leases = Leases { results, times: Trailing(None) };
    let times = LeaseTimes { now: 7_000_000_000_000, deadlines: list([7_009_999_999_999, 0]) };
    let timed = Leases { times: Trailing(Some(times.clone())), ..leases.clone() };
    let add = AddAddress {
        addresses: addresses(),
        lease: Some(10),
        epoch: 42,
        probes: 3,
        announce: true,
        until: Trailing(None),
    };
    golden.request("add-address", 6, &add);
    golden.reply::<AddAddress>("add-address-reply", 6, 0, &leases);
    let until = AddAddress { lease: None, until: Trailing(Some(7_009_999_999_999)), ..add };
    golden.request("add-address-until", 6, &until);
    golden.reply::<AddAddress>("add-address-times", 6, 0, &timed);

    let renew = RenewAddress { addresses: addresses(), lease: None, epoch: 42, until: Trailing(None) };
    golden.request("renew-address", 7, &renew);
    golden.reply::<RenewAddress>("renew-address-reply", 7, 0, &leases);
    let until = RenewAddress { until: Trailing(Some(7_009_999_999_999)), ..renew };
    golden.request("renew-address-until", 7, &until);

    golden.request("renew-all", 20, &RenewAll { lease: None, until: Some(7_009_999_999_999) });
    let renewed = RenewedAll {
        now: 7_000_000_000_000,
        deadline: 7_009_999_999_999,
        renewed: 10_000,
        not_renewed: 1,
        bounds: Bounds { ipv4_fenced: true, ipv6_fenced: false },
    };
    golden.reply::<RenewAll>("renew-all-reply", 20, 0, &renewed);

    golden.request("remove-address", 8, &RemoveAddress { addresses: addresses(), epoch: 42 });
    let removed = Removal { address: lease.address, verified: true };
    let results = list([Outcome::Done(removed), Outcome::Fault(Fault::new(FaultCode::NotFound, "no"))]);
    golden.reply::<RemoveAddress>("remove-address-reply", 8, 0, &Removals { results });

    golden.request("announce", 9, &Announce { addresses: addresses(), epoch: 42 });
    golden.reply::<Announce>("announce-reply", 9, 0, &leases);

    let to = MoveAddress { addresses: addresses(), interface: text("eth2"), epoch: 42, announce: true };
    golden.request("move-address", 13, &to);
    golden.reply::<MoveAddress>("move-address-reply", 13, 0, &leases);

    golden.request("list-addresses", 10, &ListAddresses { after: Some(lease.address) });
    let row = AddressRow { lease, holder: text("the worker"), present: true };
    let page = AddressPage { fenced: true, addresses: list([row]), more: false, times: Trailing(None) };
    golden.reply::<ListAddresses>("list-addresses-reply", 10, 0, &page);
    let times = LeaseTimes { deadlines: list([7_009_999_999_999]), ..times };
    let times = PageTimes { leases: times, bounds: Bounds { ipv4_fenced: true, ipv6_fenced: true } };
    let timed = AddressPage { times: Trailing(Some(times)), ..page };
    golden.reply::<ListAddresses>("list-addresses-times", 10, 0, &timed);

    golden.request("set-link", 11, &SetLink { interface: text("eth1"), up: Some(true), mtu: Some(1500) });
    let link = Link { interface: text("eth1"), index: 2, up: true, carrier: false, mtu: 1500 };
    golden.reply::<SetLink>("set-link-reply", 11, 0, &link);
}

fn pin_faults(golden: &Golden) {
    let denied = Fault::new(FaultCode::Denied, "user 8 is not allowed to listen on *:25")
        .subject("mail.conf:7: listen *:587")
        .remedy("add *:25 to a permit");
    golden.fault("fault-denied", 2, &denied);
    let os = Fault::new(FaultCode::Os, "bind failed").subject("bind").errno(105);
    golden.fault("fault-os", 2, &os);
    let malformed = Fault::new(FaultCode::Malformed, "no frame");
    golden.fault("fault-malformed", 0, &malformed);
    let later = Fault::new(FaultCode::Other(700), "of a later version");
    golden.fault("fault-of-a-later-version", 2, &later);
    for code in known_codes() {
        let name = format!("fault-{}", code.name());
        if !golden.compared.borrow().contains(&name) {
            golden.fault(&name, 2, &Fault::new(code, code.name()));
        }
    }
}

fn known_codes() -> impl Iterator<Item = FaultCode> {
    (0..=u16::MAX).map(FaultCode::from).filter(|code| !matches!(code, FaultCode::Other(_)))
}

#[test]
fn every_message_has_its_golden_bytes() {
    let golden = Golden { frames: golden_frames::golden(), compared: RefCell::default() };
    pin_operations(&golden);
    pin_addresses(&golden);
    samples::policy(&golden);
    samples::cluster(&golden);
    samples::worker(&golden);
    samples::events(&golden);
    samples::metrics(&golden);
    samples::takeover(&golden);
    samples::reload(&golden);
    pin_faults(&golden);

    let compared = golden.compared.into_inner();
    let names: BTreeSet<String> = golden.frames.into_keys().collect();
    assert_eq!(names, compared, "a golden frame that no sample compares");
    for (_, operation) in OPERATIONS {
        assert!(compared.contains(*operation), "no golden request of {operation}");
        assert!(compared.contains(&format!("{operation}-reply")), "no golden reply of {operation}");
    }
}
