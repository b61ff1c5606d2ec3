//! The engine of the coordinator against members of etcd.

use std::borrow::Borrow;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, TcpListener};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use portreeve_coordinator::core::record::{Claim, Entry, Key, Phase, Session, Value};
use portreeve_coordinator::core::txn::{Compare, MAX_OPERATIONS, NoReply, Operation, Reply, Txn};
use portreeve_coordinator::engine::etcd::compaction::{Compaction, Round};
use portreeve_coordinator::engine::etcd::{Etcd, Problem, Settings, State};
use portreeve_coordinator::engine::memory::Memory;
use portreeve_coordinator::engine::{Engine as _, Watched};
use portreeve_tests::certificates::{Authority, Issued};
use portreeve_tests::etcd::{self, Member, MemberSettings, Tls};
use portreeve_tests::random::Random;
use portreeve_tests::wait::TIMEOUT;
use portreeve_tests::{Host, eventually, isolated, lan};
use rustix::process::Signal;
use tokio::runtime::{Builder, Runtime};
use tokio::time::{sleep, timeout};

/// A runtime. Tasks run while it waits for something.
fn runtime() -> Runtime {
    Builder::new_current_thread().enable_all().build().unwrap()
}

/// Lets the tasks in the background run.
fn run_tasks(runtime: &Runtime) {
    runtime.block_on(async { sleep(Duration::from_millis(1)).await });
}

fn settings<'a>(members: impl IntoIterator<Item = &'a MemberSettings>) -> Settings {
    let endpoints = members.into_iter().map(|member| member.client.clone()).collect();
    Settings { endpoints, group: "g".to_owned(), ..Settings::default() }
}

/// An engine with plain connections to these members.
fn engine(members: &[Member]) -> Etcd {
    Etcd::new(settings(members.iter().map(|member| &member.settings))).unwrap()
}

fn put(key: &Key, text: &str) -> Txn {
    Txn { success: vec![Operation::Put(key.clone(), text.into())], ..Txn::default() }
}

/// Writes the key, as often as it takes.
#[track_caller]
fn write(runtime: &Runtime, etcd: &Etcd, text: &str) -> Reply {
    eventually("a reply", || runtime.block_on(etcd.txn(put(&Key::Freeze, text))).ok())
}

/// Reads all keys, as often as it takes.
#[track_caller]
fn read(runtime: &Runtime, etcd: &Etcd) -> Reply {
    eventually("a reply", || runtime.block_on(etcd.read()).ok())
}

/// Sends requests that are not answered until that is the state of the endpoint with that number. A machine
/// under load also exceeds time limits.
#[track_caller]
fn await_problem(runtime: &Runtime, etcd: &Etcd, number: usize, is_it: impl Fn(&Problem) -> bool) {
    let mut last = None;
    eventually("a diagnosis", || {
        assert_eq!(runtime.block_on(etcd.txn(put(&Key::Freeze, "{}"))), Err(NoReply));
        match &etcd.diagnosis()[number].state {
            State::Fails(problem) if is_it(problem) => return Some(()),
            other => {
                let other = format!("{other:?}");
                if last.as_ref() != Some(&other) {
                    eprintln!("{other}");
                    last = Some(other);
                }
            }
        }
        None
    });
}

/// A random transaction, for an engine whose revisions are `offset` more than those of another.
fn random_txn(random: &mut Random, revision: i64, offset: i64) -> [Txn; 2] {
    let keys: Vec<Key> =
        ["beat/a", "beat/b", "claim/10.0.0.1", "claim/10.0.0.2", "freeze", "x/y"].map(Key::parse).into();
    let text = |random: &mut Random| Arc::<str>::from(["{}", "1", "é"][random.below(3) as usize]);
    let mut txns = [Txn::default(), Txn::default()];
    for _ in 0..random.below(4) {
        let key = random.pick(&keys).unwrap().clone();
        let (kind, text) = (random.below(3), text(random));
        let created = (revision - random.below(6).cast_signed()).max(0);
        for (txn, offset) in txns.iter_mut().zip([0, offset]) {
            let created = if created == 0 { 0 } else { created + offset };
            txn.compare.push(match kind {
                0 => Compare::Value(key.clone(), text.clone()),
                1 => Compare::Created(key.clone(), created),
                _ => Compare::NotCreated(key.clone(), created),
            });
        }
    }
    for is_success in [true, false] {
        let mut operations = Vec::new();
        for key in &keys {
            // etcd refuses to write a key twice.
            match random.below(4) {
                0 => operations.push(Operation::Put(key.clone(), text(random))),
                1 => operations.push(Operation::Delete(key.clone())),
                2 => operations.push(Operation::Get(key.clone())),
                _ => {}
            }
        }
        for txn in &mut txns {
            *(if is_success { &mut txn.success } else { &mut txn.failure }) = operations.clone();
        }
    }
    txns
}

