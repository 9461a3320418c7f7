//! Live fork: copies of a running machine, each a process forked off the VMM.
//!
//! fork(2) gives a child the guest's memory copy-on-write in the time it takes to copy page tables. KVM's objects
//! belong to the parent's address space and are of no use to the child: it makes new ones and sets the state that was
//! read while the parent stood. Of the parent's descriptors the child keeps only those it is handed here. Called by
//! [`crate::event_loop`]; [`crate::session`] turns a [`ForkedChild`] into a running machine.

use crate::{
    confine,
    descriptors::{DescriptorError, ReceivedFds},
    devices::virtio::{block::DiskPace, device::GuestMemory, vsock::VsockOptions},
    disks::{DiskFiles, Disks, DisksError, take_files},
    snapshot::{MachineState, released::ReleasedPages, writer::Baseline},
};
use kvm_ioctls::Kvm;
use rustix::{
    pipe::{PipeFlags, pipe_with},
    stdio::dup2_stderr,
};
use sandboxvm_protocol::{
    ids::SandboxId,
    machine::MemorySize,
    vmm::{ForkChild, JailPart},
};
use std::{
    fs::File,
    io::{self, Read},
    os::{
        fd::{AsRawFd, OwnedFd, RawFd},
        unix::net::{UnixListener, UnixStream},
    },
    sync::Arc,
};

