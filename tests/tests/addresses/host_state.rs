//! States of the host and of its links that decide whether an address can be added, and what the kernel does with it.

use std::process::Command;

use portreeve_protocol::address::{AddAddress, ListAddresses};
use portreeve_protocol::{EventCode, FaultCode};
use portreeve_tests::packet_capture::PacketCapture;
use portreeve_tests::peer::one_address;
use portreeve_tests::wait::TIMEOUT;
use portreeve_tests::{Broker, broker, eventually, isolated, lan, sample};
use rustix::process::Signal;

fn sysctl(name: &str, value: &str) {
    std::fs::write(format!("/proc/sys/net/{name}"), value).unwrap();
}

/// The source address that the kernel chooses for connections to another host.
fn source() -> String {
    let text = lan::ip("-6 route get 2001:db8::201");
    let mut words = text.split_whitespace().skip_while(|word| *word != "src");
    words.nth(1).unwrap().to_owned()
}

#[test]
fn an_ipv6_address_does_not_become_the_source_of_the_hosts_own_connections() {
    isolated(|host| {
        lan::create(&["far"]);
        let mut broker = Broker::start(host, &sample::addresses(""));
        let mut peer = broker.peer();
        // Shares more bits with the destination than the host's own address.
        let address = "2001:db8::200";
        peer.add_address(address, |add| add.lease = Some(600)).unwrap();
        for _ in 0..2 {
            assert_eq!(source(), "2001:db8::1");
            let line = lan::show_address(address).unwrap();
            assert!(line.contains("deprecated") && line.contains("preferred_lft 0sec"), "{line}");
            peer.renew_address(address).unwrap();
        }
        // A program that binds to it still uses it.
        let client = std::net::UdpSocket::bind(format!("[{address}]:0")).unwrap();
        client.connect("[2001:db8::201]:9").unwrap();
        assert_eq!(client.local_addr().unwrap().ip().to_string(), address);
        // The address is restored in the same way.
        lan::ip(&format!("addr del {address}/128 dev eth1"));
        eventually("the restored address", || lan::show_address(address));
        assert_eq!(source(), "2001:db8::1");
        broker::config(host, &sample::addresses("cluster { ipv6_as_source = true }"));
        broker.signal(Signal::HUP);
        broker.log.wait_for(&["ipv6_as_source"]);
        peer.renew_address(address).unwrap();
        let line = lan::show_address(address).unwrap();
        assert!(!line.contains("deprecated"), "{line}");
        assert_eq!(source(), address);
        broker.terminate();
    });
}

#[test]
fn an_address_that_the_kernel_sends_to_no_single_host_is_refused() {
    isolated(|host| {
        lan::create(&["far"]);
        sysctl("ipv6/conf/all/forwarding", "1");
        let broker = Broker::start(host, &sample::addresses(""));
        let before = lan::addresses();
        let mut peer = broker.peer();
        for (address, what) in [("10.1.1.255", "a broadcast address"), ("2001:db8::", "an anycast address")] {
            let fault = peer.add_address(address, |_| {}).unwrap_err();
            assert_eq!((fault.code, &*fault.subject), (FaultCode::Invalid, what), "{fault}");
        }
        // A route makes it one.
        lan::ip("route add multicast 10.2.3.4/32 dev eth1 table local");
        lan::ip("route add broadcast 10.2.3.5/32 dev eth1 table local");
        for address in ["10.2.3.4", "10.2.3.5"] {
            assert_eq!(peer.add_address(address, |_| {}).unwrap_err().code, FaultCode::Invalid);
        }
        assert_eq!(lan::addresses(), before);
        // The same numbers on a link where they mean nothing special.
        peer.add_address("10.2.1.255", |_| {}).unwrap();
    });
}

