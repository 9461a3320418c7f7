//! Live fork: copies of a running machine, each a process forked off the VMM.
//!
//! fork(2) gives a child the guest's memory copy-on-write in the time it takes to copy page tables. KVM's objects
//! belong to the parent's address space and are of no use to the child: it makes new ones and sets the state that was
//! read while the parent stood. Of the parent's descriptors the child keeps only those it is handed here. [`crate::bring_up`]
//! turns a [`ForkedChild`] into a running machine.

use crate::{
    channel::descriptors::{DescriptorError, ReceivedFds},
    devices::set::{CopyFiles, DeviceSet, DeviceSetError, UnbuiltDevices},
    machine::context::MachineContext,
    process::{
        failure::kind_of,
        split::{SplitError, close_all_but},
    },
    snapshot::{MachineState, writer::Baseline},
};
use rustix::{
    pipe::{PipeFlags, pipe_with},
    stdio::dup2_stderr,
};
use sandboxvm_protocol::vmm::{ForkChild, JailPart, RefusalKind};
use std::{
    fs::File,
    io::{self, Read},
    os::{
        fd::{AsRawFd, OwnedFd, RawFd},
        unix::net::{UnixListener, UnixStream},
    },
};

/// Why there is no child.
#[derive(Debug, thiserror::Error)]
pub enum ForkError {
    /// A file is missing.
    #[error(transparent)]
    Fd(#[from] DescriptorError),
    /// Devices.
    #[error(transparent)]
    Devices(#[from] DeviceSetError),
    /// fork(2), or closing the parent's descriptors.
    #[error(transparent)]
    Split(#[from] SplitError),
    /// The child's log.
    #[error("cannot make the child's log its standard error: {0}")]
    Log(io::Error),
    /// The pipe that children wait at.
    #[error("cannot make the pipe at which copies wait for each other: {0}; the host may be out of descriptors")]
    Barrier(io::Error),
}

impl ForkError {
    /// Returns the kind of refusal that a client receives.
    #[must_use]
    pub fn kind(&self) -> RefusalKind {
        match self {
            Self::Fd(_) => RefusalKind::BadRequest,
            Self::Devices(error) => error.kind(),
            Self::Split(error) => error.kind(),
            Self::Log(source) | Self::Barrier(source) => kind_of(source),
        }
    }
}

/// Where a child waits until all of its siblings exist and the parent continues: before that, it would take CPU time from
/// the process whose guest is paused.
#[derive(Debug)]
pub struct StartBarrier(File);

/// Held by the parent while it makes children. Every child inherits a copy, and closes it with the parent's other
/// descriptors.
#[derive(Debug)]
pub struct BarrierGuard(#[expect(dead_code, reason = "held to be closed")] OwnedFd);

/// Returns the barrier for the children of one request, and the guard that keeps it closed.
///
/// # Errors
/// [`ForkError::Barrier`].
pub fn start_barrier() -> Result<(StartBarrier, BarrierGuard), ForkError> {
    let (barrier, guard) = pipe_with(PipeFlags::CLOEXEC).map_err(|error| ForkError::Barrier(error.into()))?;
    Ok((StartBarrier(File::from(barrier)), BarrierGuard(guard)))
}

impl StartBarrier {
    /// Returns when no process holds the guard any more, because each dropped it or was killed. Nothing is ever written to
    /// the pipe.
    fn wait(mut self) -> Result<(), ForkError> {
        self.0.read_to_end(&mut Vec::new()).map(drop).map_err(ForkError::Barrier)
    }
}

/// What one child is handed.
#[derive(Debug)]
pub struct ChildFiles {
    /// Its launch channel.
    pub launcher: UnixStream,
    /// Its console log.
    pub console: File,
    /// Its control socket.
    pub control: UnixListener,
    /// Its status file.
    pub status: File,
    /// Its lock.
    pub lock: OwnedFd,
    /// End with the launcher.
    pub tie_to_launcher: bool,
    log: OwnedFd,
}

impl ChildFiles {
    fn descriptors(&self) -> [RawFd; 6] {
        [
            self.launcher.as_raw_fd(),
            self.console.as_raw_fd(),
            self.control.as_raw_fd(),
            self.status.as_raw_fd(),
            self.lock.as_raw_fd(),
            self.log.as_raw_fd(),
        ]
    }
}

/// What one child is handed, with the files of its devices.
#[derive(Debug)]
pub struct Handed {
    files: ChildFiles,
    devices: CopyFiles,
}

impl Handed {
    /// Takes the files of `child`, a copy of a machine with `devices`, from those that came with the request.
    ///
    /// # Errors
    /// When one is missing.
    pub fn take(child: &ForkChild, devices: &DeviceSet, fds: &mut ReceivedFds) -> Result<Self, ForkError> {
        let files = ChildFiles {
            launcher: UnixStream::from(fds.take(child.launcher, "a child's launch channel")?),
            console: File::from(fds.take(child.console, "a child's console log")?),
            control: UnixListener::from(fds.take(child.control, "a child's control listener")?),
            status: File::from(fds.take(child.status, "a child's status file")?),
            lock: fds.take(child.lock, "a child's lock")?,
            tie_to_launcher: child.tie_to_launcher,
            log: fds.take(child.log, "a child's log")?,
        };
        Ok(Self { files, devices: devices.take_for_copy(&child.devices, fds)? })
    }
}

/// What a child inherits from its parent's machine, beside its devices.
#[derive(Debug)]
pub struct Inheritance {
    /// The parent's. The guest's memory is copy-on-write from here.
    pub context: MachineContext,
    /// Last snapshot.
    pub baseline: Baseline,
    /// Parts of the confinement that the parent, and so this process, does without.
    pub missing: Vec<JailPart>,
}

/// A new process about to become a machine.
#[derive(Debug)]
pub struct ForkedChild {
    /// State to continue from.
    pub state: MachineState,
    /// Its own files.
    pub files: ChildFiles,
    /// Copies of the parent's devices.
    pub devices: UnbuiltDevices,
    /// From the parent.
    pub inherited: Inheritance,
}

impl ForkedChild {
    /// In the child: takes over what it was handed, closes everything else, and waits for its siblings. The parent's
    /// objects must be forgotten by the caller, not dropped: their descriptors are closed here.
    ///
    /// # Errors
    /// When a descriptor cannot be copied, moved, closed or read.
    pub fn take_over(
        state: MachineState,
        handed: Handed,
        parent_devices: &DeviceSet,
        inherited: Inheritance,
        barrier: StartBarrier,
    ) -> Result<Self, ForkError> {
        let Handed { files, devices } = handed;
        let devices = parent_devices.copy(devices)?;
        dup2_stderr(&files.log).map_err(|error| ForkError::Log(error.into()))?;
        let child = Self { state, files, devices, inherited };
        let mut keep = child.descriptors();
        keep.push(barrier.0.as_raw_fd());
        close_all_but(&keep)?;
        barrier.wait()?;
        Ok(child)
    }

    fn descriptors(&self) -> Vec<RawFd> {
        let Self { state: _, files, devices, inherited } = self;
        let mut keep = vec![std::io::stderr().as_raw_fd(), inherited.context.kvm.as_raw_fd()];
        keep.extend(files.descriptors());
        keep.extend(inherited.baseline.files.iter().map(|file| file.as_raw_fd()));
        keep.extend(devices.descriptors());
        keep
    }
}
