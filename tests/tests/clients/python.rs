//! The Python package: its own tests, its examples, and its blocking and asyncio clients with the real broker.

use std::collections::BTreeSet;
use std::fs;
use std::net::TcpStream;
use std::os::unix::fs::chown;
use std::path::Path;
use std::process::Command;

use portreeve_tests::broker::SOCKET;
use portreeve_tests::chroot::WORKER;
use portreeve_tests::namespaces::run;
use portreeve_tests::{Broker, Host, binaries, eventually, isolated, lan, process, resources, sample};
use rustix::process::{Pid, Signal, kill_process};

use crate::program::{Program, examples, greeting, with_default_socket};

/// Debian's interpreter, which has Debian's modules; another one in the PATH may not have them.
const PYTHON: &str = "/usr/bin/python3";
const README: &str = include_str!("../../../worker/python/README.md");
const CLIENTS: &str = include_str!("../../../deploy/docs/clients.md");
const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../worker/python");

macro_rules! files {
    ($($name:literal),* $(,)?) => {
        &[$(($name, include_str!(concat!("../../../worker/python/", $name)))),*]
    };
}

/// The package and its examples. A test's host does not have the source tree.
const FILES: &[(&str, &str)] = files![
    "examples/greeter.py",
    "examples/mail.py",
    "portreeve/__init__.py",
    "portreeve/_aio.py",
    "portreeve/_blocking.py",
    "portreeve/_channel.py",
    "portreeve/_connection.py",
    "portreeve/_lease.py",
    "portreeve/_listener.py",
    "portreeve/_wire.py",
    "portreeve/endpoint.py",
    "portreeve/errors.py",
    "portreeve/messages.py",
    "portreeve/py.typed",
];

/// Puts the package and its examples on the host.
fn install(host: &Host) {
    for (name, text) in FILES {
        let path = host.path("python").join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
}

/// An interpreter of user nobody, without a privilege, that has the package. A warning, such as that of a socket that was not
/// closed, is an error.
fn python(host: &Host) -> Command {
    let mut command = Command::new("setpriv");
    command
        .args(["--reuid", "nobody", "--regid", "nogroup", "--clear-groups"])
        .args(["--inh-caps=-all", "--bounding-set=-all", "--no-new-privs"])
        .args([PYTHON, "-B", "-X", "dev", "-W", "error"])
        .env("PYTHONPATH", host.path("python"))
        .env_remove("PORTREEVE_CHANNEL");
    command
}

/// Runs a script on a host that has the package. The script finds the path of the control socket in `path`.
fn script(host: &Host, script: &str) -> Program {
    let mut command = python(host);
    command.args(["-c", &format!("path = {SOCKET:?}\n{script}")]);
    Program::start(command)
}

#[test]
fn the_packages_own_tests_pass() {
    let mut command = Command::new(PYTHON);
    command.current_dir(FOLDER).args(["-B", "-X", "dev", "-W", "error", "-m", "unittest", "-q"]);
    let output = command.output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    let passed = output.status.success() && errors.ends_with("\nOK\n") && !errors.contains("Warning");
    assert!(passed, "{}: {errors}", output.status);
}

#[test]
fn every_file_of_the_package_is_tested() {
    let mut expected = BTreeSet::new();
    for folder in ["examples", "portreeve"] {
        for entry in fs::read_dir(Path::new(FOLDER).join(folder)).unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            if name != "__pycache__" {
                expected.insert(format!("{folder}/{name}"));
            }
        }
    }
    let files: BTreeSet<String> = FILES.iter().map(|(name, _)| (*name).to_owned()).collect();
    assert_eq!(files, expected);
}

