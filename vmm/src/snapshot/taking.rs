//! A snapshot being written: the child process that writes it, and what it reports over a pipe when it is done.

use super::{
    MachineState, SnapshotState, format,
    memory_map::MemoryMap,
    writer::{self, Baseline, WrittenMemory},
};
use crate::{
    devices::virtio::block::WritableDisks,
    memory::GuestMemory,
    process::writer::{WriteFailure, WriterError, WriterProcess},
};
use sandboxvm_protocol::{
    machine::{MemorySize, VcpuCount},
    vmm::SnapshotReport,
};
use serde::{Deserialize, Serialize};
use std::{
    fs::File,
    io,
    ops::Range,
    os::fd::{AsRawFd, BorrowedFd},
    os::unix::fs::FileExt,
    sync::Arc,
};

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
    pub disks: &'a WritableDisks,
    /// Where the state goes.
    pub state_file: File,
    /// Where memory goes.
    pub memory_file: Arc<File>,
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
    writer: WriterProcess<Report>,
    memory_file: Arc<File>,
    pause_ns: u64,
}

/// How a snapshot came out.
#[derive(Debug)]
pub struct Taken {
    /// The answer to the request.
    pub report: SnapshotReport,
    /// What the next snapshot is compared with.
    pub baseline: Baseline,
}

impl Writing<'_> {
    /// Forks the writer. The machine may continue as soon as this returns; `paused_ns` then returns how long it was paused.
    ///
    /// # Errors
    /// When there is no process or pipe for it; nothing was written then.
    pub fn start(self, paused_ns: impl Fn() -> u64) -> Result<Taking, WriterError> {
        let memory_file = Arc::clone(&self.memory_file);
        let files = [&self.state_file, &*self.memory_file].map(AsRawFd::as_raw_fd);
        let baseline = self.baseline.files.iter().map(|file| file.as_raw_fd());
        let keep = files.into_iter().chain(baseline).chain(self.disks.descriptors()).collect();
        let writer = WriterProcess::start(keep, || self.write())?;
        Ok(Taking { writer, memory_file, pause_ns: paused_ns() })
    }

    /// In the writer's process.
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

impl From<format::FormatError> for WriteFailure {
    fn from(error: format::FormatError) -> Self {
        Self { kind: error.kind_of_write(), message: error.to_string() }
    }
}

impl Taking {
    /// Readable when [`Taking::advance`] has something to do.
    #[must_use]
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.writer.fd()
    }

    /// Takes what the writer has reported; `Some` once it is done. `baseline` is the one it was given.
    pub fn advance(&mut self, baseline: &Baseline) -> Option<Result<Taken, WriteFailure>> {
        let report = self.writer.advance()?;
        Some(report.map(|report| self.finish(report, baseline)))
    }

    fn finish(&self, report: Report, baseline: &Baseline) -> Taken {
        let mut files = if report.self_contained { Vec::new() } else { baseline.files.clone() };
        files.push(Arc::clone(&self.memory_file));
        Taken {
            report: SnapshotReport {
                pause_ns: self.pause_ns,
                memory_bytes: report.bytes,
                self_contained: report.self_contained,
            },
            baseline: Baseline { map: report.map, files },
        }
    }
}