/// A reply as an engine would give it whose revisions are `offset` less.
fn shifted(reply: Reply, offset: i64) -> Reply {
    let shift = |entry: &Arc<Entry>| {
        let mut entry = Entry::clone(entry);
        match entry.value {
            Some(_) => entry.created -= offset,
            // That a key does not exist is as old as one likes.
            None => entry.modified = offset,
        }
        entry.modified -= offset;
        Arc::new(entry)
    };
    Reply { revision: reply.revision - offset, entries: reply.entries.iter().map(shift).collect(), ..reply }
}

#[test]
fn transactions_are_those_of_the_engine_in_memory() {
    isolated(|host| {
        let members = etcd::start_all(host, etcd::loopback(1));
        let (runtime, etcd, memory) = (runtime(), engine(&members), Memory::default());
        let mut random = Random::new(1);
        let offset = read(&runtime, &etcd).revision;
        for _ in 0..500 {
            let before = runtime.block_on(memory.read()).unwrap();
            let [simulated, real] = random_txn(&mut random, before.revision, offset);
            let expected = shifted(runtime.block_on(memory.txn(simulated.clone())).unwrap(), 0);
            let found = eventually("a reply", || match runtime.block_on(etcd.txn(real.clone())) {
                Ok(reply) => Some(Some(reply)),
                // It may have been performed: then it must not be again.
                Err(NoReply) => {
                    let is_performed = read(&runtime, &etcd).revision == expected.revision + offset;
                    (is_performed && expected.revision != before.revision).then_some(None)
                }
            });
            if let Some(found) = found {
                assert_eq!(shifted(found, offset), expected, "{simulated:?}");
            }
        }
        let expected = runtime.block_on(memory.read()).unwrap();
        assert!(expected.revision > 100);
        let found = shifted(read(&runtime, &etcd), offset);
        let by_path = |reply: &Reply| {
            let mut entries = reply.entries.clone();
            entries.sort_by_key(|entry| entry.key.to_string());
            entries
        };
        assert_eq!((found.revision, by_path(&found)), (expected.revision, by_path(&expected)));
    });
}

fn claim(number: u32, epoch: u64) -> Operation {
    let address = IpAddr::V4(Ipv4Addr::from_bits(0x0a00_0000 + number));
    let session = Session { created: 1_234_567, nonce: u64::MAX - u64::from(number) };
    let claim =
        Claim { epoch, node: format!("node-{}.example.com", number % 3).into(), session, phase: Phase::Held };
    Operation::Put(Key::Claim(address), Value::Claim(claim).encode())
}

