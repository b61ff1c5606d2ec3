//! Events: each session gets the events that concern it, in order, and a slow subscriber delays no other session.

use std::io::{BufRead as _, BufReader};
use std::net::IpAddr;
use std::process::{Command, Stdio};

use portreeve_protocol::address::{AddAddress, RemoveAddress};
use portreeve_protocol::event::Subscribe;
use portreeve_protocol::{Event, EventCode, FaultCode, List};
use portreeve_tests::broker::SOCKET;
use portreeve_tests::namespaces::run;
use portreeve_tests::packet_capture::{PacketCapture, hex};
use portreeve_tests::peer::one_address;
use portreeve_tests::scripted_worker::WorkerSetup;
use portreeve_tests::{Broker, Host, Peer, binaries, eventually, isolated, lan, process, sample};
use rustix::process::{Pid, Signal, kill_process};

const NOBODY: u32 = 65_534;

/// Root may do everything. The user nobody may add addresses and subscribe. User 2 may add addresses, but not
/// subscribe.
fn configuration(host: &Host) -> Broker {
    let more = "broker {
        peer nobody { allow = ( address subscribe ) permit = ( any ) }
        peer 2 { allow = ( address ) permit = ( any ) }
    }";
    Broker::start(host, &sample::addresses(more))
}

fn user(number: u32) -> Peer {
    Peer::of_user(number, number)
}

fn words(events: &[Event]) -> Vec<String> {
    let word = |event: &Event| match event.address {
        Some(address) => format!("{} {address} {}", event.code.name(), event.interface),
        None => format!("{} {}", event.code.name(), event.interface),
    };
    events.iter().map(word).collect()
}

#[test]
fn address_events_are_delivered_in_order_and_recorded() {
    isolated(|host| {
        lan::create(&["far"]);
        let broker = configuration(host);
        let descriptors = broker.descriptors();
        let mut watcher = broker.peer();
        assert!(watcher.subscribe(true).is_empty());
        let mut owner = user(NOBODY);
        owner.add_address("10.1.1.7", |add| add.epoch = 4).unwrap();
        let added = watcher.next_event();
        assert_eq!((added.code, added.epoch), (EventCode::AddressAdded, 4));
        assert_eq!((&*added.interface, added.index > 0), ("eth1", true));
        lan::ip("addr del 10.1.1.7/32 dev eth1");
        assert_eq!(watcher.next_event().code, EventCode::AddressLost);
        assert_eq!(watcher.next_event().code, EventCode::AddressRestored);
        owner.add_address("10.1.1.8", |add| add.lease = Some(3)).unwrap();
        assert_eq!(watcher.next_event().code, EventCode::AddressAdded);
        let leaving = watcher.next_event();
        assert_eq!((leaving.code, leaving.count <= 1_000), (EventCode::AddressLeaving, true));
        let expired = watcher.next_event();
        assert_eq!((expired.code, expired.address), (EventCode::AddressExpired, "10.1.1.8".parse().ok()));
        broker.peer().request(&RemoveAddress { addresses: one_address("10.1.1.7"), epoch: 4 }).unwrap();
        assert_eq!(watcher.next_event().code, EventCode::AddressLeaving);
        assert_eq!(watcher.next_event().code, EventCode::AddressRemoved);
        let remembered = broker.peer().request(&Subscribe { follow: false, all: true }).unwrap().0;
        assert!(remembered.all);
        let expected = [
            "address-added 10.1.1.7 eth1",
            "address-lost 10.1.1.7 eth1",
            "address-restored 10.1.1.7 eth1",
            "address-added 10.1.1.8 eth1",
            "address-leaving 10.1.1.8 eth1",
            "address-expired 10.1.1.8 eth1",
            "address-leaving 10.1.1.7 eth1",
            "address-removed 10.1.1.7 eth1",
        ];
        assert_eq!(words(&remembered.recent), expected);
        let numbers: Vec<u64> = remembered.recent.iter().map(|event| event.number).collect();
        assert_eq!(numbers, [1, 2, 3, 4, 5, 6, 7, 8]);
        assert!(remembered.recent.windows(2).all(|pair| pair[0].time_ms <= pair[1].time_ms));
        drop((watcher, owner));
        broker.await_no_leak(&descriptors);
    });
}

