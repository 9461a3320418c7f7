//! From a launch frame, or from a fork, to a machine in its event loop. The order in which things are opened, confined
//! and started is here and nowhere else.

mod error;
mod reporter;

pub use error::BringUpError;

use crate::{
    arch::x86_64::{host_mode, saved_cpu},
    channel::{
        control::ControlConnection,
        descriptors::ReceivedFds,
        launch::{self, Launch, LaunchError},
    },
    confine,
    devices::set::{self, UnbuiltDevices},
    event_loop::{EventLoop, MachineSetup, Outcome},
    fork::{ChildFiles, ForkedChild, Inheritance},
    machine::{self, BootSource, Machine, MachineError, MachineParts, context::MachineContext},
    memory::{self, pages::page_count, released::ReleasedPages},
    snapshot::{MachineState, format, writer::Baseline},
    status::StatusFile,
    timeline::{self, StartTimes},
};
use kvm_ioctls::{Kvm, VmFd};
use reporter::EarlyReporter;
use rustix::stdio::stdin;
use sandboxvm_protocol::{
    machine::HostMode,
    vmm::{ExitReason, JailPart, LaunchConfig, MachineSource, VmmEvent, WIRE},
};
use std::{
    fs::File,
    os::{
        fd::OwnedFd,
        unix::net::{UnixListener, UnixStream},
    },
    sync::Arc,
};

/// A machine about to run.
#[derive(Debug)]
pub struct Session {
    event_loop: EventLoop,
    /// Held to the end: it is the sandbox's flock.
    lock: OwnedFd,
}

/// Runs the machine that is described on standard input to its end.
///
/// # Errors
/// When there is none to run.
pub fn run_launched(process_start: u64) -> Result<ExitReason, BringUpError> {
    confine::drop_inherited_files();
    // A new session: the signals of a terminal are not for a machine that outlives the command that was typed there. This
    // fails where the process leads its group already, which is just as good.
    let _ = rustix::process::setsid();
    let channel = stdin()
        .try_clone_to_owned()
        .map_err(|source| BringUpError::Io { what: "standard input as the launch channel", source })?;
    launch(UnixStream::from(channel), process_start)?.run()
}

/// Confines this process, takes the launch frame from `channel` and builds the machine it describes. In this order, so
/// that a process can be started, and wait, before it is known what it is for.
///
/// # Errors
/// When it cannot be built. The manager was notified, where that was possible.
pub fn launch(channel: UnixStream, process_start: u64) -> Result<Session, BringUpError> {
    let detected = host_mode::detect();
    let confined = confine_process();
    let confined_at = timeline::now();
    let (Begun { config, fds, status, lock }, launcher) = begin(channel)?;
    let start_times = StartTimes { process_start, confined: confined_at, launched: timeline::now() };
    let missing = confined.as_ref().map_or_else(|_| Vec::new(), |confined| confined.missing.clone());
    let reporter = EarlyReporter::new(status, launcher, detected.as_ref().ok().copied(), missing);
    let host = detected.map_err(BringUpError::from).and_then(|host_mode| {
        let Confined { kvm, vm, .. } = confined?;
        Ok(Host { host_mode, kvm, vm })
    });
    let start = config.start;
    match host.and_then(|host| build(config, fds, host, start_times)) {
        Ok(setup) => into_session(setup, reporter, lock, start),
        Err(error) => {
            reporter.never_began(&error);
            Err(error)
        }
    }
}

/// A launch frame and the files in which its end is reported.
#[derive(Debug)]
struct Begun {
    config: LaunchConfig,
    fds: ReceivedFds,
    status: StatusFile,
    lock: OwnedFd,
}

impl Begun {
    fn new(Launch { config, mut fds, .. }: Launch) -> Result<Self, BringUpError> {
        let status = StatusFile::new(File::from(fds.take(config.status, "the status file")?));
        let lock = fds.take(config.lock, "the lock")?;
        Ok(Self { config, fds, status, lock })
    }
}

/// Waits for the launch frame. One that cannot be used is reported on the channel: there is no status file yet.
fn begin(channel: UnixStream) -> Result<(Begun, ControlConnection), BringUpError> {
    let received = match launch::receive(&channel) {
        // Standard input may be a terminal, which a message would confuse.
        Err(error @ (LaunchError::Receive(_) | LaunchError::Closed)) => return Err(error.into()),
        received => received,
    };
    let version = received.as_ref().map_or(WIRE.oldest, |launch| launch.version);
    let mut launcher = connection(channel, version)?;
    match received.map_err(BringUpError::from).and_then(Begun::new) {
        Ok(begun) => Ok((begun, launcher)),
        Err(error) => {
            // A launcher that is gone has no use for the reason.
            let _ = launcher.event(&VmmEvent::Ended(error.reason()));
            Err(error)
        }
    }
}

/// What the host gives to any machine.
#[derive(Debug)]
struct Host {
    host_mode: HostMode,
    kvm: Arc<Kvm>,
    vm: VmFd,
}

/// Opens the one file that is opened here, then cuts this process off. A virtual machine without memory or devices is
/// made already: that does not depend on what it is for.
fn confine_process() -> Result<Confined, BringUpError> {
    let kvm = machine::open_kvm()?;
    // Where the host has it: what it lacks `sandboxvm-vmm --probe` says.
    let _ = confine::separate_cores();
    let missing = confine::isolate()?;
    confine::restrict_syscalls(set::system_calls())?;
    let vm = machine::create_vm(&kvm)?;
    Ok(Confined { kvm, vm, missing })
}