#[test]
fn ten_thousand_claims_are_read_at_one_revision() {
    isolated(|host| {
        const CLAIMS: u32 = 10_240;
        let members = etcd::start_all(host, etcd::loopback(3));
        let (runtime, etcd) = (runtime(), engine(&members));
        let all: Vec<Operation> = (0..CLAIMS).map(|number| claim(number, 1)).collect();
        for some in all.chunks(MAX_OPERATIONS) {
            eventually("a reply", || {
                runtime.block_on(etcd.txn(Txn { success: some.to_vec(), ..Txn::default() })).ok()
            });
        }
        let check = |reply: &Reply| {
            assert_eq!(reply.entries.len(), CLAIMS as usize);
            let epoch = |entry: &Entry| match &entry.value {
                Some(Value::Claim(claim)) => claim.epoch,
                other => panic!("{other:?}"),
            };
            // The first and the last one are always written together.
            let [first, last] = [0, CLAIMS - 1].map(|number| {
                let key = Key::Claim(IpAddr::V4(Ipv4Addr::from_bits(0x0a00_0000 + number)));
                reply.entries.iter().find(|entry| entry.key == key).unwrap()
            });
            assert_eq!((first.modified, epoch(first)), (last.modified, epoch(last)), "{}", reply.revision);
            assert!(reply.entries.iter().all(|entry| entry.modified <= reply.revision));
            first.modified
        };
        let both = |epoch| Txn { success: vec![claim(0, epoch), claim(CLAIMS - 1, epoch)], ..Txn::default() };
        let mut seen = Vec::new();
        runtime.block_on(async {
            let writer = etcd.clone();
            writer.txn(both(2)).await.unwrap();
            let writer = tokio::spawn(async move {
                for epoch in 3.. {
                    let _ = writer.txn(both(epoch)).await; // the next one writes both too
                }
            });
            while seen.len() < 10 {
                seen.extend(etcd.read().await.as_ref().map(check));
            }
            writer.abort();
        });
        assert!(seen.is_sorted() && seen.first() != seen.last(), "{seen:?}");
    });
}

/// A watch in the background, while the runtime runs.
fn watch(runtime: &Runtime, etcd: &Etcd, with_beats: bool) -> Receiver<Option<Watched>> {
    let (sender, receiver) = channel();
    let etcd = etcd.clone();
    runtime.spawn(async move {
        let report = sender.clone();
        let NoReply = etcd.watch(with_beats, move |watched| report.send(Some(watched)).unwrap()).await;
        let _ = sender.send(None); // the test may have ended
    });
    receiver
}

/// The next report of a watch; `None`: it has ended.
#[track_caller]
fn report(runtime: &Runtime, watch: &Receiver<Option<Watched>>) -> Option<Watched> {
    eventually("a report", || {
        run_tasks(runtime);
        watch.try_recv().ok()
    })
}

/// Waits until a watch reports that entry. A transaction that was slow has been performed twice, and was
/// reported so.
#[track_caller]
fn await_change(
    runtime: &Runtime,
    watch: &Receiver<Option<Watched>>,
    is_it: impl Fn(&Entry) -> bool,
) -> Vec<Key> {
    let mut keys = Vec::new();
    loop {
        let Some(Watched::Changed(entries)) = report(runtime, watch) else { panic!("no change") };
        keys.extend(entries.iter().map(|entry| entry.key.clone()));
        if entries.iter().any(|entry| is_it(entry)) {
            return keys;
        }
    }
}

/// Waits for the end of a watch.
#[track_caller]
fn await_end(runtime: &Runtime, watch: &Receiver<Option<Watched>>) {
    while report(runtime, watch).is_some() {}
}

#[test]
fn a_watch_reports_changes_until_its_member_is_gone() {
    isolated(|host| {
        let mut members = etcd::start_all(host, etcd::loopback(3));
        let (runtime, etcd) = (runtime(), engine(&members[..1]));
        let all = watch(&runtime, &etcd, true);
        assert_eq!(report(&runtime, &all), Some(Watched::Started));
        let without_beats = watch(&runtime, &etcd, false);
        assert_eq!(report(&runtime, &without_beats), Some(Watched::Started));
        let beat = Key::parse("beat/a");
        members[1].etcdctl(&["put", "/portreeve/g/beat/a", "1"]);
        let revision = write(&runtime, &etcd, "{}").revision;
        let is_written =
            |entry: &Entry| entry.key == Key::Freeze && &*entry.text == "{}" && entry.modified == revision;
        assert_eq!(await_change(&runtime, &all, is_written)[0], beat);
        let mut keys = await_change(&runtime, &without_beats, is_written);
        // Compaction concerns only watches of the past.
        members[0].etcdctl(&["compaction", &revision.to_string()]);
        members[0].etcdctl(&["del", "/portreeve/g/freeze"]);
        let is_deleted = |entry: &Entry| *entry == Entry::deleted(Key::Freeze, revision + 1);
        keys.extend(await_change(&runtime, &without_beats, is_deleted));
        // Keys of others, and the engine's own.
        members[0].etcdctl(&["put", "/portreeve/g0", "x"]);
        members[0].etcdctl(&["put", "/portreeve/g/compaction", "x"]);
        members[0].etcdctl(&["put", "/portreeve/g/other", "x"]);
        let other = Key::Foreign("other".to_owned());
        keys.extend(await_change(&runtime, &without_beats, |entry| entry.key == other));
        keys.dedup();
        assert_eq!(keys, [Key::Freeze, other]);

        let etcd = engine(&members);
        write(&runtime, &etcd, "{}");
        let lost = watch(&runtime, &etcd, false);
        assert_eq!(report(&runtime, &lost), Some(Watched::Started));
        members[0].kill();
        await_end(&runtime, &without_beats);
        await_end(&runtime, &all);
        write(&runtime, &etcd, "{}");
        let next = eventually("a watch at another member", || {
            let next = watch(&runtime, &etcd, false);
            report(&runtime, &next).is_some().then_some(next)
        });
        members[1].signal(Signal::STOP);
        members[2].signal(Signal::STOP);
        await_end(&runtime, &next);
    });
}

