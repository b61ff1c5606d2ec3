//! The values of the golden frames of policy, worker, cluster, events, metrics, reload and takeover.

use portreeve_protocol::cluster::*;
use portreeve_protocol::event::*;
use portreeve_protocol::limit::*;
use portreeve_protocol::message::*;
use portreeve_protocol::metrics::*;
use portreeve_protocol::policy::*;
use portreeve_protocol::reload::*;
use portreeve_protocol::status::Quota;
use portreeve_protocol::takeover::*;
use portreeve_protocol::worker::*;
use portreeve_protocol::*;

use super::{Golden, every_option, list, text};

pub fn policy(golden: &Golden) {
    let limit = SetLimit { resource: text("nofile"), soft: Some(4096), hard: None };
    golden.request("set-limit", 14, &limit);
    let limit = CurrentLimit { resource: text("nofile"), soft: 4096, hard: UNLIMITED };
    golden.reply::<SetLimit>("set-limit-reply", 14, 0, &limit);

    golden.request("policy", 15, &PolicyRequest { after: 64 });
    let page = PolicyPage {
        nodename: text("mx1"),
        lease: 10,
        rules: list([PolicyRule { place: text("mail.conf:7"), text: text("permit \"mail\": listen *:25") }]),
        topology: list([TopologyBlock {
            block: "192.0.2.0".parse().unwrap(),
            prefix: 24,
            interface: text("eth1"),
            mask: 32,
        }]),
        floating: list([FloatingAddress {
            address: "2001:db8::1".parse().unwrap(),
            name: text("out"),
            preference: text("mx2"),
            follows: Some("192.0.2.1".parse().unwrap()),
            interface: text("eth1"),
            prefix: 128,
        }]),
        next: 128,
    };
    golden.reply::<PolicyRequest>("policy-reply", 15, 0, &page);
}

pub fn worker(golden: &Golden) {
    golden.request("worker", 22, &WorkerRequest {});
    let status = WorkerStatus {
        state: text("waiting"),
        state_ms: 1500,
        pid: 0,
        restarts: 3,
        next_start_ms: 400,
        last_ending: text("exited with code 1"),
        left: 2,
    };
    golden.reply::<WorkerRequest>("worker-reply", 22, 0, &status);
    golden.request("restart-worker", 23, &RestartWorker {});
    let status = WorkerStatus { state: text("running"), pid: 4711, next_start_ms: 0, ..status };
    golden.reply::<RestartWorker>("restart-worker-reply", 23, 0, &status);
    golden.request("signal-worker", 24, &SignalWorker { signal: 10 });
    golden.reply::<SignalWorker>("signal-worker-reply", 24, 0, &WorkerSignaled { pid: 4711 });
}

pub fn cluster(golden: &Golden) {
    golden.request("cluster", 21, &ClusterRequest {});
    let settings = ClusterSettings {
        group: text("mail"),
        nodename: text("mx1"),
        lease_ms: 6_000,
        heartbeat_ms: 1_000,
        view_mature_ms: 5_000,
        view_balance_ms: 10_000,
        balance_set_size: 10,
        failback: Failback::Manual,
        on_engine_loss: OnEngineLoss::Hold,
        engine: Some(Engine {
            endpoints: list([text("https://etcd1:2379")]),
            ca: text("/ca.pem"),
            certificate: text("/mx1.pem"),
            key: text("/mx1.key"),
            user: text("portreeve"),
            password_file: text("/password"),
            compaction: true,
        }),
        checks: list([HealthCheck {
            name: text("smtp"),
            command: list([text("/usr/bin/check-smtp"), text("-q")]),
            interval_ms: 5_000,
            fall: 3,
            rise: 2,
        }]),
        peer_listen: text("192.0.2.1:7400"),
    };
    golden.reply::<ClusterRequest>("cluster-reply", 21, 0, &settings);
    let without_engine = ClusterSettings { lease_ms: 3_000, ..ClusterSettings::default() };
    golden.reply::<ClusterRequest>("cluster-reply-without-engine", 21, 0, &without_engine);
}

pub fn events(golden: &Golden) {
    let event = Event {
        number: 300,
        time_ms: 1_700_000_000_000,
        code: EventCode::AddressConflict,
        address: Some("192.0.2.1".parse().unwrap()),
        interface: text("eth1"),
        index: 2,
        pid: 0,
        epoch: 42,
        count: 0,
        detail: text("02:00:00:00:00:09"),
    };
    golden.pin("event", Kind::EVENT, 0, 0, &event);
    golden.pin("event-gap", Kind::EVENT, 0, 0, &Event::gap(7));
    let worker =
        Event { number: 301, code: EventCode::WorkerStarted, pid: 4711, count: 2, ..Event::default() };
    golden.request("subscribe", 12, &Subscribe { follow: true, all: false });
    golden.reply::<Subscribe>(
        "subscribe-reply",
        12,
        0,
        &Subscribed { all: true, recent: list([event, worker]) },
    );
}