#[test]
fn a_session_gets_only_the_events_that_concern_it() {
    isolated(|host| {
        lan::create(&["far"]);
        let broker = configuration(host);
        let (mut root, mut all) = (broker.peer(), broker.peer());
        root.add_address("10.1.1.7", |_| {}).unwrap();
        let (mut watcher, mut owner, mut other) = (user(NOBODY), user(NOBODY), user(2));
        let (answer, _) = watcher.request(&Subscribe { follow: true, all: true }).unwrap();
        assert!(!answer.all && answer.recent.is_empty(), "{answer:?}");
        assert_eq!(other.request(&Subscribe::default()).unwrap_err().code, FaultCode::Denied);
        assert_eq!(words(&all.subscribe(true)), ["address-added 10.1.1.7 eth1"]);
        other.add_address("10.1.1.10", |_| {}).unwrap();
        owner.add_address("10.1.1.8", |_| {}).unwrap();
        assert_eq!(watcher.next_event().address, "10.1.1.8".parse().ok());
        // An interface concerns the holders of its addresses, and the peers that may change it.
        lan::ip("link set eth1 down");
        assert_eq!(watcher.next_event().code, EventCode::LinkDown);
        owner.remove_address("10.1.1.8").unwrap();
        assert_eq!(watcher.next_event().code, EventCode::AddressRemoved);
        lan::ip("link set eth1 up");
        all.await_event(EventCode::LinkUp);
        owner.add_address("10.1.1.9", |_| {}).unwrap();
        assert_eq!(words(&[watcher.next_event()]), ["address-added 10.1.1.9 eth1"]);
        let mut own = broker.peer();
        assert_eq!(
            words(&own.subscribe(false)),
            ["address-added 10.1.1.7 eth1", "link-down eth1", "link-up eth1"]
        );
        // A cancelled subscription delivers no more events.
        watcher.request(&Subscribe::default()).unwrap();
        owner.remove_address("10.1.1.9").unwrap();
        watcher.ping();
    });
}

#[test]
fn events_report_interfaces_that_go_down_are_renamed_or_deleted() {
    isolated(|host| {
        lan::create(&["far"]);
        let broker = configuration(host);
        let (mut watcher, mut owner) = (broker.peer(), broker.peer());
        watcher.subscribe(true);
        owner.add_address("10.1.1.7", |add| add.lease = Some(60)).unwrap();
        lan::ip("link set eth1 down");
        let index = watcher.await_event(EventCode::LinkDown).index;
        lan::ip("link set eth1 name eth9");
        let renamed = watcher.await_event(EventCode::LinkRenamed);
        assert_eq!((&*renamed.interface, &*renamed.detail, renamed.index), ("eth9", "eth1", index));
        lan::ip("link set eth9 up");
        assert_eq!(&*watcher.await_event(EventCode::LinkUp).interface, "eth9");
        assert_eq!(&*owner.renew_address("10.1.1.7").unwrap().interface, "eth9");
        lan::ip("link del eth9");
        watcher.await_event(EventCode::LinkGone);
        eventually("the broker to notice the deletion", || owner.renew_address("10.1.1.7").err());
        let remembered =
            words(&broker.peer().request(&Subscribe { follow: false, all: true }).unwrap().0.recent);
        assert!(remembered.contains(&"address-lost 10.1.1.7 eth9".to_owned()), "{remembered:?}");
    });
}

#[test]
fn a_port_that_leaves_a_bridge_is_not_reported_as_a_deleted_interface() {
    isolated(|host| {
        lan::create(&["far"]);
        let broker = configuration(host);
        let (mut watcher, mut owner) = (broker.peer(), broker.peer());
        watcher.subscribe(true);
        owner.add_address("10.1.1.7", |add| add.lease = Some(60)).unwrap();
        watcher.await_event(EventCode::AddressAdded);
        lan::ip("link add br9 type bridge");
        lan::ip("link set eth1 master br9");
        lan::ip("link set eth1 nomaster");
        lan::ip("link del br9");
        assert_eq!(&*watcher.await_event(EventCode::LinkGone).interface, "br9");
        owner.renew_address("10.1.1.7").unwrap();
    });
}

#[test]
fn an_address_conflict_event_names_the_hardware_address() {
    isolated(|host| {
        lan::create(&["far"]);
        let broker = configuration(host);
        let (mut watcher, mut owner) = (broker.peer(), broker.peer());
        owner.add_address("10.1.1.7", |_| {}).unwrap();
        watcher.subscribe(false);
        let announcement = "ff ff ff ff ff ff 02 00 00 00 00 02 08 06 00 01 08 00 06 04 00 01 \
            02 00 00 00 00 02 0a 01 01 07 00 00 00 00 00 00 0a 01 01 07";
        PacketCapture::on("far").send(&hex(announcement));
        let conflict = watcher.await_event(EventCode::AddressConflict);
        assert_eq!((conflict.address, &*conflict.detail), ("10.1.1.7".parse().ok(), "02:00:00:00:00:02"));
    });
}