#[test]
fn a_stopped_member_is_passed_over() {
    isolated(|host| {
        let members = etcd::start_all(host, etcd::loopback(3));
        let (runtime, etcd) = (runtime(), engine(&members));
        assert_eq!(etcd.diagnosis()[0].state, State::Unused);
        write(&runtime, &etcd, "1");
        assert_eq!(etcd.diagnosis()[0].state, State::Works);
        members[0].signal(Signal::STOP);
        write(&runtime, &etcd, "2");
        eventually("a diagnosis", || {
            run_tasks(&runtime);
            (etcd.diagnosis()[0].state == State::Fails(Problem::TimedOut)).then_some(())
        });
        write(&runtime, &etcd, "3");
        assert!(etcd.diagnosis().iter().any(|endpoint| endpoint.state == State::Works));
        // No majority.
        members[1].signal(Signal::STOP);
        assert_eq!(runtime.block_on(etcd.txn(put(&Key::Freeze, "4"))), Err(NoReply));
        members[2].signal(Signal::STOP);
        assert_eq!(runtime.block_on(async { timeout(TIMEOUT, etcd.read()).await }), Ok(Err(NoReply)));
        assert_eq!(
            runtime.block_on(async { timeout(TIMEOUT, etcd.txn(put(&Key::Freeze, "5"))).await }),
            Ok(Err(NoReply))
        );
        members.iter().for_each(|member| member.signal(Signal::CONT));
        write(&runtime, &etcd, "6");
        assert_eq!(read(&runtime, &etcd).entries.len(), 1);
    });
}

#[test]
fn a_new_leader_is_awaited() {
    isolated(|host| {
        let mut members = etcd::start_all(host, etcd::loopback(3));
        let (runtime, etcd) = (runtime(), engine(&members));
        for round in ["1", "2"] {
            write(&runtime, &etcd, round);
            let leader = members.iter_mut().find(|member| member.is_leader()).unwrap();
            leader.kill();
            write(&runtime, &etcd, "after the leader");
            leader.restart();
            leader.await_ready();
        }
        members[1].kill();
        members[2].kill();
        // The other one notices that it is alone.
        eventually("a diagnosis", || {
            // It may be the last one that is written.
            let _ = runtime.block_on(etcd.txn(put(&Key::Freeze, "x")));
            (etcd.diagnosis()[0].state == State::Fails(Problem::NoLeader)).then_some(())
        });
        eventually("a status", || {
            let status = runtime.block_on(etcd.status()).remove(0).1.ok()?;
            (status.problem == Some(Problem::NoLeader) && status.leader == 0).then_some(())
        });
        members[0].kill();
        assert_eq!(runtime.block_on(etcd.read()), Err(NoReply));
        for number in 0..3 {
            await_problem(&runtime, &etcd, number, |problem| *problem == Problem::Refused);
        }
        members[0].restart();
        members[1].restart();
        write(&runtime, &etcd, "again");
    });
}

struct Encrypted<M> {
    authority: Authority,
    client: Issued,
    member: M,
}

