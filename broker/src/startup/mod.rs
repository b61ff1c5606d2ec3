//! From a root process to a confined broker that serves: the steps of the start in their order, each fatal when it fails.
//!
//! Promises: the process has one thread until the runtime is built, which is the last step.

#![deny(unsafe_code)]

mod socket_activation;
mod sockets;
mod tentative;
mod worker;

use std::os::fd::{AsFd as _, RawFd};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use tokio::sync::mpsc::Receiver;

use self::sockets::OpenFiles;
use crate::address::Reservation;
use crate::capability::CapabilitySet;
use crate::config::{self, Trust};
use crate::confine::landlock::Listed;
use crate::confine::verify::{ProcStatus, require_proc};
use crate::confine::worker::Confinement;
use crate::confine::{self, descriptors, keyring, limits};
use crate::events::Events;
use crate::failure::{Exit, Failure};
use crate::in_flight_limit::InFlightLimit;
use crate::inject;
use crate::launcher::{self, FormerLaunchers, Launcher};
use crate::listener::{BindPrivileges, Enforcement};
use crate::log;
use crate::plan::{self, Findings, Plan, Root};
use crate::reader::{self, Reader};
use crate::sd_notify::Notifier;
use crate::server::{
    Broker, LauncherProcess, Parts, Processes, ReloadRequest, Reloading, RestartOnly, Service, Started,
    Supervision,
};
use crate::sys::children::Children;
use crate::sys::rtnl_monitor::RtnlMonitor;
use crate::sys::{malloc, process, signals};
use crate::takeover::{Export, Import, NamesAtStart, import_from_fdstore, is_fdstore_name};

/// How much longer than its worker a broker may take to exit after a takeover.
const EXIT_MARGIN: Duration = Duration::from_secs(3);

/// The warning in `status` if the kernel does not let the broker list its listeners in an allowlist.
const UNLESS_LOCKED: &str = "a peer can prevent that its listener is revoked by locking a filter into the socket: the kernel \
    refused the allowlist of listeners; start portreeved with cap_bpf on Linux 5.5 or later";
/// The warning if it does not let the broker lock a filter into a stopped socket either.
const TCP_ONLY: &str = "stopping a UDP socket is not enforced, nor a TCP listener that its holder has bound to an interface: the \
    kernel refused both an eBPF and a classic BPF filter; start portreeved with cap_bpf, or retain cap_net_admin";

/// How much longer than its configured times the worker of a broker that was killed may take to end.
const FORMER_WORKER_MARGIN: Duration = Duration::from_secs(5);

/// How a broker starts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Start {
    /// No other broker runs.
    #[default]
    Fresh,
    /// It replaces the broker that serves at the configured control socket.
    Takeover {
        /// Even if another program supervises that broker.
        force: bool,
    },
}

