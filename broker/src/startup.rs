//! From a root process to one that serves: every step in its order, each fatal when it fails.
//!
//! No thread exists before the runtime is built, which is the last thing here.

use std::ffi::CString;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::rc::Rc;

use nix::sys::resource::rlim_t;

use crate::config::{self, Config, Trust, Worker};
use crate::confine::verify::ProcStatus;
use crate::confine::worker::Confinement;
use crate::confine::{self, descriptors, identity, limits};
use crate::failure::{Exit, Failure};
use crate::launcher::{self, Command, Launcher, program};
use crate::listener::{Directories, Filter, Registry};
use crate::log;
use crate::plan::{self, Plan};
use crate::service::{Broker, ControlSocket, Notifier, Parts, Processes, Service, Supervision};

/// Descriptors that are no listeners: sessions, the runtime's own, copies on their way.
const RESERVED: usize = 1024;

/// What `status` says where the kernel gives no way to lock a stopped socket.
const NOT_ENFORCED: &str = "stopping a listener is not enforced against a worker that keeps a copy of its socket and \
    listens again: neither an eBPF program could be loaded at start nor a classic one attached; retain cap_net_admin, \
    or start portreeved with cap_bpf";

/// Starts, serves, and ends.
pub fn run(path: &Path) -> Result<(), Failure> {
    if !nix::unistd::geteuid().is_root() {
        return Err(Failure::new(
            Exit::NoPermission,
            "start",
            format_args!(
                "portreeved runs with user id {} and not as root",
                nix::unistd::geteuid()
            ),
            "start it as root; it gives up what it does not need",
        ));
    }
    descriptors::settle()?;
    limits::make_private()?;
    let notifier = Notifier::connect()?;
    descriptors::clear_environment();

    let (config, warnings) = config::load(path, Trust::RootOnly).map_err(|report| {
        Failure::new(
            Exit::Config,
            "config",
            report.one_lines().collect::<Vec<_>>().join("\n"),
            "nothing was started",
        )
    })?;
    let mut plan = Plan::new(&config, &warnings)?;
    plan::available(&config, &plan.retained)?;
    let root = plan::open_chroot(&config, &plan.identity)?;
    let command = config
        .worker
        .as_ref()
        .map(|worker| command(&config, worker, root.as_ref()))
        .transpose()?;

    let (descriptor_limit, descriptors_now) = limits::raise_descriptors()?;
    let mut registry = empty_registry(&config, descriptors_now)?;
    let control = control_socket(&config, registry.directories())?;
    bind_static(&config, &mut registry)?;
    let status = ProcStatus::open("self")?;
    let launcher = match (&config.worker, command) {
        (Some(worker), Some(command)) => {
            let limits = worker.limits.iter().map(|limit| limit.value).collect();
            let confinement = Confinement {
                identity: plan.identity,
                root,
                limits,
                descriptors: descriptor_limit,
            };
            Some(launcher::start(confinement, command)?)
        }
        _ => None,
    };
    let confinement = confine::broker::Confinement {
        retained: plan.retained,
        policy: &plan.policy,
        require_landlock: config.broker.require_landlock,
    };
    let broker = confinement.apply(registry.directories_mut(), &status)?;
    plan.warnings.extend(broker.lacking.iter().cloned());

    if !registry
        .confirm_filter()
        .map_err(|error| Failure::os("listener", "socket", error))?
    {
        plan.warnings.push(NOT_ENFORCED.to_owned());
    }
    for warning in &plan.warnings {
        tracing::warn!(?warning);
    }
    let chroot = config
        .security
        .chroot
        .as_ref()
        .map_or("/".into(), |chroot| chroot.value.to_string_lossy().into_owned());
    let processes = Processes {
        broker,
        launcher: launcher
            .as_ref()
            .map(|l| (l.pid.as_raw().unsigned_abs(), chroot, l.credentials.clone())),
    };
    let parts = Parts {
        policy: plan.policy,
        registry,
        processes,
        retain: config.broker.retain,
        warnings: plan.warnings,
    };
    serve(parts, control, launcher, config.worker.as_ref(), notifier)
}