pub fn metrics(golden: &Golden) {
    golden.request("metrics", 12, &MetricsRequest {});
    let metrics = Metrics {
        release: text("0.1.0"),
        uptime_ms: 61_000,
        bounds_us: list([10, 1_000]),
        operations: list([OperationCounts {
            name: text("listen"),
            granted: 5,
            denied: 2,
            quota: 1,
            failed: 3,
            latencies: list([4, 6, 1]),
            sum_us: 2_345,
        }]),
        quotas: list([Quota { name: text("max_sessions"), limit: 64 }]),
        peers: list([PeerCounts { peer: text("user 8"), sessions: 2, listeners: 4, refused: 3 }]),
        sessions: SessionCounts { open: 2, opened: 9, rejected: 1, malformed: 3, delayed: 4 },
        listeners: ListenerCounts { held: 6, retained: 1, limit: 1_000, missing: 2 },
        addresses: Some(AddressCounts {
            held: 7,
            adding: 1,
            missing: 2,
            next_expiry_ms: Some(2_500),
            renewals: 70,
            expired: 3,
            conflicts: 4,
            restored: 5,
            fence_repairs: 6,
        }),
        worker: Some(WorkerCounts { running: true, restarts: 2 }),
        log: LogCounts { suppressed: 8, lost: 9 },
        events: EventCounts { subscribers: 1, lost: 7 },
    };
    golden.reply::<MetricsRequest>("metrics-reply", 12, 0, &metrics);
}

pub fn takeover(golden: &Golden) {
    golden.request("takeover", 12, &Takeover::Begin(Begin { oldest: 3, newest: 4 }));
    let control = SocketFile { device: 27, inode: 1234 };
    let offer = Accepted {
        version: 3,
        release: text("0.1.0"),
        boottime_ns: 86_400_000_000_000,
        control,
        manager: true,
        allowlist: true,
        watchdog_us: 30_000_000,
        fdstore_max: 512,
        addresses: true,
        fenced: false,
        reservation: true,
    };
    golden.reply::<Takeover>("takeover-reply", 12, 4, &TakeoverReply::Accepted(offer));

    golden.request("takeover-more", 13, &Takeover::NextBatch(NextBatch {}));
    let listener = |id, endpoint: &str, options, user, file| {
        let endpoint = endpoint.parse().unwrap();
        ExportedListener { id: ListenerId(id), endpoint, options, user, file }
    };
    let listeners = list([
        listener(7, "*:25", ListenOptions::default(), None, None),
        listener(8, "/run/mail.sock", every_option(), Some(8), Some(control)),
    ]);
    let page = TakeoverReply::Listeners(ListenerBatch { listeners });
    golden.reply::<Takeover>("takeover-listeners", 13, 2, &page);
    let lease = ExportedLease {
        address: "192.0.2.1".parse().unwrap(),
        index: 2,
        interface: text("eth1"),
        prefix: 32,
        user: Some(8),
        lease_seconds: Some(10),
        deadline_ns: Some(86_409_000_000_000),
        epoch: 42,
        follows: None,
        present: true,
        announced: false,
        renewed_with_all: true,
    };
    let leases = list([lease]);
    golden.reply::<Takeover>("takeover-leases", 13, 0, &TakeoverReply::Leases(LeaseBatch { leases }));
    let past =
        ExportedEpoch { address: "2001:db8::1".parse().unwrap(), user: Some(8), epoch: 41, expired: true };
    let epochs = list([past]);
    golden.reply::<Takeover>("takeover-epochs", 13, 0, &TakeoverReply::Epochs(EpochBatch { epochs }));
    golden.reply::<Takeover>("takeover-complete", 13, 0, &TakeoverReply::ExportComplete(ExportComplete {}));

    golden.request("takeover-confirm", 14, &Takeover::Commit(Commit {}));
    let confirmed = TakeoverReply::Committed(Committed { exit_ms: 12_000 });
    golden.reply::<Takeover>("takeover-confirmed", 14, 0, &confirmed);
}

pub fn reload(golden: &Golden) {
    golden.request("reload", 18, &Reload { last: true, ..Reload::default() });
    golden.request("reload-force", 18, &Reload { last: false, force: Trailing(Some(true)) });
    let change = Change { outcome: text("applied"), what: text("broker retain"), detail: text("30 -> 5") };
    let finding = Finding {
        severity: text("warning"),
        file: text("a.conf"),
        line: 1,
        column: 2,
        end_line: 3,
        end_column: 4,
        message: text("m"),
        help: text("h"),
        rendered: text("s"),
    };
    let reloaded = Reloaded {
        number: 2,
        age_ms: 1_000,
        requester: text("SIGHUP"),
        accepted: true,
        files: 3,
        changes: list([change]),
        changes_omitted: 4,
        findings: list([finding]),
        findings_omitted: 5,
    };
    golden.reply::<Reload>("reload-reply", 18, 0, &reloaded);
}
