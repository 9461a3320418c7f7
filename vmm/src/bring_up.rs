//! From a launch frame, or from a fork, to a machine in its event loop. The order in which things are opened, confined
//! and started is here and nowhere else.

use crate::{
    arch::x86_64::{
        host_mode::{self, UnknownHostMode},
        saved_cpu,
    },
    confine::{self, ConfineError},
    control::ControlConnection,
    descriptors::{DescriptorError, ReceivedFds},
    devices::virtio::{
        balloon::BalloonDevice,
        block::DiskPace,
        device::{DeviceType, VirtioDevice},
        rng::RngDevice,
        vsock::{VsockDevice, VsockOptions},
    },
    disks::{self, DiskFiles, Disks, DisksError},
    event_loop::{EventLoop, EventLoopError, MachineSetup, Outcome, Reporter},
    fork::ForkedChild,
    launch::{self, LaunchError},
    log,
    machine::{self, BootSource, Machine, MachineError, MachineParts},
    memory::{self, MemoryError, pages::page_count, released::ReleasedPages},
    snapshot::{
        MachineState,
        format::{self, FormatError},
        memory_map::MemoryMapError,
        writer::Baseline,
    },
    status::StatusFile,
    timeline::{self, StartTimes},
};
use kvm_ioctls::{Kvm, VmFd};
use rustix::stdio::stdin;
use sandboxvm_protocol::{
    machine::HostMode,
    vmm::{ExitReason, JailPart, LaunchConfig, MachineSource, Phase, VmStatus, VmmEvent},
};
use std::{
    fs::File,
    io,
    os::{
        fd::OwnedFd,
        unix::net::{UnixListener, UnixStream},
    },
    sync::Arc,
};