/// Why there is no child.
#[derive(Debug, thiserror::Error)]
pub enum ForkError {
    /// A file is missing.
    #[error(transparent)]
    Fd(#[from] DescriptorError),
    /// Disks.
    #[error(transparent)]
    Disks(#[from] DisksError),
    /// fork(2).
    #[error("cannot fork the VMM's process: {0}; the host may be out of memory or processes")]
    Fork(io::Error),
    /// The pipe that children wait at.
    #[error("cannot make the pipe at which copies wait for each other: {0}; the host may be out of descriptors")]
    Birth(io::Error),
}

/// Where a child waits until all of its siblings exist and the parent goes on: until then it would take the CPU from the
/// process whose guest stands still.
#[derive(Debug)]
pub struct Birth(File);

/// Held by the parent while it makes children. Every child has it too, and closes it with all that is the parent's.
#[derive(Debug)]
pub struct Labour(#[expect(dead_code, reason = "held to be closed")] OwnedFd);

/// What the children of one request wait at, and what holds them there.
///
/// # Errors
/// [`ForkError::Birth`].
pub fn birth() -> Result<(Birth, Labour), ForkError> {
    let (birth, labour) = pipe_with(PipeFlags::CLOEXEC).map_err(|error| ForkError::Birth(error.into()))?;
    Ok((Birth(File::from(birth)), Labour(labour)))
}

impl Birth {
    /// Nothing is ever written: this ends when nobody has the other end any more, because they went on or were killed.
    fn wait(mut self) -> Result<(), ForkError> {
        self.0.read_to_end(&mut Vec::new()).map(drop).map_err(ForkError::Birth)
    }
}

/// What one child is handed.
#[derive(Debug)]
pub struct ChildFiles {
    /// Its ID.
    pub sandbox: SandboxId,
    /// Its launch channel.
    pub launcher: UnixStream,
    /// Listener of its vsock.
    pub vsock: UnixListener,
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
    disk_tops: Vec<File>,
}

impl ChildFiles {
    /// Takes the files of `child` from those that came with the request.
    ///
    /// # Errors
    /// When one is missing.
    pub fn take(child: &ForkChild, fds: &mut ReceivedFds) -> Result<Self, DescriptorError> {
        Ok(Self {
            sandbox: child.sandbox.clone(),
            launcher: UnixStream::from(fds.take(child.launcher, "a child's launch channel")?),
            vsock: UnixListener::from(fds.take(child.vsock, "a child's vsock listener")?),
            console: File::from(fds.take(child.console, "a child's console log")?),
            control: UnixListener::from(fds.take(child.control, "a child's control listener")?),
            status: File::from(fds.take(child.status, "a child's status file")?),
            lock: fds.take(child.lock, "a child's lock")?,
            tie_to_launcher: child.tie_to_launcher,
            log: fds.take(child.log, "a child's log")?,
            disk_tops: take_files(&child.disk_tops, fds)?,
        })
    }
}

/// What a child inherits from its parent's machine.
#[derive(Debug)]
pub struct Inheritance {
    /// /dev/kvm.
    pub kvm: Arc<Kvm>,
    /// The guest's memory, copy-on-write from here.
    pub memory: Arc<GuestMemory>,
    /// Its size.
    pub memory_size: MemorySize,
    /// Last snapshot.
    pub baseline: Baseline,
    /// What the guest gave back since then: the child's memory is mapped from what the parent's is.
    pub released: Arc<ReleasedPages>,
    /// Its vsock device's.
    pub vsock: VsockOptions,
    /// How fast its disks are served.
    pub disk_pace: DiskPace,
    /// Bytes of console log kept.
    pub console_limit: u64,
    /// Parts of the confinement that the parent, and so this process, does without.
    pub missing: Vec<JailPart>,
}

/// A new process about to become a machine.
#[derive(Debug)]
pub struct ForkedChild {
    /// State to go on from.
    pub state: MachineState,
    /// Its own files.
    pub files: ChildFiles,
    /// The files of its disks.
    pub disks: Vec<DiskFiles>,
    /// From the parent.
    pub inherited: Inheritance,
}

/// Which process this is after [`split`].
#[derive(Debug)]
pub enum Side {
    /// The parent; the child's PID.
    Parent(u32),
    /// The child.
    Child,
}

/// fork(2).
///
/// # Errors
/// [`ForkError::Fork`].
pub fn split() -> Result<Side, ForkError> {
    // SAFETY: the child goes on with this thread alone. The other threads are vCPU threads, standing at the run gate or,
    // where disk layers are merged, running. A running one may hold a device's lock or the allocator's: musl and glibc
    // take care of the latter across fork, and a writer takes no lock but those of disk layers, which only the thread
    // that forks ever holds. The child never touches the objects of the other threads.
    match unsafe { libc::fork() } {
        -1 => Err(ForkError::Fork(io::Error::last_os_error())),
        0 => {
            confine::report_nowhere();
            Ok(Side::Child)
        }
        pid => Ok(Side::Parent(pid.unsigned_abs())),
    }
}

impl ForkedChild {
    /// In the child: takes over what it was handed, closes everything else, and waits for its siblings. The parent's
    /// objects must be forgotten by the caller, not dropped: their descriptors are closed here.
    ///
    /// # Errors
    /// When a descriptor cannot be copied, moved, closed or read.
    pub fn take_over(
        state: MachineState,
        mut files: ChildFiles,
        parent_disks: &Disks,
        inherited: Inheritance,
        birth: Birth,
    ) -> Result<Self, ForkError> {
        let disks = parent_disks.fork(std::mem::take(&mut files.disk_tops))?;
        dup2_stderr(&files.log).map_err(|error| ForkError::Fork(error.into()))?;
        let child = Self { state, files, disks, inherited };
        let mut keep = child.descriptors();
        keep.push(birth.0.as_raw_fd());
        close_all_but(&keep)?;
        birth.wait()?;
        Ok(child)
    }

    fn descriptors(&self) -> Vec<RawFd> {
        let files = &self.files;
        let mut keep = vec![
            std::io::stderr().as_raw_fd(),
            files.launcher.as_raw_fd(),
            files.vsock.as_raw_fd(),
            files.console.as_raw_fd(),
            files.control.as_raw_fd(),
            files.status.as_raw_fd(),
            files.lock.as_raw_fd(),
            files.log.as_raw_fd(),
            self.inherited.kvm.as_raw_fd(),
        ];
        keep.extend(self.inherited.baseline.files.iter().map(|file| file.as_raw_fd()));
        keep.extend(self.disks.iter().flat_map(DiskFiles::descriptors));
        keep
    }
}

/// Closes every descriptor that is not in `keep`.
pub(crate) fn close_all_but(keep: &[RawFd]) -> Result<(), ForkError> {
    let mut keep: Vec<u32> = keep.iter().filter_map(|fd| u32::try_from(*fd).ok()).collect();
    keep.sort_unstable();
    let mut first = 0;
    for fd in keep {
        close_range(first, fd.checked_sub(1))?;
        first = first.max(fd + 1);
    }
    close_range(first, Some(u32::MAX))
}

fn close_range(first: u32, last: Option<u32>) -> Result<(), ForkError> {
    let Some(last) = last.filter(|last| *last >= first) else { return Ok(()) };
    // SAFETY: plain numbers. The descriptors belong to objects of the parent's that this process never uses again.
    match unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) } {
        0 => Ok(()),
        _ => Err(ForkError::Fork(io::Error::last_os_error())),
    }
}