#[test]
fn a_member_that_the_network_cuts_off_is_passed_over() {
    isolated(|host| {
        let names = ["b", "c", "d"];
        lan::create(&names);
        let authority = Authority::create(&host.path(""), "authority");
        let client = authority.issue("client", &[]);
        let all = names.iter().zip(201..).map(|(name, number)| {
            let address = format!("10.1.1.{number}");
            MemberSettings {
                name: (*name).to_owned(),
                host: Some((*name).to_owned()),
                client: format!("https://{address}:2379"),
                peer: format!("http://{address}:2380"),
                tls: Some(Tls {
                    server: authority.issue(name, &[&address]),
                    client_authority: Some(authority.certificate.clone()),
                    etcdctl: (authority.certificate.clone(), client.clone()),
                }),
                heartbeat_ms: 50,
                election_ms: 500,
                ..MemberSettings::default()
            }
        });
        let mut all: Vec<MemberSettings> = all.collect();
        let cluster = etcd::initial_cluster(&all);
        all.iter_mut().for_each(|settings| settings.cluster.clone_from(&cluster));
        let members = etcd::start_all(host, all);
        let encrypted = Encrypted { authority, client, member: &members[0] };
        let endpoints = members.iter().map(|member| member.settings.client.clone()).collect();
        let etcd = Etcd::new(Settings { endpoints, ..encrypted.settings() }).unwrap();
        let runtime = runtime();
        write(&runtime, &etcd, "1");
        let lost = watch(&runtime, &Etcd::new(encrypted.settings()).unwrap(), true);
        assert_eq!(report(&runtime, &lost), Some(Watched::Started));
        // Without a reset: packets to and from it disappear.
        lan::ip("-n switch link set port2 down");
        write(&runtime, &etcd, "2");
        await_end(&runtime, &lost);
        eventually("a watch of another member", || report(&runtime, &watch(&runtime, &etcd, true)));
        eventually("a diagnosis", || {
            let status = runtime.block_on(etcd.status());
            // When the neighbour discovery has failed too, the error is that there is no route to the host.
            let is_named = matches!(&status[0].1, Err(Problem::TimedOut | Problem::Network(_)));
            (is_named && status[1].1.is_ok()).then_some(())
        });
        lan::ip("-n switch link set port2 up");
        eventually("the end of the fault", || {
            let status = runtime.block_on(etcd.status()).remove(0).1.ok()?;
            status.problem.is_none().then_some(())
        });
        assert_eq!(etcd.diagnosis()[0].state, State::Works);
    });
}

/// A member with TLS that demands certificates of clients.
fn encrypted(host: &Host, server: impl FnOnce(&Authority) -> Issued) -> Encrypted<Member> {
    let authority = Authority::create(&host.path(""), "authority");
    let client = authority.issue("client", &[]);
    let mut settings = etcd::loopback(1).remove(0);
    settings.client = "https://127.0.0.1:2379".to_owned();
    settings.tls = Some(Tls {
        server: server(&authority),
        client_authority: Some(authority.certificate.clone()),
        etcdctl: (authority.certificate.clone(), client.clone()),
    });
    let member = Member::start(host, settings);
    member.await_ready();
    Encrypted { authority, client, member }
}

impl<M: Borrow<Member>> Encrypted<M> {
    fn settings(&self) -> Settings {
        let text = |path: &std::path::PathBuf| path.to_str().unwrap().to_owned();
        Settings {
            ca: text(&self.authority.certificate),
            certificate: text(&self.client.certificate),
            key: text(&self.client.key),
            ..settings([&self.member.borrow().settings])
        }
    }
}

/// Waits until these settings fail for that reason.
#[track_caller]
fn await_failure(runtime: &Runtime, settings: Settings, is_it: impl Fn(&Problem) -> bool) {
    await_problem(runtime, &Etcd::new(settings).unwrap(), 0, is_it);
}

