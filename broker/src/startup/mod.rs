//! From a root process to one that serves: every step in its order, each fatal when it fails.
//!
//! No thread exists before the runtime is built, which is the last thing here.

mod sockets;
mod stored;
mod worker;

use std::os::fd::AsFd as _;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use tokio::sync::mpsc::Receiver;

use crate::config::{self, Trust};
use crate::confine::verify::ProcStatus;
use crate::confine::worker::Confinement;
use crate::confine::{self, descriptors, keyring, limits};
use crate::events::Events;
use crate::failure::{Exit, Failure};
use crate::inject;
use crate::launcher::{self, Launcher};
use crate::log;
use crate::plan::{self, Findings, Plan, Root};
use crate::reader::{self, Reader};
use crate::server::{
    Ask, Broker, Fixed, Handover, Notifier, Parts, Processes, Reloading, Service, Started, Succession,
    Supervision,
};
use crate::sys::malloc;

/// How much longer than its worker a broker may take that was taken over.
const LEAVING: Duration = Duration::from_secs(3);

/// What `status` says where the kernel gives no way to lock a stopped socket.
const NOT_ENFORCED: &str = "stopping a listener is not enforced against a worker that keeps a copy of its socket and \
    listens again: neither an eBPF program could be loaded at start nor a classic one attached; retain cap_net_admin, \
    or start portreeved with cap_bpf";

/// Whose place a broker takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Start {
    /// Nobody's.
    #[default]
    Afresh,
    /// That of the one which serves at the configuration's control socket.
    Takeover,
}