/// Starts, serves until the end, and stops. A newline is written to `ready_descriptor` when the broker serves.
///
/// # Errors
/// The step that failed.
pub fn run(
    path: &Path,
    start: Start,
    format: Option<log::Format>,
    ready_descriptor: Option<RawFd>,
) -> Result<(), Failure> {
    let uid = process::effective_uid();
    if uid != 0 {
        let what = format_args!("portreeved runs with user id {uid} and not as root");
        let remedy = "start it as root; it gives up the privileges that it does not need";
        return Err(Failure::new(Exit::NoPermission, "start", what, remedy));
    }
    signals::reset().map_err(|errno| Failure::os("signals", "sigprocmask", errno))?;
    require_proc()?;
    inject::point("descriptors")?;
    let (passed, ready_descriptor) = descriptors::close_unneeded(ready_descriptor)?;
    log::begin(format)?;
    inject::point("private")?;
    limits::make_private_before_the_worker()?;
    inject::point("keyring")?;
    keyring::replace_session_keyring()?;
    inject::point("notify")?;
    let mut notifier = Notifier::connect(ready_descriptor)?;
    descriptors::clear_environment();

    // A reload opens it again, from the working directory of another process.
    let path = &std::path::absolute(path).map_err(|error| Failure::os("config", "getcwd", error))?;
    inject::point("config")?;
    let (loaded, bundle) = config::record(path, Trust::RootOnly);
    let (config, warnings) = loaded.map_err(|report| Failure::of_configuration(&report))?;
    let mut findings = Findings::of(warnings.into());
    inject::point("plan")?;
    let plan = Plan::new(&config, &mut findings)?;
    inject::point("capabilities")?;
    plan::capabilities::check_available(&config, &plan.retained)?;
    inject::point("chroot")?;
    let root = Root::open(&config, Some(&plan.identity), &mut findings);
    inject::point("worker.program")?;
    let mut command = |scope| plan::command(&config, scope, &root, Some(&plan.identity), &mut findings);
    let worker = config.worker.as_ref().map(|scope| (scope, command(scope)));
    let worker = match (worker, findings.first_failure()) {
        (None, None) => None,
        (Some((scope, Some(command))), None) => Some((scope, command)),
        _ => return Err(findings.failure()),
    };
    log::set_level(config.broker.log_level);
    log::set_user_names(plan.policy.user_names().clone());
    let mut warnings = findings.warnings();

    let unprivileged_port_start = plan::unprivileged_port_start();
    inject::point("limits")?;
    let (descriptor_limit, max_descriptors) = limits::raise_descriptors()?;
    let open_files = OpenFiles::divide(max_descriptors);
    warnings.extend(open_files.warning(max_descriptors));
    inject::point("sockets")?;
    let privileges = BindPrivileges {
        capabilities: effective_capabilities(),
        unprivileged_port_start,
        ipv6_disabled: plan::ipv6_disabled(),
        confined: false,
    };
    let mut registry = sockets::empty_registry(&config, open_files.listeners, privileges)?;
    inject::point("control")?;
    let mut reservation = None;
    let (control, mut import) = match start {
        Start::Fresh => (sockets::control_socket(&config, plan.socket_group, &mut registry)?, None),
        Start::Takeover { force } => {
            let (predecessor, sockets) = sockets::begin_takeover(&config, &mut registry, force)?;
            if let Some(map) = sockets.allowlist {
                let adopted = registry.adopt_allowlist(map);
                adopted.map_err(|errno| Failure::os("takeover", "bpf", errno))?;
            }
            reservation = sockets.reservation.map(Reservation::continue_of);
            if let Some(manager) = sockets.manager {
                let offer = &predecessor.offer;
                notifier.adopt(manager, Duration::from_micros(offer.watchdog_us), offer.fdstore_max);
            }
            (Some(sockets.control.into()), Some(Import { predecessor, awaited: Vec::new() }))
        }
    };
    inject::point("listen")?;
    let notifier = Rc::new(notifier);
    let in_flight_limit = Rc::new(InFlightLimit::default());
    let fdstore = sockets::fdstore(&notifier, &mut registry, &in_flight_limit);
    let (stored, activated): (Vec<_>, Vec<_>) =
        passed.into_iter().partition(|passed| is_fdstore_name(&passed.name));
    let stored = stored.into_iter().map(|passed| (passed.name, passed.descriptor));
    let mut fdstore_names = import_from_fdstore(stored, &config, &plan.policy, &mut registry);
    if start == Start::Fresh {
        // A successor owns no file before its commit: if it failed, it would remove the files of its predecessor.
        registry.own_files();
    }
    fdstore_names.stale.extend(socket_activation::adopt(activated, &config, &mut registry)?);
    let awaited = import.as_mut().map(|import| &mut import.awaited);
    let mut former_launchers = match (&worker, start) {
        (Some((scope, _)), Start::Fresh) => {
            let timeout = scope.orphan_timeout + scope.stop_timeout + FORMER_WORKER_MARGIN;
            FormerLaunchers::find(plan.identity.user, timeout)
        }
        _ => FormerLaunchers::default(),
    };
    let replaced = sockets::bind_static(&config, &mut registry, awaited, &mut former_launchers)?;
    fdstore_names.stale.extend(replaced);
    inject::point("addresses")?;
    let events = Rc::new(Events::default());
    let addresses = sockets::addresses(&config, &plan, &events, reservation)?;
    inject::point("status")?;
    let status = ProcStatus::open("self")?;
    let seccomp = status.read()?.seccomp;
    let children = Children::open();
    let interfaces =
        RtnlMonitor::open_links().map_err(|errno| Failure::os("interfaces", "netlink socket", errno))?;
    let worker = match worker {
        Some((scope, command)) => {
            // Processes of a worker whose launcher was killed become children of the broker, which names them.
            process::adopt_orphans()
                .map_err(|error| Failure::os("launcher", "prctl PR_SET_CHILD_SUBREAPER", error))?;
            let limits = scope.limits.iter().map(|limit| limit.value).collect();
            let confinement = Confinement {
                identity: plan.identity,
                root: root.into_chroot(),
                limits,
                descriptors: descriptor_limit,
                seccomp,
            };
            let supervision = worker::supervision(scope, command.name.clone());
            let launcher = launcher::start(confinement, command, worker::orphans(scope))?;
            Some((launcher, supervision))
        }
        None => None,
    };
    let reader = match config.broker.reload {
        true => {
            let confinement =
                confine::reader::Confinement { directories: reader::directories(&bundle), seccomp };
            Some(reader::start(path, &config, confinement)?)
        }
        false => None,
    };
    drop(bundle);
    let confinement = confine::broker::Confinement {
        retained: plan.retained,
        policy: &plan.policy,
        require_landlock: config.broker.require_landlock,
        require_seccomp: config.broker.require_seccomp,
        landlock_listed: Listed::read(),
        seccomp,
    };
    let broker = confinement.apply(registry.directories_mut(), &status)?;
    warnings.extend(broker.lacking.iter().cloned());

    inject::point("filter")?;
    let enforcement = registry.set_confined(plan.retained.effective);
    match enforcement.map_err(|error| Failure::os("listener", "verify the filter of listeners", error))? {
        Enforcement::Always => {}
        Enforcement::UnlessLocked => warnings.push(UNLESS_LOCKED.to_owned()),
        Enforcement::TcpOnly => warnings.push(TCP_ONLY.to_owned()),
    }
    inject::point("clean_slate")?;
    if let Some(addresses) = &addresses {
        warnings.extend(addresses.no_reservation());
        let offer = import.as_ref().map(|import| &import.predecessor.offer);
        warnings.extend(match offer.filter(|offer| offer.addresses) {
            Some(offer) => addresses.start_as_successor(offer.fenced)?,
            None => addresses.clean_slate(&plan::floating(&config))?,
        });
    }
    for warning in &warnings {
        tracing::warn!("{warning}");
    }
    inject::confined();
    let chroot = config
        .security
        .chroot
        .as_ref()
        .map_or("/".into(), |chroot| chroot.value.to_string_lossy().into_owned());
    let processes = Processes {
        broker,
        launcher: worker.as_ref().map(|(launcher, supervision)| LauncherProcess {
            pid: launcher.pid.as_raw().unsigned_abs(),
            root: chroot,
            restrictions: (launcher.credentials.clone(), launcher.locks.clone()),
            bind: supervision.bind,
        }),
        reader: reader.as_ref().map(|reader| {
            (reader.pid.as_raw().unsigned_abs(), reader.credentials.clone(), reader.locks.clone())
        }),
    };
    let started = Started {
        path: path.to_owned(),
        retained: plan.retained,
        unprivileged_port_start,
        tcp_ports: processes.broker.limits_tcp.then(|| plan.policy.tcp_ports().to_vec()),
        addresses: addresses.is_some(),
        limits: plan.policy.limited_resources(),
    };
    let (reloading, reload_requests) = Reloading::new(RestartOnly::new(started, &config));
    let parts = Parts {
        policy: plan.policy,
        registry,
        addresses: addresses.map(Rc::new),
        events,
        processes,
        retain: config.broker.retain,
        quotas: config.broker.quotas,
        max_descriptors,
        max_sessions: open_files.sessions,
        in_flight_limit: in_flight_limit.clone(),
        warnings,
        export: export(control.as_ref(), &notifier, worker.as_ref().map(|(_, supervision)| supervision))?,
        fdstore,
        reloading,
    };
    // A large configuration takes more memory than the policy built from it.
    drop(config);
    malloc::trim();
    let rest = Rest {
        control,
        reader,
        reload_requests,
        notifier,
        import,
        fdstore_names,
        in_flight_limit,
        children,
        interfaces,
        former_launchers,
    };
    serve(parts, worker, rest)
}

