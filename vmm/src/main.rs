//! `sandboxvm-vmm`: takes one launch frame on standard input, builds the machine it describes, confines itself, runs
//! the guest, and exits when it is over. Started by the manager; with `--probe` it only says what KVM offers.

use rustix::stdio::stdin;
use sandboxvm_protocol::vmm::{DiskConfig, ExitReason, LaunchConfig, Phase, VmStatus, VmmEvent};
use sandboxvm_vmm::{
    control::ControlConnection,
    devices::virtio::{block::BlockDevice, device::VirtioDevice, rng::RngDevice, vsock::VsockDevice},
    event_loop::EventLoop,
    launch::{self, LaunchError, ReceivedFds},
    machine::{Machine, MachineParts},
    probe,
    status::StatusFile,
};
use std::{
    fs::File,
    os::unix::net::{UnixListener, UnixStream},
    process::ExitCode,
    time::Instant,
};

/// Our own failure, as for every command of sandboxvm.
const FAILURE: u8 = 125;

fn main() -> ExitCode {
    let process_start = Instant::now();
    match std::env::args().nth(1).as_deref() {
        None => run(process_start),
        Some("--probe") => print_probe(),
        Some("--version") => {
            println!("sandboxvm-vmm {}", env!("CARGO_PKG_VERSION"));
            ExitCode::SUCCESS
        }
        Some(other) => {
            eprintln!("sandboxvm-vmm: unknown argument {other:?}; it is started by sandboxvm, or with --probe");
            ExitCode::from(FAILURE)
        }
    }
}

fn print_probe() -> ExitCode {
    let probe = probe::probe();
    match serde_json::to_string(&probe) {
        Ok(text) => println!("{text}"),
        Err(error) => eprintln!("sandboxvm-vmm: cannot print the probe: {error}"),
    }
    if probe.problems.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(FAILURE) }
}

/// Why a machine never began.
#[derive(Debug, thiserror::Error)]
enum StartError {
    #[error(transparent)]
    Launch(#[from] LaunchError),
    #[error(transparent)]
    Machine(#[from] sandboxvm_vmm::machine::MachineError),
    #[error(transparent)]
    Disk(#[from] sandboxvm_vmm::devices::virtio::block::BlockError),
    #[error("cannot set up {what}: {source}")]
    Io { what: &'static str, source: std::io::Error },
    #[error(transparent)]
    EventLoop(#[from] sandboxvm_vmm::event_loop::EventLoopError),
}

impl StartError {
    fn reason(&self) -> ExitReason {
        let message = self.to_string();
        match self {
            Self::Disk(_) => ExitReason::BadConfig { message },
            Self::Machine(error) if error.is_bad_config() => ExitReason::BadConfig { message },
            _ => ExitReason::HostFailure { message },
        }
    }
}

fn run(process_start: Instant) -> ExitCode {
    let channel = match stdin().try_clone_to_owned() {
        Ok(fd) => UnixStream::from(fd),
        Err(error) => return fail(&format!("cannot use standard input as the launch channel: {error}")),
    };
    let (config, mut fds) = match launch::receive(&channel) {
        Ok(received) => received,
        Err(error) => return fail(&error.to_string()),
    };
    let status = match fds.take(config.status, "the status file") {
        Ok(fd) => StatusFile::new(File::from(fd)),
        Err(error) => return fail(&error.to_string()),
    };
    let mut launcher = match ControlConnection::new(channel, true) {
        Ok(connection) => connection,
        Err(error) => return fail(&format!("launch channel: {error}")),
    };
    // Kept to the end of the process: it holds the sandbox's lock.
    let _lock = match fds.take(config.lock, "the lock") {
        Ok(fd) => fd,
        Err(error) => return fail(&error.to_string()),
    };
    let tie = config.tie_to_launcher;
    let start = config.start;
    let prepared = build(config, fds, process_start);
    let (machine, listener) = match prepared {
        Ok(prepared) => prepared,
        Err(error) => {
            let reason = error.reason();
            report_never_began(&status, &mut launcher, &reason);
            return fail(&error.to_string());
        }
    };
    if start {
        machine.resume();
    }
    match EventLoop::new(machine, launcher, listener, status, tie) {
        Ok(event_loop) => {
            let reason = event_loop.run();
            if reason.is_orderly() { ExitCode::SUCCESS } else { fail(&reason.to_string()) }
        }
        Err(error) => fail(&error.to_string()),
    }
}

fn fail(message: &str) -> ExitCode {
    eprintln!("sandboxvm-vmm: {message}");
    ExitCode::from(FAILURE)
}

fn report_never_began(status: &StatusFile, launcher: &mut ControlConnection, reason: &ExitReason) {
    if let Ok(host_mode) = sandboxvm_vmm::arch::x86_64::host_mode::detect() {
        let ended = VmStatus { pid: std::process::id(), phase: Phase::Ended, host_mode, reason: Some(reason.clone()) };
        if let Err(error) = status.write(&ended) {
            eprintln!("sandboxvm-vmm: cannot write the status file: {error}");
        }
    }
    // A launcher that is gone has no use for the reason.
    let _ = launcher.event(&VmmEvent::Ended(reason.clone()));
}

fn build(
    config: LaunchConfig,
    mut fds: ReceivedFds,
    process_start: Instant,
) -> Result<(Machine, UnixListener), StartError> {
    let mut devices: Vec<Box<dyn VirtioDevice>> = Vec::with_capacity(config.disks.len() + 2);
    for disk in &config.disks {
        devices.push(Box::new(open_disk(disk, &mut fds)?));
    }
    let rng = RngDevice::new().map_err(|source| StartError::Io { what: "the entropy device", source })?;
    devices.push(Box::new(rng));
    let vsock_listener = UnixListener::from(fds.take(config.vsock.listener, "the vsock listener")?);
    let vsock = VsockDevice::new(config.vsock.cid, vsock_listener)
        .map_err(|source| StartError::Io { what: "the vsock device", source })?;
    devices.push(Box::new(vsock));
    let listener = UnixListener::from(fds.take(config.control, "the control listener")?);
    let machine = Machine::boot(MachineParts {
        process_start,
        vcpus: config.vcpus,
        memory: config.memory,
        kernel: File::from(fds.take(config.kernel, "the kernel")?),
        cmdline_extra: config.cmdline_extra,
        console: (File::from(fds.take(config.console.log, "the console log")?), config.console.limit),
        devices,
    })?;
    Ok((machine, listener))
}

fn open_disk(disk: &DiskConfig, fds: &mut ReceivedFds) -> Result<BlockDevice, StartError> {
    match disk {
        DiskConfig::ReadOnly { image } => {
            Ok(BlockDevice::read_only(File::from(fds.take(*image, "a read-only disk")?))?)
        }
        DiskConfig::Writable { template, layers } => {
            let template = File::from(fds.take(*template, "a disk template")?);
            let layers = layers
                .iter()
                .map(|layer| Ok(File::from(fds.take(*layer, "a disk layer")?)))
                .collect::<Result<Vec<_>, LaunchError>>()?;
            Ok(BlockDevice::writable(template, layers)?)
        }
    }
}