#[test]
fn an_address_that_is_local_by_a_route_or_on_another_interface_is_refused_with_that_cause() {
    isolated(|host| {
        lan::create(&["far"]);
        let broker = Broker::start(host, &sample::addresses(""));
        let mut peer = broker.peer();
        lan::add_to_loopback("10.1.1.7/32");
        let fault = peer.add_address("10.1.1.7", |_| {}).unwrap_err();
        assert_eq!(fault.code, FaultCode::InUse);
        assert!(fault.message.contains(r#"the interface "lo" has 10.1.1.7 already"#), "{fault}");
        for (route, address) in [
            ("route add local 10.2.0.0/24 dev lo", "10.2.0.7"),
            ("route add local 2001:db8::70/124 dev lo", "2001:db8::77"),
        ] {
            lan::ip(route);
            let fault = peer.add_address(address, |_| {}).unwrap_err();
            assert_eq!((fault.code, &*fault.subject), (FaultCode::InUse, "a local route"), "{fault}");
            assert!(fault.remedy.contains("ip route"), "{fault}");
        }
    });
}

#[test]
fn ipv6_that_is_disabled_on_the_interface_is_the_cause() {
    isolated(|host| {
        lan::create(&["far"]);
        let broker = Broker::start(host, &sample::addresses(""));
        sysctl("ipv6/conf/eth1/disable_ipv6", "1");
        let mut peer = broker.peer();
        let fault = peer.add_address("2001:db8::7", |_| {}).unwrap_err();
        assert_eq!((fault.code, &*fault.subject), (FaultCode::Unsupported, "disable_ipv6"), "{fault}");
        assert!(fault.message.contains("IPv6 is disabled"), "{fault}");
        peer.add_address("10.1.1.7", |_| {}).unwrap();
        sysctl("ipv6/conf/eth1/disable_ipv6", "0");
        peer.add_address("2001:db8::7", |_| {}).unwrap();
    });
}

#[test]
fn a_link_that_goes_down_and_up_again_and_again_keeps_its_addresses_and_nobody_is_blamed() {
    isolated(|host| {
        lan::create(&["far"]);
        let broker = Broker::start(host, &sample::addresses("cluster { if_down_limit = 1 }"));
        let (mut peer, mut watcher) = (broker.peer(), broker.peer());
        watcher.subscribe(false);
        let address = "2001:db8::7";
        peer.add_address(address, |add| add.lease = Some(600)).unwrap();
        for _ in 0..8 {
            lan::ip("link set eth1 down");
            watcher.await_event(EventCode::AddressLost);
            let fault = peer.renew_address(address).unwrap_err();
            assert_eq!(
                (fault.code, fault.errno),
                (FaultCode::NotLocal, libc::ENETDOWN.unsigned_abs()),
                "{fault}"
            );
            assert!(fault.message.contains("went down"), "{fault}");
            lan::ip("link set eth1 up");
            watcher.await_event(EventCode::AddressRestored);
            peer.renew_address(address).unwrap();
        }
        // Down and up within one moment.
        for _ in 0..8 {
            run_both("link set eth1 down", "link set eth1 up");
            watcher.await_event(EventCode::AddressLost);
            watcher.await_event(EventCode::AddressRestored);
        }
        assert!(!broker.log.lines().iter().any(|line| line.contains("another program removed it")));
        // What another program removes still counts.
        lan::ip(&format!("addr del {address}/128 dev eth1"));
        watcher.await_event(EventCode::AddressRestored);
        lan::ip(&format!("addr del {address}/128 dev eth1"));
        watcher.await_event(EventCode::AddressLost);
        let fault = peer.renew_address(address).unwrap_err();
        assert!(fault.message.contains("another program removed"), "{fault}");
    });
}

fn run_both(first: &str, second: &str) {
    let mut ip = Command::new("ip");
    ip.args(["-batch", "-"]).stdin(std::process::Stdio::piped());
    let mut child = ip.spawn().unwrap();
    std::io::Write::write_all(child.stdin.as_mut().unwrap(), format!("{first}\n{second}\n").as_bytes())
        .unwrap();
    drop(child.stdin.take());
    assert!(child.wait().unwrap().success());
}

#[test]
fn an_interface_known_by_an_alternative_name_is_the_same_at_start_after_a_kill_and_when_it_is_made_again() {
    isolated(|host| {
        lan::create(&["far"]);
        lan::ip("link property add dev eth1 altname mail0");
        let more = r#"cluster { topology "10.1.1.0/24" { interface = mail0 } }
            ESMTP_Listener { Listen "10.1.1.7:25" { enable_duravip = true } }"#;
        let text = sample::addresses(more).replacen("topology \"10.1.1.0/24\" { interface = eth1 }", "", 1);
        let broker = Broker::start(host, &text);
        broker.peer().add_address("10.1.1.7", |add| add.lease = Some(600)).unwrap();
        broker.signal(Signal::KILL);
        drop(broker);
        // The kernel's tag tells whose it is; without the tag, as on an older kernel, the place does.
        lan::ip("addr del 10.1.1.7/32 dev eth1");
        lan::ip("addr add 10.1.1.7/32 dev eth1");
        let broker = Broker::start(host, &text);
        broker.log.wait_for(&["removed a leftover address", "10.1.1.7"]);
        let (mut peer, mut watcher) = (broker.peer(), broker.peer());
        watcher.subscribe(false);
        peer.add_address("10.1.1.7", |add| add.lease = Some(600)).unwrap();
        // The interface is deleted and made again, and gets the name later.
        lan::ip("link del eth1");
        watcher.await_event(EventCode::LinkGone);
        lan::ip("-n switch link add port1 type veth peer name far1");
        lan::ip("-n switch link set far1 netns 1");
        lan::ip("-n switch link set port1 master br0 up");
        lan::ip("link set far1 name other0 up");
        lan::ip("link property add dev other0 altname mail0");
        watcher.await_event(EventCode::AddressRestored);
        assert!(lan::show_address("10.1.1.7").unwrap().contains("other0"));
        // The name moves to another interface; the address stays where it is, and the next one goes there.
        lan::add_second_interface();
        lan::ip("link property del dev other0 altname mail0");
        lan::ip("link property add dev eth2 altname mail0");
        peer.renew_address("10.1.1.7").unwrap();
        assert!(lan::show_address("10.1.1.7").unwrap().contains("other0"));
        peer.add_address("10.1.1.8", |_| {}).unwrap();
        assert!(lan::show_address("10.1.1.8").unwrap().contains("eth2"));
        let rows = peer.request(&ListAddresses { after: None }).unwrap().0.addresses.into_vec();
        assert!(rows.iter().all(|row| row.present));
    });
}

#[test]
fn a_holder_who_adds_an_address_again_is_told_that_it_is_being_added_or_missing() {
    isolated(|host| {
        lan::create(&["far"]);
        let broker = Broker::start(host, &sample::addresses(""));
        let (mut first, mut second) = (broker.peer(), broker.peer());
        let mut wire = PacketCapture::on("far");
        let slow = AddAddress { addresses: one_address("10.1.1.7"), probes: 3, ..AddAddress::default() };
        first.send(&slow);
        let arp = |frame: &[u8]| frame.get(12..14) == Some(&[8, 6]);
        assert_eq!(wire.collect(TIMEOUT, arp, |frames| !frames.is_empty()).len(), 1);
        assert_eq!(second.add_address("10.1.1.7", |_| {}).unwrap_err().code, FaultCode::Busy);
        first.receive().unwrap().reply::<AddAddress>().unwrap();
        second.add_address("10.1.1.7", |_| {}).unwrap();
        // Missing, while its interface is down.
        second.add_address("2001:db8::7", |add| add.lease = Some(600)).unwrap();
        lan::ip("link set eth1 down");
        let fault = second.add_address("2001:db8::7", |_| {}).unwrap_err();
        assert_eq!(
            (fault.code, fault.errno),
            (FaultCode::NotLocal, libc::ENETDOWN.unsigned_abs()),
            "{fault}"
        );
    });
}
