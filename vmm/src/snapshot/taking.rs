//! A snapshot being written: the child process that writes it, and what it reports over a pipe when it is done.

use super::{
    MachineState, SnapshotState, format,
    memory_map::MemoryMap,
    writer::{self, Baseline, WrittenMemory},
};
use crate::{
    devices::virtio::device::GuestMemory,
    disks::Disks,
    fork::{self, ForkError, Side},
};
use rustix::pipe::{PipeFlags, pipe_with};
use sandboxvm_protocol::{
    machine::{MemorySize, VcpuCount},
    vmm::SnapshotReport,
};
use serde::{Deserialize, Serialize};
use std::{
    fs::File,
    io::{self, Read, Write},
    ops::Range,
    os::fd::{AsFd, BorrowedFd},
    os::unix::fs::FileExt,
    sync::Arc,
};

/// Longest report of a writer, in bytes: a memory map of the most runs is far below.
const MAX_REPORT: usize = 1 << 20;

/// Why a snapshot is not being written.
#[derive(Debug, thiserror::Error)]
pub enum TakingError {
    /// No process for it.
    #[error(transparent)]
    Fork(#[from] ForkError),
    /// No pipe to it.
    #[error("cannot make a pipe to the snapshot's writer: {0}")]
    Pipe(io::Error),
}

/// What the writer is to write.
#[derive(Debug)]
pub struct Writing<'a> {
    /// Guest memory.
    pub memory: &'a Arc<GuestMemory>,
    /// Its size.
    pub memory_size: MemorySize,
    /// Pages that may differ from the baseline.
    pub candidates: Vec<Range<u64>>,
    /// The snapshot before.
    pub baseline: &'a Baseline,
    /// The machine.
    pub state: MachineState,
    /// Its disks, whose frozen layers are to be durable.
    pub disks: &'a Disks,
    /// Where the state goes.
    pub state_file: File,
    /// Where memory goes.
    pub memory_file: File,
    /// Write all memory.
    pub full: bool,
}

/// What the writer reports.
#[derive(Debug, Serialize, Deserialize)]
struct Report {
    map: MemoryMap,
    bytes: u64,
    self_contained: bool,
}

/// A snapshot whose writer is at work.
#[derive(Debug)]
pub struct Taking {
    pipe: File,
    received: Vec<u8>,
    memory_file: File,
    pause_ns: u64,
}

/// How a snapshot came out.
#[derive(Debug)]
pub struct Taken {
    /// For whoever asked.
    pub report: SnapshotReport,
    /// What the next snapshot is compared with.
    pub baseline: Baseline,
}

impl Writing<'_> {
    /// Forks the writer. The machine may go on as soon as this returns; `paused_ns` is then asked for how long it stood.
    ///
    /// # Errors
    /// When there is no process or pipe for it; nothing was written then.
    pub fn start(self, paused_ns: impl Fn() -> u64) -> Result<Taking, TakingError> {
        let (ours, theirs) = pipe_with(PipeFlags::CLOEXEC).map_err(|error| TakingError::Pipe(error.into()))?;
        rustix::io::ioctl_fionbio(&ours, true).map_err(|error| TakingError::Pipe(error.into()))?;
        match fork::split()? {
            Side::Child => self.write_and_exit(File::from(theirs)),
            Side::Parent(_) => Ok(Taking {
                pipe: File::from(ours),
                received: Vec::new(),
                memory_file: self.memory_file,
                pause_ns: paused_ns(),
            }),
        }
    }

    /// In the writer's process: writes, reports and ends, without running anything of the VMM's own end.
    fn write_and_exit(self, mut pipe: File) -> ! {
        let result = self.write().map_err(|error| error.to_string());
        let status = match postcard::to_stdvec(&result).map(|bytes| pipe.write_all(&bytes)) {
            Ok(Ok(())) => 0,
            _ => 1,
        };
        // SAFETY: ends this process at once; it shares nothing but files with the VMM.
        unsafe { libc::_exit(status) }
    }

    fn write(self) -> Result<Report, format::FormatError> {
        let WrittenMemory { map, bytes, self_contained } =
            writer::write(self.memory, &self.candidates, self.baseline, &self.memory_file, self.full)?;
        let state = SnapshotState {
            memory_size: self.memory_size,
            vcpu_count: VcpuCount::try_from(u32::try_from(self.state.vcpus.len()).unwrap_or(u32::MAX))
                .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error.to_string()))?,
            memory: map.clone(),
            machine: self.state,
        };
        self.state_file.write_all_at(&format::encode(&state)?, 0)?;
        self.memory_file.sync_data()?;
        self.state_file.sync_data()?;
        self.disks.sync()?;
        Ok(Report { map, bytes, self_contained })
    }
}

impl Taking {
    /// Readable when [`Taking::advance`] has something to do.
    #[must_use]
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.pipe.as_fd()
    }

    /// Takes what the writer has reported; `Some` once it is done. `baseline` is the one it was given.
    pub fn advance(&mut self, baseline: &Baseline) -> Option<Result<Taken, String>> {
        let mut bytes = [0; 4096];
        loop {
            match self.pipe.read(&mut bytes) {
                Ok(0) => return Some(self.finish(baseline)),
                Ok(n) if self.received.len() + n > MAX_REPORT => {
                    return Some(Err("the snapshot's writer reports nonsense".into()));
                }
                Ok(n) => self.received.extend_from_slice(&bytes[..n]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return None,
                Err(error) => return Some(Err(format!("cannot read from the snapshot's writer: {error}"))),
            }
        }
    }

    fn finish(&self, baseline: &Baseline) -> Result<Taken, String> {
        let report: Result<Report, String> = postcard::from_bytes(&self.received)
            .map_err(|_| "the process writing the snapshot was killed; the sandbox runs on".to_owned())?;
        let report = report?;
        let memory_file =
            self.memory_file.try_clone().map_err(|error| format!("cannot keep the memory file: {error}"))?;
        let mut files = if report.self_contained { Vec::new() } else { baseline.files.clone() };
        files.push(Arc::new(memory_file));
        Ok(Taken {
            report: SnapshotReport {
                pause_ns: self.pause_ns,
                memory_bytes: report.bytes,
                self_contained: report.self_contained,
            },
            baseline: Baseline { map: report.map, files },
        })
    }
}