fn command(config: &Config, worker: &Worker, root: Option<&OwnedFd>) -> Result<Command, Failure> {
    let Some(program) = worker.command.first() else {
        return Err(Failure::new(
            Exit::Config,
            "worker.command",
            "it is empty",
            "name a program",
        ));
    };
    let c_string = |text: String, span| {
        CString::new(text).map_err(|_| {
            let what = format!("{}: there is a zero byte in it", config.place(span));
            Failure::new(Exit::Config, "worker", what, "remove it")
        })
    };
    let environment = worker.environment.iter();
    Ok(Command {
        program: program::open(&program.value, &config.place(program.span), root)?,
        arguments: worker
            .command
            .iter()
            .map(|word| c_string(word.value.clone(), word.span))
            .collect::<Result<_, _>>()?,
        environment: environment
            .map(|(name, value)| c_string(format!("{}={}", name.value, value.value), value.span))
            .collect::<Result<_, _>>()?,
    })
}

fn control_socket(config: &Config, directories: &Directories) -> Result<Option<ControlSocket>, Failure> {
    let Some(path) = &config.broker.socket else {
        return Ok(None);
    };
    let group = match &config.broker.socket_group {
        Some(group) => identity::group(&group.value, config.place(group.span))?,
        None => nix::unistd::Gid::from_raw(0),
    };
    let text = path.value.to_string_lossy();
    ControlSocket::bind(
        directories,
        &text,
        config.broker.socket_mode,
        group,
        &config.place(path.span),
    )
    .map(Some)
}

/// A registry that can hold as many listeners as there are descriptors, and reach the directories that the
/// configuration's Unix sockets are in.
fn empty_registry(config: &Config, descriptors: rlim_t) -> Result<Registry, Failure> {
    let capacity = usize::try_from(descriptors)
        .unwrap_or(usize::MAX)
        .saturating_sub(RESERVED);
    let directories = Directories::open(&plan::socket_directories(config)).map_err(|(path, errno)| {
        Failure::new(
            Exit::CannotCreate,
            "sockets",
            format_args!(
                "the directory {path:?} of a Unix socket cannot be opened: {}",
                errno.desc()
            ),
            "create it, owned by root; no part of its path may be a symbolic link",
        )
    })?;
    Ok(Registry::new(capacity, Filter::load(), directories))
}

fn bind_static(config: &Config, registry: &mut Registry) -> Result<(), Failure> {
    for listener in config
        .listeners
        .iter()
        .filter(|listener| listener.socket.enable && !listener.duravip.moves())
    {
        let endpoint = listener.endpoint.value.clone();
        let name = listener.scope.replace([':', ' '], "_");
        registry
            .bind_static(endpoint, &listener.socket, &name)
            .map_err(|error| {
                let fault = error.fault(&listener.endpoint.value);
                let what = format!("{}: {}", config.place(listener.endpoint.span), &*fault.message);
                Failure::new(Exit::Unavailable, "listen", what, &*fault.remedy)
            })?;
    }
    Ok(())
}

fn serve(
    parts: Parts,
    control: Option<ControlSocket>,
    launcher: Option<Launcher>,
    worker: Option<&Worker>,
    notifier: Notifier,
) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .enable_time()
        .on_thread_park(log::flush)
        .build();
    let runtime = runtime.map_err(|error| Failure::os("runtime", "epoll_create", error))?;
    let local = Rc::new(tokio::task::LocalSet::new());
    let _entered = runtime.enter();
    let worker = match (launcher, worker) {
        (Some(launcher), Some(worker)) => {
            let handle = launcher
                .into_handle()
                .map_err(|error| Failure::os("launcher", "epoll_ctl", error))?;
            let supervision = Supervision {
                program: worker
                    .command
                    .first()
                    .map(|program| program.value.clone())
                    .unwrap_or_default(),
                restart: worker.restart,
                stop_timeout: worker.stop_timeout,
            };
            Some((handle, supervision))
        }
        _ => None,
    };
    let service = Service {
        broker: Broker::new(parts),
        control,
        worker,
        notifier,
    };
    local.block_on(&runtime, service.run())
}