/// Starts, serves, and ends.
pub fn run(path: &Path, start: Start, format: Option<log::Format>) -> Result<(), Failure> {
    if !nix::unistd::geteuid().is_root() {
        return Err(Failure::new(
            Exit::NoPermission,
            "start",
            format_args!("portreeved runs with user id {} and not as root", nix::unistd::geteuid()),
            "start it as root; it gives up what it does not need",
        ));
    }
    inject::point("descriptors")?;
    let passed = descriptors::settle()?;
    log::begin(format)?;
    inject::point("private")?;
    limits::make_private()?;
    inject::point("keyring")?;
    keyring::leave()?;
    inject::point("notify")?;
    let mut notifier = Notifier::connect()?;
    descriptors::clear_environment();

    inject::point("config")?;
    let (loaded, bundle) = config::record(path, Trust::RootOnly);
    let (config, warnings) = loaded.map_err(|report| Failure::of_configuration(&report))?;
    let mut findings = Findings::of(warnings.into());
    inject::point("plan")?;
    let plan = Plan::new(&config, &mut findings)?;
    inject::point("capabilities")?;
    plan::capabilities::available(&config, &plan.retained)?;
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
    let mut warnings = findings.warnings();

    let unprivileged_port_start = plan::unprivileged_port_start();
    inject::point("limits")?;
    let (descriptor_limit, descriptors_now) = limits::raise_descriptors()?;
    inject::point("sockets")?;
    let mut registry = sockets::empty_registry(&config, descriptors_now)?;
    inject::point("control")?;
    let (control, mut succession) = match start {
        Start::Afresh => (sockets::control(&config, plan.socket_group, &mut registry)?, None),
        Start::Takeover => {
            let (predecessor, offered) = sockets::succeed(&config, &mut registry)?;
            if let Some(manager) = offered.manager {
                let offer = &predecessor.offer;
                notifier.succeed(manager, Duration::from_micros(offer.watchdog), offer.store);
            }
            let succession = Succession { predecessor, awaited: Vec::new() };
            (Some(offered.control.into()), Some(succession))
        }
    };
    inject::point("listen")?;
    let notifier = Rc::new(notifier);
    let store = sockets::store(&notifier, &mut registry);
    let stale = stored::take(passed, &config, &plan.policy, &mut registry);
    let awaited = succession.as_mut().map(|succession| &mut succession.awaited);
    sockets::bind_static(&config, &mut registry, awaited)?;
    inject::point("addresses")?;
    let events = Rc::new(Events::default());
    let addresses = sockets::addresses(&config, &plan, &events)?;
    inject::point("status")?;
    let status = ProcStatus::open("self")?;
    let seccomp = status.read()?.seccomp;
    let worker = match worker {
        Some((scope, command)) => {
            let limits = scope.limits.iter().map(|limit| limit.value).collect();
            let confinement = Confinement {
                identity: plan.identity,
                root: root.into_chroot(),
                limits,
                descriptors: descriptor_limit,
                seccomp,
            };
            let supervision = worker::supervision(scope, command.name.clone());
            Some((launcher::start(confinement, command)?, supervision))
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
        seccomp,
    };
    let broker = confinement.apply(registry.directories_mut(), &status)?;
    warnings.extend(broker.lacking.iter().cloned());

    inject::point("filter")?;
    if !registry.confirm_filter().map_err(|error| Failure::os("listener", "socket", error))? {
        warnings.push(NOT_ENFORCED.to_owned());
    }
    inject::point("clean_slate")?;
    if let Some(addresses) = &addresses {
        let before = succession.as_ref().map(|succession| &succession.predecessor.offer);
        warnings.extend(match before.filter(|offer| offer.addresses) {
            Some(offer) => addresses.start_as_successor(offer.fenced)?,
            None => addresses.clean_slate(&plan::floating(&config))?,
        });
    }
    for warning in &warnings {
        tracing::warn!(warning);
    }
    inject::confined();
    let chroot = config
        .security
        .chroot
        .as_ref()
        .map_or("/".into(), |chroot| chroot.value.to_string_lossy().into_owned());
    let processes = Processes {
        broker,
        launcher: worker.as_ref().map(|(launcher, _)| {
            (launcher.pid.as_raw().unsigned_abs(), chroot, launcher.credentials.clone())
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
        limits: plan.policy.has_limits(),
    };
    let (reloading, asked) = Reloading::new(Fixed::new(started, &config));
    let parts = Parts {
        policy: plan.policy,
        registry,
        addresses: addresses.map(Rc::new),
        events,
        processes,
        retain: config.broker.retain,
        quotas: config.broker.quotas,
        warnings,
        handover: handover(control.as_ref(), &notifier, worker.as_ref().map(|(_, supervision)| supervision))?,
        store,
        reloading,
    };
    // Of ten megabytes the policy keeps a part.
    drop(config);
    malloc::give_back();
    serve(parts, worker, Rest { control, reader, asked, notifier, succession, stale })
}

/// What another broker needs to take over from this one.
fn handover(
    control: Option<&UnixListener>,
    notifier: &Rc<Notifier>,
    worker: Option<&Supervision>,
) -> Result<Handover, Failure> {
    let copy = control.map(|control| control.as_fd().try_clone_to_owned()).transpose();
    let copy = copy.map_err(|error| Failure::os("control socket", "dup", error))?;
    let leaving = worker.map_or(Duration::ZERO, |supervision| supervision.stop_timeout) + LEAVING;
    Ok(Handover::new(copy, notifier.clone(), leaving))
}

/// What serving needs beside the state and the worker.
struct Rest {
    control: Option<UnixListener>,
    reader: Option<Reader>,
    asked: Receiver<Ask>,
    notifier: Rc<Notifier>,
    succession: Option<Succession>,
    stale: Vec<String>,
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
        let handle = launcher.into_handle().map_err(|error| Failure::os("launcher", "epoll_ctl", error))?;
        Ok::<_, Failure>((handle, supervision))
    };
    let worker = worker.map(handle).transpose()?;
    let Rest { control, reader, asked, notifier, succession, stale } = rest;
    let service =
        Service { broker: Broker::new(parts), control, worker, reader, asked, notifier, succession, stale };
    local.block_on(&runtime, service.run())
}