#[test]
fn certificates_that_are_wrong_are_named() {
    isolated(|host| {
        let encrypted = encrypted(host, |authority| authority.issue("server", &["127.0.0.1"]));
        let (runtime, right) = (runtime(), encrypted.settings());
        write(&runtime, &Etcd::new(right.clone()).unwrap(), "{}");

        let other = Authority::create(&host.path(""), "other");
        let text = |path: std::path::PathBuf| path.to_str().unwrap().to_owned();
        let with_client = |issued: Issued| Settings {
            certificate: text(issued.certificate),
            key: text(issued.key),
            ..right.clone()
        };
        let wrong = Settings { ca: text(other.certificate.clone()), ..right.clone() };
        await_failure(&runtime, wrong, |problem| *problem == Problem::UnknownIssuer);
        let wrong = Settings { ca: text(encrypted.client.key.clone()), ..right.clone() };
        await_failure(&runtime, wrong, |problem| {
            problem.to_string().ends_with("client.key contains no certificate in PEM format")
        });
        let wrong = Settings { key: "/nonexistent".to_owned(), ..right.clone() };
        await_failure(&runtime, wrong, |problem| {
            problem.to_string().starts_with("`key`: /nonexistent cannot be read: No such file")
        });

        for wrong in [
            Settings { certificate: String::new(), key: String::new(), ..right.clone() },
            with_client(other.issue("stranger", &[])),
            with_client(encrypted.authority.issue_expired("former", &[])),
        ] {
            await_failure(&runtime, wrong, |problem| matches!(problem, Problem::ClientCertificateRefused(_)));
        }
        let wrong = Settings { endpoints: vec!["https://etcd.invalid:2379".to_owned()], ..right.clone() };
        await_failure(&runtime, wrong, |problem| matches!(problem, Problem::NoAddress(_)));
        let plain = Settings { endpoints: vec!["http://127.0.0.1:2379".to_owned()], ..right.clone() };
        await_failure(&runtime, plain, |problem| problem.to_string().contains("write https://"));
        write(&runtime, &Etcd::new(right).unwrap(), "{}");
    });
}

#[test]
fn a_server_certificate_for_another_name_is_named() {
    isolated(|host| {
        let encrypted = encrypted(host, |authority| authority.issue("server", &["127.0.0.7", "localhost"]));
        await_failure(&runtime(), encrypted.settings(), |problem| *problem == Problem::NameMismatch);
        let by_name =
            Settings { endpoints: vec!["https://localhost:2379".to_owned()], ..encrypted.settings() };
        write(&runtime(), &Etcd::new(by_name).unwrap(), "{}");
    });
}

#[test]
fn an_expired_server_certificate_is_named() {
    isolated(|host| {
        let encrypted = encrypted(host, |authority| authority.issue_expired("server", &["127.0.0.1"]));
        await_failure(&runtime(), encrypted.settings(), |problem| *problem == Problem::CertificateExpired);
    });
}

#[test]
fn users_and_their_rights() {
    isolated(|host| {
        let mut all = etcd::loopback(1);
        all[0].arguments = vec!["--bcrypt-cost=4".to_owned()];
        let mut members = etcd::start_all(host, all);
        let runtime = runtime();
        let with_user = |group: &str, user: &str, password: &str| Settings {
            user: user.to_owned(),
            password_file: host
                .file(&format!("{password}-file"), &format!("{password}\n"))
                .to_str()
                .unwrap()
                .to_owned(),
            group: group.to_owned(),
            ..settings([&members[0].settings])
        };
        let nobody = Etcd::new(settings([&members[0].settings])).unwrap();
        let user = Etcd::new(with_user("g", "user", "user")).unwrap();
        let stranger = Etcd::new(with_user("g", "user", "wrong")).unwrap();
        let elsewhere = Etcd::new(with_user("other", "user", "user")).unwrap();
        // Before etcd demands users.
        write(&runtime, &nobody, "{}");
        write(&runtime, &user, "{}");
        members[0].enable_auth("user", "g");
        write(&runtime, &user, "{}");
        read(&runtime, &user);
        eventually("a watch", || report(&runtime, &watch(&runtime, &user, true)));

        for (etcd, expected) in [
            (&nobody, Problem::NoUser),
            (&stranger, Problem::WrongPassword),
            (&elsewhere, Problem::PermissionDenied),
        ] {
            // On a machine under load, attempts time out.
            let is_named = || (etcd.diagnosis()[0].state == State::Fails(expected.clone())).then_some(());
            eventually("a refused write", || {
                assert_eq!(runtime.block_on(etcd.txn(put(&Key::Freeze, "{}"))), Err(NoReply));
                is_named()
            });
            eventually("a refused read", || {
                assert_eq!(runtime.block_on(etcd.read()), Err(NoReply));
                is_named()
            });
            eventually("a refused watch", || {
                let NoReply = runtime.block_on(etcd.watch(true, |watched| panic!("{watched:?}")));
                is_named()
            });
            eventually("a status", || {
                let status = runtime.block_on(etcd.status()).remove(0).1.ok()?;
                (status.problem.as_ref() == Some(&expected)).then_some(())
            });
        }
        // It forgets all tokens.
        members[0].restart();
        members[0].await_ready();
        write(&runtime, &user, "{}");
        members[0].restart();
        members[0].await_ready();
        eventually("a watch", || report(&runtime, &watch(&runtime, &user, true)));

        // The role's rights are reduced.
        let (begin, end) = ("/portreeve/g/", "/portreeve/g0");
        let root = ["--user", "root:root", "role"];
        let role = |words: &[&str]| members[0].etcdctl(&[&root, words].concat());
        role(&["revoke-permission", "coordinator", begin, end]);
        role(&["grant-permission", "coordinator", "read", begin, end]);
        let is_denied = |problem: &Problem| *problem == Problem::PermissionDenied;
        await_problem(&runtime, &user, 0, is_denied);
        read(&runtime, &user);
        assert_eq!(
            user.diagnosis()[0].state,
            State::Fails(Problem::PermissionDenied),
            "although reading works"
        );
    });
}