#[test]
fn a_subscriber_that_does_not_read_uses_bounded_memory_and_gets_gap_events() {
    isolated(|host| {
        lan::create(&["far"]);
        let broker = configuration(host);
        let (mut slow, mut owner) = (broker.peer(), broker.peer());
        slow.subscribe(true);
        let addresses: List<IpAddr, 256> =
            List::truncated((0..=255).map(|last| IpAddr::from([10, 2, 0, last])));
        let mut round = || {
            let add = AddAddress { addresses: addresses.clone(), lease: Some(60), ..AddAddress::default() };
            owner.request(&add).unwrap();
            owner.request(&RemoveAddress { addresses: addresses.clone(), epoch: 0 }).unwrap();
        };
        round();
        let memory = || process::status_kilobytes(broker.pid(), "VmRSS");
        let before = memory();
        (1..8).for_each(|_| round());
        let grown = memory().saturating_sub(before);
        assert!(grown < 4_096, "{grown} KiB more for events that are not read");
        let (mut last, mut lost, mut received) = (0, 0, 0);
        while received + lost < 8 * 512 {
            let event = slow.next_event();
            match event.code {
                EventCode::Gap => lost += event.count,
                _ => {
                    assert!(event.number > last, "{event:?} arrived after number {last}");
                    (received, last) = (received + 1, event.number);
                }
            }
        }
        assert_eq!(received + lost, 8 * 512);
        assert!(lost > 1_000 && received >= 256, "{received} arrived and {lost} were lost");
        round();
        assert_eq!(slow.next_event().number, 8 * 512 + 1, "events continue after the gap");
    });
}

#[test]
fn worker_events_are_delivered_to_peers_that_may_see_the_status() {
    isolated(|host| {
        let setup = WorkerSetup::new(host, "chroot");
        let rest = sample::socket("( \"*:25\" )") + "broker { peer nobody { allow = ( subscribe ) } }";
        let broker =
            Broker::start(host, &sample::worker(&setup.chroot, "( /run/host/bin/scripted_worker )", &rest));
        let (_scripted, _channel) = setup.accept();
        let mut watcher = broker.peer();
        let first = watcher.subscribe(true);
        assert_eq!((first[0].code, first[0].count), (EventCode::WorkerStarted, 0));
        let worker = broker.worker();
        kill_process(Pid::from_raw(worker.cast_signed()).unwrap(), Signal::KILL).unwrap();
        let ended = watcher.next_event();
        assert_eq!(ended.code, EventCode::WorkerEnded);
        assert!(ended.pid > 0 && ended.detail.contains("SIGKILL"), "{ended:?}");
        let again = watcher.next_event();
        assert_eq!((again.code, again.count), (EventCode::WorkerStarted, 1));
    });
}

#[test]
fn the_events_command_shows_past_events_follows_and_ends_with_its_reader() {
    isolated(|host| {
        lan::create(&["far"]);
        let broker = configuration(host);
        let mut owner = broker.peer();
        owner.add_address("10.1.1.7", |_| {}).unwrap();
        let command = |words: &str| {
            let mut command = Command::new(host.binary(binaries::CLIENT));
            command.args(["--socket", SOCKET]).args(words.split(' ')).stdout(Stdio::piped());
            command
        };
        let shown = run(&mut command("events"), "portreeve");
        assert!(shown.contains("address-added") && shown.contains("10.1.1.7 on eth1"), "{shown}");
        let events: serde_json::Value =
            serde_json::from_str(&run(&mut command("events --json"), "portreeve")).unwrap();
        assert_eq!(events["events"][0]["event"], "address-added");
        assert_eq!(events["events"][0]["address"], "10.1.1.7");

        let mut following = command("events --follow --json").spawn().unwrap();
        let mut lines = BufReader::new(following.stdout.take().unwrap()).lines();
        let mut next =
            || -> serde_json::Value { serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap() };
        assert_eq!(next()["event"], "address-added");
        owner.remove_address("10.1.1.7").unwrap();
        assert_eq!(next()["event"], "address-removed");
        // No further event happens, and the command ends all the same.
        drop(lines);
        let status = eventually("the end of the command", || following.try_wait().unwrap());
        assert!(status.success(), "{status}");
    });
}
