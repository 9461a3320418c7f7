//! A process forked off the VMM that writes files while the machine runs on, and reports over a pipe when it is done. It
//! sees memory and tables as they stood when it was made. Knows nothing of what is written; called by
//! [`crate::snapshot::taking`] and [`crate::disks`], driven by [`crate::event_loop`].

use crate::fork::{self, ForkError, Side};
use rustix::pipe::{PipeFlags, pipe_with};
use serde::{Serialize, de::DeserializeOwned};
use std::{
    fmt::Display,
    fs::File,
    io::{self, Read, Write},
    marker::PhantomData,
    os::fd::{AsFd, BorrowedFd},
};

/// Longest report, in bytes: a memory map of the most runs is far below.
const MAX_REPORT: usize = 1 << 20;

/// Why there is no writer.
#[derive(Debug, thiserror::Error)]
pub enum WriterError {
    /// No process for it.
    #[error(transparent)]
    Fork(Box<ForkError>),
    /// No pipe to it.
    #[error("cannot make a pipe to the process that is to write: {0}")]
    Pipe(io::Error),
}

/// A writer at work, which reports a `T`.
#[derive(Debug)]
pub struct WriterProcess<T> {
    pipe: File,
    received: Vec<u8>,
    report: PhantomData<T>,
}

impl<T: Serialize + DeserializeOwned> WriterProcess<T> {
    /// Forks a process that does `write` and ends, without running anything of the VMM's own end.
    ///
    /// # Errors
    /// When there is no process or pipe for it; nothing was written then.
    pub fn start<E: Display>(write: impl FnOnce() -> Result<T, E>) -> Result<Self, WriterError> {
        let (ours, theirs) = pipe_with(PipeFlags::CLOEXEC).map_err(|error| WriterError::Pipe(error.into()))?;
        rustix::io::ioctl_fionbio(&ours, true).map_err(|error| WriterError::Pipe(error.into()))?;
        match fork::split().map_err(|error| WriterError::Fork(Box::new(error)))? {
            Side::Child => {
                let mut pipe = File::from(theirs);
                let result = write().map_err(|error| error.to_string());
                let status = match postcard::to_stdvec(&result).map(|bytes| pipe.write_all(&bytes)) {
                    Ok(Ok(())) => 0,
                    _ => 1,
                };
                // SAFETY: ends this process at once; it shares nothing but files with the VMM.
                unsafe { libc::_exit(status) }
            }
            Side::Parent(_) => Ok(Self { pipe: File::from(ours), received: Vec::new(), report: PhantomData }),
        }
    }

    /// Readable when [`WriterProcess::advance`] has something to do.
    #[must_use]
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.pipe.as_fd()
    }

    /// Takes what the writer has said; `Some` once it is done.
    pub fn advance(&mut self) -> Option<Result<T, String>> {
        let mut bytes = [0; 4096];
        loop {
            match self.pipe.read(&mut bytes) {
                Ok(0) => return Some(self.report()),
                Ok(n) if self.received.len() + n > MAX_REPORT => {
                    return Some(Err("the process that writes reports nonsense".into()));
                }
                Ok(n) => self.received.extend_from_slice(&bytes[..n]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return None,
                Err(error) => return Some(Err(format!("cannot read from the process that writes: {error}"))),
            }
        }
    }

    fn report(&self) -> Result<T, String> {
        let report: Result<T, String> = postcard::from_bytes(&self.received)
            .map_err(|_| "the process writing it was killed; the sandbox runs on".to_owned())?;
        report
    }
}