#[test]
fn a_member_of_another_cluster_is_not_used() {
    isolated(|host| {
        let all = etcd::loopback(2)
            .into_iter()
            .map(|settings| MemberSettings { cluster: etcd::initial_cluster([&settings]), ..settings });
        let mut members = etcd::start_all(host, all.collect());
        let (runtime, etcd) = (runtime(), engine(&members));
        // The first one that answers is of the cluster in use.
        members[1].signal(Signal::STOP);
        write(&runtime, &etcd, "first");
        members[1].signal(Signal::CONT);
        let [first, second] = [0, 1]
            .map(|number| eventually("a status", || runtime.block_on(etcd.status()).remove(number).1.ok()));
        assert_eq!(first.problem, None);
        let expected = Problem::OtherCluster { expected: first.cluster, found: second.cluster };
        assert_eq!(second.problem, Some(expected.clone()));
        members[0].kill();
        await_problem(&runtime, &etcd, 1, |problem| *problem == expected);
        assert_eq!(runtime.block_on(etcd.read()), Err(NoReply));
        assert_eq!(members[1].etcdctl(&["get", "--prefix", "/"]), "");
        // All endpoints are of one other cluster: the engine was restored.
        members[0].wipe();
        members[0].settings.arguments = vec!["--initial-cluster-token=restored".to_owned()];
        members[0].restart();
        members[0].await_ready();
        let one = Etcd::new(settings([&members[0].settings])).unwrap();
        write(&runtime, &one, "1");
        members[0].wipe();
        members[0].settings.arguments = vec!["--initial-cluster-token=again".to_owned()];
        members[0].restart();
        members[0].await_ready();
        let reply = write(&runtime, &one, "2");
        assert_eq!(reply.revision, 2);
    });
}

#[test]
fn a_full_database_is_named() {
    isolated(|host| {
        let mut settings = etcd::loopback(1);
        settings[0].quota = 1 << 20;
        let members = etcd::start_all(host, settings);
        let (runtime, etcd) = (runtime(), engine(&members));
        write(&runtime, &etcd, "{}");
        let text = "x".repeat(100_000);
        eventually("a full database", || {
            // In the end it is refused.
            let _ = runtime.block_on(etcd.txn(put(&Key::Foreign("x".to_owned()), &text)));
            (etcd.diagnosis()[0].state == State::Fails(Problem::SpaceExceeded)).then_some(())
        });
        read(&runtime, &etcd);
        assert_eq!(etcd.diagnosis()[0].state, State::Fails(Problem::SpaceExceeded), "although reading works");
        let status = eventually("a status", || runtime.block_on(etcd.status()).remove(0).1.ok());
        assert!(status.alarms.iter().any(|alarm| alarm.contains("NOSPACE")), "{status:?}");
        assert!(
            status.db_size > 1 << 19 && status.leader == status.member && !status.is_learner,
            "{status:?}"
        );
        assert!(status.version.starts_with("3."), "{status:?}");
        assert_eq!(etcd.diagnosis()[0].version, Some(status.version));
        let revision = read(&runtime, &etcd).revision;
        members[0].etcdctl(&["compaction", &revision.to_string()]);
        members[0].etcdctl(&["defrag"]);
        members[0].etcdctl(&["alarm", "disarm"]);
        write(&runtime, &etcd, "{}");
        assert_eq!(etcd.diagnosis()[0].state, State::Works);
    });
}