/// Why a machine could not be brought up.
#[derive(Debug, thiserror::Error)]
pub enum BringUpError {
    /// Launch frame.
    #[error(transparent)]
    Launch(#[from] LaunchError),
    /// A file is missing.
    #[error(transparent)]
    Fd(#[from] DescriptorError),
    /// KVM or a device.
    #[error(transparent)]
    Machine(#[from] MachineError),
    /// Disks.
    #[error(transparent)]
    Disks(#[from] DisksError),
    /// Guest memory.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// State file.
    #[error(transparent)]
    Format(#[from] FormatError),
    /// Memory files.
    #[error(transparent)]
    Map(#[from] MemoryMapError),
    /// Another machine than the snapshot's.
    #[error("the snapshot is of a machine with {saved}, this one is to have {here}")]
    OtherMachine {
        /// Of the snapshot.
        saved: String,
        /// Asked for.
        here: String,
    },
    /// A host resource.
    #[error("cannot set up {what}: {source}")]
    Io {
        /// What.
        what: &'static str,
        /// Why.
        source: io::Error,
    },
    /// Event loop.
    #[error(transparent)]
    EventLoop(#[from] EventLoopError),
    /// No KVM vendor module.
    #[error(transparent)]
    HostMode(#[from] UnknownHostMode),
    /// The process could not be confined.
    #[error(transparent)]
    Confine(#[from] ConfineError),
}

impl BringUpError {
    fn reason(&self) -> ExitReason {
        let message = self.to_string();
        match self {
            Self::Machine(error) if !error.is_bad_config() => ExitReason::HostFailure { message },
            Self::Io { .. } | Self::EventLoop(_) | Self::HostMode(_) | Self::Confine(_) => {
                ExitReason::HostFailure { message }
            }
            _ => ExitReason::BadConfig { message },
        }
    }
}

/// Reports a machine that has no event loop yet.
#[derive(Debug)]
struct EarlyReporter {
    reporter: Reporter,
    /// Unknown on a host without KVM, where no machine can begin.
    host_mode: Option<HostMode>,
}

impl EarlyReporter {
    fn new(
        status: StatusFile,
        launcher: ControlConnection,
        host_mode: Option<HostMode>,
        missing: Vec<JailPart>,
    ) -> Self {
        if let Some(mode) = host_mode {
            confine::report_refused_calls(&status, mode);
        }
        Self { reporter: Reporter { launcher, status, missing }, host_mode }
    }

    fn never_began(mut self, error: &BringUpError) {
        let reason = error.reason();
        if let Some(host_mode) = self.host_mode {
            let status = VmStatus {
                pid: std::process::id(),
                phase: Phase::Ended,
                host_mode,
                reason: Some(reason.clone()),
                missing: self.reporter.missing,
                clocks_jump: false,
            };
            if let Err(error) = self.reporter.status.write(&status) {
                log::line(format_args!("cannot write the status file: {error}"));
            }
        }
        // A launcher that is gone has no use for the reason.
        let _ = self.reporter.launcher.event(&VmmEvent::Ended(reason));
    }
}

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
/// When it cannot be built; the manager was told, where that was possible.
pub fn launch(channel: UnixStream, process_start: u64) -> Result<Session, BringUpError> {
    let detected = host_mode::detect();
    let confined = confine_process();
    let confined_at = timeline::now();
    let (config, mut fds) = launch::receive(&channel)?;
    let start_times = StartTimes { process_start, confined: confined_at, launched: timeline::now() };
    let status = StatusFile::new(File::from(fds.take(config.status, "the status file")?));
    let lock = fds.take(config.lock, "the lock")?;
    let launcher = connection(channel)?;
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
    confine::restrict_syscalls()?;
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

fn connection(channel: UnixStream) -> Result<ControlConnection, BringUpError> {
    ControlConnection::new(channel, true).map_err(|source| BringUpError::Io { what: "the launch channel", source })
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
    let disks = config.disks.iter().map(|disk| DiskFiles::take(disk, &mut fds)).collect::<Result<Vec<_>, _>>()?;
    let listener = UnixListener::from(fds.take(config.vsock.listener, "the vsock listener")?);
    let vsock = VsockOptions::unlimited(config.vsock.cid);
    let control = UnixListener::from(fds.take(config.control, "the control listener")?);
    let console = (File::from(fds.take(config.console.log, "the console log")?), config.console.limit);
    confine::bound_to_machine(config.memory, disks::largest(&disks)?)?;
    let memory = Arc::new(memory::allocate(config.memory)?);
    let released = Arc::new(ReleasedPages::none_of(page_count(&memory)));
    let (disks, mut devices) = Disks::open(disks, DiskPace::default())?;
    add_common_devices(&mut devices, vsock.clone(), listener)?;
    let mut parts =
        MachineParts { start_times, host_mode, kvm, vm, memory, memory_size: config.memory, console, devices };
    let (machine, origin) = match config.source {
        MachineSource::Boot { kernel, cmdline_extra } => {
            let kernel = File::from(fds.take(kernel, "the kernel")?);
            add_balloon(&mut parts.devices, &released)?;
            let boot = BootSource { vcpus: config.vcpus, kernel, cmdline_extra };
            (Machine::boot(parts, boot)?, None)
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
            let files = memory
                .iter()
                .map(|index| Ok(Arc::new(File::from(fds.take(*index, "a memory file")?))))
                .collect::<Result<Vec<_>, DescriptorError>>()?;
            check_vcpus(&parts.kvm, host_mode, &saved.machine)?;
            saved.memory.map_over(&parts.memory, &files)?;
            if saved.machine.has(DeviceType::Balloon) {
                add_balloon(&mut parts.devices, &released)?;
            }
            (Machine::restore(parts, &saved.machine)?, Some(Baseline { map: saved.memory, files }))
        }
    };
    Ok(MachineSetup {
        machine,
        control,
        disks,
        baseline: origin.clone().unwrap_or_default(),
        origin,
        released,
        vsock,
        console_limit: config.console.limit,
        tie_to_launcher: config.tie_to_launcher,
    })
}

/// A state file is from anywhere; the state that a fork takes over is not.
fn check_vcpus(kvm: &Kvm, mode: HostMode, state: &MachineState) -> Result<(), MachineError> {
    saved_cpu::check_cpuid(kvm, mode, &state.vcpus)?;
    Ok(saved_cpu::check_msrs(kvm, &state.vcpus)?)
}

fn add_common_devices(
    devices: &mut Vec<Box<dyn VirtioDevice>>,
    vsock: VsockOptions,
    listener: UnixListener,
) -> Result<(), BringUpError> {
    let rng = RngDevice::new().map_err(|source| BringUpError::Io { what: "the entropy device", source })?;
    devices.push(Box::new(rng));
    let vsock =
        VsockDevice::new(vsock, listener).map_err(|source| BringUpError::Io { what: "the vsock device", source })?;
    devices.push(Box::new(vsock));
    Ok(())
}

/// The last of a machine's devices; a machine that is restored from a snapshot without it has none.
fn add_balloon(devices: &mut Vec<Box<dyn VirtioDevice>>, released: &Arc<ReleasedPages>) -> Result<(), BringUpError> {
    let balloon = BalloonDevice::new(Arc::clone(released))
        .map_err(|source| BringUpError::Io { what: "the balloon device", source })?;
    devices.push(Box::new(balloon));
    Ok(())
}

/// In a forked child: builds its machine.
fn build_child(child: ForkedChild) -> Result<Session, BringUpError> {
    let start_times = StartTimes::of_fork();
    let ForkedChild { state, files, disks, inherited } = child;
    let reporter = EarlyReporter::new(
        StatusFile::new(files.status),
        connection(files.launcher)?,
        Some(state.host_mode),
        inherited.missing.clone(),
    );
    let (vsock, disk_pace, console_limit) = (inherited.vsock, inherited.disk_pace, inherited.console_limit);
    let build = |state: &MachineState| {
        let (disks, mut devices) = Disks::open(disks, disk_pace)?;
        add_common_devices(&mut devices, vsock.clone(), files.vsock)?;
        if state.has(DeviceType::Balloon) {
            add_balloon(&mut devices, &inherited.released)?;
        }
        let console = (files.console, console_limit);
        let parts = MachineParts {
            start_times,
            host_mode: state.host_mode,
            vm: machine::create_vm(&inherited.kvm)?,
            kvm: inherited.kvm,
            memory: inherited.memory,
            memory_size: inherited.memory_size,
            console,
            devices,
        };
        Ok((Machine::restore(parts, state)?, disks))
    };
    match build(&state) {
        Ok((machine, disks)) => {
            let setup = MachineSetup {
                machine,
                control: files.control,
                disks,
                // A fork began in the middle of its parent's run: there is no snapshot of that to go back to.
                origin: None,
                baseline: inherited.baseline,
                released: inherited.released,
                vsock,
                console_limit,
                tie_to_launcher: files.tie_to_launcher,
            };
            // It starts when the manager says so, which starts all the copies of one request together.
            into_session(setup, reporter, files.lock, false)
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