/// The capabilities with which the static listeners are bound; all of them if they cannot be read, so that no error is
/// attributed to a missing one.
fn effective_capabilities() -> CapabilitySet {
    let status = ProcStatus::open("self").and_then(|status| status.read());
    CapabilitySet::from_bits(status.map_or(u64::MAX, |credentials| credentials.effective))
}

/// The state that a successor needs to take over from this broker.
fn export(
    control: Option<&UnixListener>,
    notifier: &Rc<Notifier>,
    worker: Option<&Supervision>,
) -> Result<Export, Failure> {
    let copy = control.map(|control| control.as_fd().try_clone_to_owned()).transpose();
    let copy = copy.map_err(|error| Failure::os("control socket", "dup", error))?;
    let exit_time = worker.map_or(Duration::ZERO, |supervision| supervision.stop_timeout) + EXIT_MARGIN;
    Ok(Export::new(copy, notifier.clone(), exit_time))
}

/// The parts that serving needs besides the broker's state and the worker.
struct Rest {
    control: Option<UnixListener>,
    reader: Option<Reader>,
    reload_requests: Receiver<ReloadRequest>,
    notifier: Rc<Notifier>,
    import: Option<Import>,
    fdstore_names: NamesAtStart,
    in_flight_limit: Rc<InFlightLimit>,
    children: Children,
    interfaces: RtnlMonitor,
    former_launchers: FormerLaunchers,
}

fn serve(parts: Parts, worker: Option<(Launcher, Supervision)>, rest: Rest) -> Result<(), Failure> {
    inject::point("runtime")?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .enable_time()
        .on_thread_park(log::flush)
        .build();
    let runtime = runtime.map_err(|error| Failure::os("runtime", "epoll_create", error))?;
    let local = Rc::new(tokio::task::LocalSet::new());
    let _entered = runtime.enter();
    let handle = |(launcher, supervision): (Launcher, Supervision)| {
        let handle = launcher.into_handle(rest.in_flight_limit.clone());
        let handle = handle.map_err(|error| Failure::os("launcher", "epoll_ctl", error))?;
        Ok::<_, Failure>((handle, supervision))
    };
    let worker = worker.map(handle).transpose()?;
    let service = Service {
        broker: Broker::new(parts),
        control: rest.control,
        worker,
        children: rest.children,
        interfaces: rest.interfaces,
        former_launchers: rest.former_launchers,
        reader: rest.reader,
        reload_requests: rest.reload_requests,
        notifier: rest.notifier,
        import: rest.import,
        fdstore_names: rest.fdstore_names,
    };
    // As a task of its own it is polled only when it is woken, not whenever a session is.
    match local.block_on(&runtime, async { tokio::task::spawn_local(service.run()).await }) {
        Ok(result) => result,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}