#[test]
fn a_program_without_privileges_greets_on_port_25() {
    isolated(|host| {
        install(host);
        let broker = Broker::start(host, &sample::control(r#"( "*:25" )"#));
        let before = broker.descriptors();
        let mut command = python(host);
        command.arg(host.path("python/examples/greeter.py")).args(["*:25", SOCKET]);
        let mut program = Program::start(command);
        assert_eq!(program.line(), "listening on *:25");
        assert_eq!(greeting(25), "220 ready\r\n");
        program.end();
        // The end of the block has stopped the listener.
        TcpStream::connect("127.0.0.1:25").unwrap_err();
        broker.await_no_leak(&before);
    });
}

/// A broker whose control socket allows nobody everything that the clients do.
fn broker(host: &Host) -> Broker {
    let listen = r#"( "*:25" "*:465" "*:587" "[::1]:25" "*:53/udp" "/run/host/python/mail.sock" "/run/host/python/mail.seq" )"#;
    Broker::start(host, &sample::control(listen))
}

#[test]
fn blocking_sockets_of_every_kind_serve_and_stop() {
    isolated(|host| {
        install(host);
        let broker = broker(host);
        let before = broker.descriptors();
        let mut program = script(
            host,
            r#"
import os, socket
from portreeve import Client, Fault, FaultCode, ListenOptions

client = Client.open("kinds", path=path, timeout=20)
assert client.welcome.peer == "user 65534", client.welcome
client.ping()
many = client.listen_many(
    ["*:25", ("*:465", ListenOptions(backlog=7)), "*:26", "[::1]:25", "*:53/udp",
     ("/run/host/python/mail.sock", ListenOptions(mode=0o666)),
     ("seqpacket:/run/host/python/mail.seq", ListenOptions(mode=0o666))]
)
denied = many.pop(2)
assert isinstance(denied, Fault) and denied.code == FaultCode.DENIED and denied.word == "denied", denied
print(denied, flush=True)
try:
    client.listen("*:26")
except Fault as fault:
    assert fault == denied
same = client.listen("*:25")
assert same.id == many[0].id
same.detach().close()
assert len(client.status().listeners) == 6
assert any("*:587" in rule.text for rule in client.policy().rules)
for listener in many:
    assert listener.socket.getblocking() and not os.get_inheritable(listener.socket.fileno()), listener.socket

def serve(listener, target):
    of = listener.socket
    with socket.socket(of.family, of.type) as guest:
        guest.connect(target)
        if of.type == socket.SOCK_DGRAM:
            guest.send(b"query")
            assert of.recvfrom(9)[0] == b"query"
        else:
            accepted, _ = of.accept()
            with accepted:
                accepted.sendall(b"220")
                assert guest.recv(9) == b"220"

targets = [("127.0.0.1", 25), ("127.0.0.1", 465), ("::1", 25), ("127.0.0.1", 53),
           "/run/host/python/mail.sock", "/run/host/python/mail.seq"]
for listener, target in zip(many, targets):
    serve(listener, target)
kept = many[1].detach()
stopped = client.stop([listener.id for listener in many] + [99])
# In a user namespace, the kernel does not let the broker revoke a UDP socket.
assert stopped.unknown == (99,) and stopped.not_revoked in ((), (many[3].id,)), stopped
for listener, target in zip(many, targets):
    if listener.id in stopped.not_revoked:
        listener.socket.close()
        continue
    try:
        serve(listener, target)
    except (OSError, AssertionError):
        pass
    else:
        raise SystemExit(f"{listener.endpoint} serves after its stop")
    listener.socket.close()
with client.listen("*:587") as listener:
    serve(listener, ("127.0.0.1", 587))
client.close()
"#,
        );
        let denied = program.line();
        assert!(denied.starts_with("user 65534 is not allowed to listen on *:26. "), "{denied}");
        program.end();
        assert!(resources::tcp_listeners().is_empty());
        broker.await_no_leak(&before);
    });
}

#[test]
fn threads_share_a_blocking_client() {
    isolated(|host| {
        install(host);
        let broker = broker(host);
        let before = broker.descriptors();
        let mut program = script(
            host,
            r#"
import threading
from portreeve import Client

def work(endpoint, failures):
    try:
        for _ in range(100):
            with client.listen(endpoint) as listener:
                assert f":{listener.socket.getsockname()[1]}" in endpoint, (endpoint, listener.socket)
            client.ping()
    except BaseException as error:
        failures.append(error)

failures = []
with Client.open("threads", path=path, timeout=20) as client:
    endpoints = ["*:25", "*:465", "*:587", "[::1]:25", "*:53/udp"]
    threads = [threading.Thread(target=work, args=(endpoint, failures)) for endpoint in endpoints]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
assert not failures, failures
print("done")
"#,
        );
        assert_eq!(program.line(), "done");
        program.end();
        broker.await_no_leak(&before);
    });
}

#[test]
fn the_end_of_the_broker_reaches_every_thread_and_leaves_the_sockets() {
    isolated(|host| {
        install(host);
        let broker = broker(host);
        let mut program = script(
            host,
            r#"
import threading
from portreeve import Client, SessionEnded

client = Client.open("end", path=path)
listener = client.listen("*:25")
try:
    events = client.events()
    raise SystemExit("nobody may subscribe")
except Exception as why:
    assert "is not allowed" in str(why), why
ended = []
def wait():
    try:
        while True:
            client.ping()
    except SessionEnded as why:
        ended.append(why)
threads = [threading.Thread(target=wait) for _ in range(3)]
for thread in threads:
    thread.start()
print("ready", flush=True)
for thread in threads:
    thread.join()
assert len(ended) == 3 and "Sockets received from it remain usable" in str(ended[0]), ended
try:
    client.ping()
except SessionEnded:
    pass
print("ended", flush=True)
accepted, _ = listener.socket.accept()
accepted.sendall(b"220 ready\r\n")
accepted.close()
listener.socket.close()
client.close()
"#,
        );
        assert_eq!(program.line(), "ready");
        broker.signal(Signal::KILL);
        assert_eq!(program.line(), "ended");
        assert_eq!(greeting(25), "220 ready\r\n");
        program.end();
    });
}

#[test]
fn asyncio_serves_on_the_sockets_and_stops_them() {
    isolated(|host| {
        install(host);
        let broker = broker(host);
        let before = broker.descriptors();
        let mut program = script(
            host,
            r#"
import asyncio, os
from portreeve import AsyncClient, Fault, FaultCode

async def greet(reader, writer):
    writer.write(b"220 ready\r\n")
    await writer.drain()
    writer.close()

async def main():
    asyncio.get_running_loop().slow_callback_duration = 60  # a busy machine is no reason for a warning
    async with await AsyncClient.open("asyncio", path=path) as client:
        opened = await asyncio.gather(
            *[client.listen(endpoint) for endpoint in ["*:25", "*:465", "*:26", "[::1]:25"]], return_exceptions=True
        )
        denied = opened.pop(2)
        assert isinstance(denied, Fault) and denied.code == FaultCode.DENIED, denied
        for listener in opened:
            assert not listener.socket.getblocking() and not os.get_inheritable(listener.socket.fileno())
        server = await asyncio.start_server(greet, sock=opened[0].socket)
        reader, writer = await asyncio.open_connection("127.0.0.1", 25)
        assert await reader.read() == b"220 ready\r\n"
        writer.close()
        await writer.wait_closed()
        server.close()
        await server.wait_closed()
        async with opened[0]:
            pass
        try:
            await asyncio.open_connection("127.0.0.1", 25)
        except ConnectionRefusedError:
            pass
        udp = await client.listen("*:53/udp")
        received = asyncio.get_running_loop().create_future()
        class Protocol(asyncio.DatagramProtocol):
            def datagram_received(self, data, address):
                received.set_result(data)
        loop = asyncio.get_running_loop()
        server, _ = await loop.create_datagram_endpoint(Protocol, sock=udp.socket)
        guest, _ = await loop.create_datagram_endpoint(asyncio.DatagramProtocol, remote_addr=("127.0.0.1", 53))
        guest.sendto(b"query")
        assert await received == b"query"
        guest.close()
        server.close()
        pings = [asyncio.ensure_future(client.ping()) for _ in range(300)]
        for ping in pings[::2]:
            ping.cancel()
        await asyncio.gather(*pings[1::2])
        for listener in opened[1:]:
            await listener.stop()
        print("stopped", flush=True)

asyncio.run(main(), debug=True)
"#,
        );
        assert_eq!(program.line(), "stopped");
        program.end();
        broker.await_no_leak(&before);
    });
}

const SEND: &str = r"
import smtplib, sys
message = 'Subject: ' + sys.argv[1] + '\r\n\r\nA line.\r\n.A line with a dot.\r\n'
with smtplib.SMTP('127.0.0.1', 25, local_hostname='client.example', timeout=20) as client:
    client.sendmail('from@client.example', ['to@mx1.example'], message)
";

#[test]
fn aiosmtpd_receives_mail_on_port_25_as_the_worker_and_refuses_nobody_when_it_is_killed() {
    isolated(|host| {
        install(host);
        fs::copy(host.path("python/examples/mail.py"), host.path("python/mail.py")).unwrap();
        let mail = host.path("mail");
        fs::create_dir(&mail).unwrap();
        chown(&mail, Some(WORKER), Some(WORKER)).unwrap();
        let broker = Broker::start(
            host,
            &format!(
                r#"
                security {{ user = nobody group = nogroup capabilities = "cap_net_bind_service+ep" }}
                worker {{ command = ( {PYTHON} "-B" "-X" "dev" "-W" "error" /run/host/python/mail.py /run/host/mail ) }}
                broker {{ permit "mail" {{ listen = ( "*:25" ) }} }}"#
            ),
        );
        let stored = |subject: &str| {
            let subject = format!("Subject: {subject}\r\n");
            eventually("the message", || {
                let names = fs::read_dir(&mail).ok()?;
                let mut texts = names.filter_map(|name| fs::read_to_string(name.ok()?.path()).ok());
                texts.find(|text| text.contains(&subject) && text.ends_with("\r\n.A line with a dot.\r\n"))
            })
        };
        eventually("the listener", || (!resources::tcp_listeners().is_empty()).then_some(()));
        for round in 0..3 {
            let subject = format!("round {round}");
            run(Command::new(PYTHON).args(["-c", SEND, &subject]), "python3");
            stored(&subject);
            let worker = broker.worker();
            let status = process::threads(worker).remove(0);
            assert_eq!((status.uid, status.permitted, status.bounding), (vec![WORKER; 4], 0, 0));
            kill_process(Pid::from_raw(worker.cast_signed()).unwrap(), Signal::KILL).unwrap();
        }
        assert!(
            !broker.log.lines().iter().any(|line| line.contains("Traceback")),
            "{:?}",
            broker.log.lines()
        );
    });
}

/// The network, and a broker whose control socket allows nobody the addresses in it and their events.
fn broker_with_addresses(host: &Host) -> Broker {
    lan::create(&["far"]);
    let configuration =
        sample::addresses("").replace("{ allow = ( address )", "{ allow = ( address events )");
    Broker::start(host, &configuration)
}

#[test]
fn a_thread_renews_a_lease_until_the_address_is_removed_or_lost() {
    isolated(|host| {
        install(host);
        let broker = broker_with_addresses(host);
        let before = broker.descriptors();
        let mut program = script(
            host,
            r#"
import threading
from portreeve import AddressOptions, Client, EventCode, Fault, FaultCode, TimedOut

client = Client.open("leases", path=path, timeout=20)
options = AddressOptions(lease=6, probes=0)
events = client.events()
with client.hold_address("10.1.1.7", options) as held:
    assert events.next(20).code == EventCode.ADDRESS_ADDED
    assert held.lease.interface == "eth1" and held.lease.remaining_ms <= 6000, held.lease
    assert held.wait_lost(7) is None and held.lost is None
    (row,) = client.list_addresses().addresses
    assert str(row.lease.address) == "10.1.1.7" and row.present, row
assert client.list_addresses().addresses == ()
assert events.next(20).code == EventCode.ADDRESS_REMOVED
try:
    events.next(0.01)
except TimedOut:
    pass
else:
    raise SystemExit("an event more")

held = client.hold_address("10.1.1.7", options)
client.remove_addresses(["10.1.1.7"])
lost = held.wait_lost(20)
assert isinstance(lost, Fault) and lost.code == FaultCode.NOT_FOUND, lost
held.let_expire()
try:
    client.hold_address("192.0.2.1", options)
except Fault as fault:
    assert fault.code == FaultCode.DENIED, fault
else:
    raise SystemExit("192.0.2.1 is permitted")
results = client.renew_addresses(["10.1.1.7"]).results
assert results[0].code == FaultCode.NOT_FOUND, results

held = client.hold_address("2001:db8::7", options)
print("ready", flush=True)
notice = held.wait_removal_notice(20)
assert notice == 1.0, notice
assert held.remove() and held.lost is None

held = client.hold_address("10.1.1.8", options)
print("hang", flush=True)
lost = held.wait_lost(20)
assert isinstance(lost, Fault) and lost.code == FaultCode.EXPIRED, lost
print("lost", flush=True)
held.let_expire()
events.close()
events.close()
client.close()
assert threading.active_count() == 1, threading.enumerate()
"#,
        );
        take_both_leases(host, &broker, &mut program);
        program.end();
        broker.await_no_leak(&before);
    });
}

/// Takes the addresses that a program holds: root removes one, whose owner gets notice; the lease of the other expires while the
/// broker is stopped.
fn take_both_leases(host: &Host, broker: &Broker, program: &mut Program) {
    assert_eq!(program.line(), "ready");
    let removal = Command::new(host.binary(binaries::CLIENT))
        .args(["--socket", SOCKET, "address", "remove", "2001:db8::7"])
        .output()
        .unwrap();
    assert_eq!(program.line(), "hang", "{removal:?}");
    broker.suspend();
    assert_eq!(program.line(), "lost");
    broker.signal(Signal::CONT);
}

#[test]
fn a_task_renews_a_lease_until_the_address_is_removed_or_lost() {
    isolated(|host| {
        install(host);
        let broker = broker_with_addresses(host);
        let before = broker.descriptors();
        let mut program = script(
            host,
            r#"
import asyncio
from portreeve import AddressOptions, AsyncClient, EventCode, Fault, FaultCode

async def main():
    asyncio.get_running_loop().slow_callback_duration = 60  # a busy machine is no reason for a warning
    options = AddressOptions(lease=6, probes=0)
    async with await AsyncClient.open("leases", path=path) as client, await client.events() as events:
        async with await client.hold_address("10.1.1.7", options) as held:
            assert (await events.next()).code == EventCode.ADDRESS_ADDED
            done, _ = await asyncio.wait([asyncio.ensure_future(held.wait_lost())], timeout=7)
            assert not done and held.lost is None and held.lease.interface == "eth1"
            (row,) = (await client.list_addresses()).addresses
            assert str(row.lease.address) == "10.1.1.7" and row.present, row
        assert (await client.list_addresses()).addresses == ()
        async for event in events:
            assert event.code == EventCode.ADDRESS_REMOVED, event
            break
        held = await client.hold_address("10.1.1.7", options)
        await client.remove_addresses(["10.1.1.7"])
        lost = await held.wait_lost()
        assert isinstance(lost, Fault) and lost.code == FaultCode.NOT_FOUND, lost

        held = await client.hold_address("2001:db8::7", options)
        print("ready", flush=True)
        notice = await held.wait_removal_notice()
        assert notice == 1.0, notice
        assert await held.remove() and held.lost is None

        held = await client.hold_address("10.1.1.8", options)
        print("hang", flush=True)
        lost = await held.wait_lost()
        assert isinstance(lost, Fault) and lost.code == FaultCode.EXPIRED, lost
        print("lost", flush=True)
        await client.ping()

asyncio.run(main(), debug=True)
"#,
        );
        take_both_leases(host, &broker, &mut program);
        program.end();
        broker.await_no_leak(&before);
    });
}

#[test]
fn the_examples_of_the_page_work() {
    isolated(|host| {
        install(host);
        let [blocking, asynchronous, address]: [String; 3] = examples(README, "python").try_into().unwrap();
        let start = |example: &str| {
            let mut command = python(host);
            command.args(["-u", "-c", example]);
            Program::start(command)
        };
        lan::create(&["far"]);
        let configuration =
            sample::addresses("").replace("{ allow = ( address )", "{ allow = ( address listen status )");
        let broker = Broker::start(host, &with_default_socket(&configuration));
        let before = broker.descriptors();
        let program = start(&blocking);
        eventually("the listener", || {
            resources::tcp_listeners().iter().any(|at| at.port() == 25).then_some(())
        });
        assert_eq!(greeting(25), "220 ready\r\n");
        program.end();
        let program = start(&asynchronous);
        eventually("the listener", || {
            resources::tcp_listeners().iter().any(|at| at.port() == 587).then_some(())
        });
        for _ in 0..2 {
            assert_eq!(greeting(587), "220 ready\r\n");
        }
        program.kill();
        let mut program = start(&address);
        assert_eq!(program.line(), "held on eth1");
        let mut removal = Command::new(host.binary(binaries::CLIENT));
        run(removal.args(["address", "remove", "10.1.1.7"]), "portreeve");
        assert!(program.line().starts_with("lost: "));
        program.end();
        let [both]: [String; 1] = examples(CLIENTS, "python").try_into().unwrap();
        let program = start(&both);
        eventually("its end after a connection", || TcpStream::connect("10.1.1.7:25").ok());
        // Python warns that the example does not close its connection.
        program.wait();
        assert!(lan::show_address("10.1.1.7").is_none() && resources::tcp_listeners().is_empty());
        broker.await_no_leak(&before);
    });
}

#[test]
fn a_listener_that_the_broker_does_not_keep_ends_with_its_socket() {
    isolated(|host| {
        install(host);
        let configuration =
            sample::control(r#"( "*:25" )"#).replace("listen = ( \"", "unkept = true listen = ( \"");
        let broker = Broker::start(host, &configuration);
        let before = broker.descriptors();
        let mut program = script(
            host,
            r#"
import asyncio
from portreeve import AsyncClient, Client, Fault, FaultCode

async def main():
    async with await AsyncClient.open("unkept", path=path) as client:
        try:
            (listener,) = await client.listen_many(["*:25"], kept=False)
            if isinstance(listener, Fault):
                raise listener
        except Fault as fault:
            assert fault.code == FaultCode.UNSUPPORTED, fault
            return "unsupported"
        listener.detach().close()
        assert (await client.status()).listeners == ()
    return "ended"

with Client.open("unkept", path=path, timeout=20) as client:
    for _ in range(3):
        try:
            listener = client.listen("*:25", kept=False)
        except Fault as fault:
            assert fault.code == FaultCode.UNSUPPORTED, fault
            break
        try:
            client.listen("*:25", kept=False)
        except Fault as fault:
            assert fault.code == FaultCode.IN_USE, fault
        listener.detach().close()
        assert client.status().listeners == ()
print(asyncio.run(main()))
"#,
        );
        // In a user namespace, the kernel lets the broker keep no allowlist.
        match program.line().as_str() {
            "unsupported" => drop(broker.log.wait_for(&["is not enforced"])),
            line => assert_eq!(line, "ended"),
        }
        program.end();
        assert!(resources::tcp_listeners().is_empty());
        broker.await_no_leak(&before);
    });
}