/// What a confined process has, before it knows its machine.
#[derive(Debug)]
struct Confined {
    kvm: Arc<Kvm>,
    vm: VmFd,
    missing: Vec<JailPart>,
}

fn connection(channel: UnixStream, version: u8) -> Result<ControlConnection, BringUpError> {
    ControlConnection::new(channel, true, version)
        .map_err(|source| BringUpError::Io { what: "the launch channel", source })
}

fn into_session(
    setup: MachineSetup,
    early: EarlyReporter,
    lock: OwnedFd,
    start: bool,
) -> Result<Session, BringUpError> {
    let event_loop = EventLoop::new(setup, early.reporter)?;
    if start {
        event_loop.start();
    }
    Ok(Session { event_loop, lock })
}

fn build(
    config: LaunchConfig,
    mut fds: ReceivedFds,
    Host { host_mode, kvm, vm }: Host,
    start_times: StartTimes,
) -> Result<MachineSetup, BringUpError> {
    let mut devices = UnbuiltDevices::take(&config.devices, &mut fds)?;
    let control = UnixListener::from(fds.take(config.control, "the control listener")?);
    let console = File::from(fds.take(config.console.log, "the console log")?);
    confine::bound_to_machine(config.memory, devices.largest_file()?)?;
    let memory = Arc::new(memory::allocate(config.memory)?);
    let released = Arc::new(ReleasedPages::none_of(page_count(&memory)));
    let console_limit = config.console.limit;
    let context = MachineContext { kvm, host_mode, memory, memory_size: config.memory, released, console_limit };
    let (machine, devices, origin) = match config.source {
        MachineSource::Boot { kernel, cmdline_extra } => {
            let kernel = File::from(fds.take(kernel, "the kernel")?);
            let (virtio, devices) = devices.build(&context.released)?;
            let parts = MachineParts { context, start_times, vm, console, devices: virtio };
            let boot = BootSource { vcpus: config.vcpus, kernel, cmdline_extra };
            (Machine::boot(parts, boot)?, devices, None)
        }
        MachineSource::Snapshot { state, memory } => {
            let saved = format::read(&File::from(fds.take(state, "the snapshot's state file")?))?;
            if saved.memory_size != config.memory || saved.vcpu_count != config.vcpus {
                let shape = |memory: u64, vcpus| format!("{memory} MiB and {vcpus} vCPUs");
                return Err(BringUpError::OtherMachine {
                    saved: shape(saved.memory_size.mib(), saved.vcpu_count),
                    here: shape(config.memory.mib(), config.vcpus),
                });
            }
            let files = fds.take_files(&memory, "a memory file")?.into_iter().map(Arc::new).collect::<Vec<_>>();
            check_vcpus(&context.kvm, host_mode, &saved.machine)?;
            saved.memory.map_over(&context.memory, &files)?;
            devices.leave_out_newer_than(&saved.machine.devices);
            let (virtio, devices) = devices.build(&context.released)?;
            let parts = MachineParts { context, start_times, vm, console, devices: virtio };
            (Machine::restore(parts, &saved.machine)?, devices, Some(Baseline { map: saved.memory, files }))
        }
    };
    Ok(MachineSetup {
        machine,
        devices,
        control,
        baseline: origin.clone().unwrap_or_default(),
        origin,
        tie_to_launcher: config.tie_to_launcher,
    })
}

/// A state file is from anywhere; the state that a fork takes over is not.
fn check_vcpus(kvm: &Kvm, mode: HostMode, state: &MachineState) -> Result<(), MachineError> {
    saved_cpu::check_cpuid(kvm, mode, &state.vcpus)?;
    Ok(saved_cpu::check_msrs(kvm, &state.vcpus)?)
}

/// In a forked child: builds its machine.
fn build_child(child: ForkedChild) -> Result<Session, BringUpError> {
    let start_times = StartTimes::of_fork();
    let ForkedChild { state, files, devices, inherited } = child;
    let Inheritance { context, baseline, missing } = inherited;
    let ChildFiles { launcher, console, control, status, lock, tie_to_launcher, .. } = files;
    let launcher = connection(launcher, WIRE.oldest)?;
    let reporter = EarlyReporter::new(StatusFile::new(status), launcher, Some(context.host_mode), missing);
    let build = || {
        let (virtio, devices) = devices.build(&context.released)?;
        let vm = machine::create_vm(&context.kvm)?;
        let parts = MachineParts { context, start_times, vm, console, devices: virtio };
        Ok((Machine::restore(parts, &state)?, devices))
    };
    match build() {
        Ok((machine, devices)) => {
            let setup = MachineSetup {
                machine,
                devices,
                control,
                // A fork began in the middle of its parent's run: there is no snapshot of that to go back to.
                origin: None,
                baseline,
                tie_to_launcher,
            };
            // It starts when the manager says so, which starts all the copies of one request together.
            into_session(setup, reporter, lock, false)
        }
        Err(error) => {
            reporter.never_began(&error);
            Err(error)
        }
    }
}

impl Session {
    /// Runs the machine to its end. In a forked child this continues with the child's machine, so it may return in more than
    /// one process.
    ///
    /// # Errors
    /// When a forked child cannot be made to run.
    pub fn run(self) -> Result<ExitReason, BringUpError> {
        let mut session = self;
        loop {
            match session.event_loop.run() {
                Outcome::Ended(reason) => return Ok(reason),
                Outcome::Forked(child) => {
                    // The parent's lock was closed with all its descriptors; closing the number again would hit one of
                    // ours.
                    std::mem::forget(session.lock);
                    session = build_child(*child)?;
                }
            }
        }
    }
}