#[test]
fn one_node_compacts() {
    isolated(|host| {
        let members = etcd::start_all(host, etcd::loopback(1));
        let (runtime, etcd) = (runtime(), engine(&members));
        write(&runtime, &etcd, "0");
        let mut nodes = ["a", "b"].map(|node| Compaction::new(etcd.clone(), node));
        let mut round = |node: usize| {
            eventually("a reply", || {
                Some(runtime.block_on(nodes[node].round())).filter(|round| *round != Round::NoReply)
            })
        };
        assert_eq!([round(0), round(1)], [Round::Waits, Round::Waits]);
        let mut noted = 0;
        let compacted = eventually("a compaction", || {
            write(&runtime, &etcd, "x");
            let outcome = round(0);
            assert_eq!(round(1), Round::Waits);
            match outcome {
                Round::Noted => noted += 1,
                Round::Compacted(revision) => return Some(revision),
                Round::Waits => {} // its own write, whose reply was lost
                other => panic!("{other:?}"),
            }
            None
        });
        assert!((1..=10).contains(&noted), "{noted}");
        members[0].etcdctl(&["get", "--rev", &compacted.to_string(), "/portreeve/g/freeze"]);
        // The first one is gone.
        write(&runtime, &etcd, "y");
        let next = eventually("a compaction by the other", || match round(1) {
            Round::Compacted(revision) => Some(revision),
            _ => None,
        });
        assert!(next > compacted);
        assert_eq!(round(0), Round::Waits);
        // The key is no node's business.
        assert_eq!(read(&runtime, &etcd).entries.len(), 1);

        // The rights on the group's keys are enough.
        members[0].enable_auth("user", "g");
        let file = host.file("password", "user");
        let user = Etcd::new(Settings {
            user: "user".to_owned(),
            password_file: file.to_str().unwrap().to_owned(),
            ..settings([&members[0].settings])
        });
        let mut node = Compaction::new(user.unwrap(), "c");
        eventually("a compaction", || match runtime.block_on(node.round()) {
            Round::Compacted(_) => Some(()),
            Round::Refused(problem) => panic!("{problem}"),
            Round::Waits | Round::Noted | Round::NoReply => None,
        });
    });
}

#[test]
fn what_is_no_etcd_is_named() {
    isolated(|_| {
        let runtime = runtime();
        let await_failure = |url: &str, is_it: &dyn Fn(&Problem) -> bool| {
            let (endpoints, ca) = (vec![url.to_owned()], "/nonexistent".to_owned());
            await_failure(&runtime, Settings { endpoints, ca, ..Settings::default() }, is_it);
        };
        await_failure("http://127.0.0.1:1", &|problem| *problem == Problem::Refused);
        await_failure("http://[::1]:1", &|problem| *problem == Problem::Refused);
        await_failure("https://127.0.0.1:1", &|problem| problem.to_string().contains("/nonexistent"));
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        await_failure(&url, &|problem| *problem == Problem::TimedOut);
        std::thread::spawn(move || {
            for connection in listener.incoming() {
                let mut connection = connection.unwrap();
                let _ = connection.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n"); // it may be closed
                let _ = connection.read_to_end(&mut Vec::new());
            }
        });
        await_failure(&url, &|problem| matches!(problem, Problem::NotEtcd(_)));

        let refused = |url: &str| {
            let endpoints = vec![url.to_owned()];
            Etcd::new(Settings { endpoints, ..Settings::default() }).err().unwrap().to_string()
        };
        assert!(refused("http://10.0.0.1:2379").contains("write https://"));
        assert!(refused("https://10.0.0.1:2379").contains("needs `ca`"));
    });
}
