//! A process forked off the VMM that writes files while the machine keeps running, and reports over a pipe when it is done.
//! It sees memory and tables as they were when it was made, keeps no descriptor but those it is allowed, and ends with the
//! VMM: no process may mistake it for the machine it was forked off. Knows nothing of what is written.

use super::{
    failure::kind_of,
    split::{Side, SplitError, close_all_but, split},
};
use crate::confine;
use rustix::pipe::{PipeFlags, pipe_with};
use sandboxvm_protocol::vmm::RefusalKind;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::{
    fs::File,
    io::{self, Read, Write},
    marker::PhantomData,
    os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd},
};

/// Longest report, in bytes: a memory map of the most runs is far below.
const MAX_REPORT: usize = 1 << 20;

/// Why there is no writer.
#[derive(Debug, thiserror::Error)]
pub enum WriterError {
    /// No process for it.
    #[error(transparent)]
    Split(#[from] SplitError),
    /// No pipe to it.
    #[error("cannot make a pipe to the process that is to write: {0}")]
    Pipe(io::Error),
}

impl WriterError {
    /// Returns the kind of refusal that a client receives.
    #[must_use]
    pub fn kind(&self) -> RefusalKind {
        match self {
            Self::Split(error) => error.kind(),
            Self::Pipe(source) => kind_of(source),
        }
    }
}

/// Why a writer did not write what it was to write, in the form in which it crosses the pipe.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct WriteFailure {
    /// For programs.
    pub kind: RefusalKind,
    /// For people.
    pub message: String,
}

impl WriteFailure {
    /// Returns the failure of a call to the host's kernel.
    #[must_use]
    pub fn host(error: &io::Error, what: &str) -> Self {
        Self { kind: kind_of(error), message: format!("{what}: {error}") }
    }

    fn of_the_writer(message: impl ToString) -> Self {
        Self { kind: RefusalKind::Host, message: message.to_string() }
    }
}

/// A writer at work, which reports a `T`.
#[derive(Debug)]
pub struct WriterProcess<T> {
    pipe: File,
    received: Vec<u8>,
    report: PhantomData<T>,
}

/// In the writer: closes the sandbox's lock, its sockets and their connections, gives up the system calls that writing does
/// not need, and makes the writer end when the VMM does.
fn stand_alone(keep: &[RawFd]) -> Result<(), WriteFailure> {
    // SAFETY: plain numbers. The VMM's thread that forked us lives as long as the VMM.
    unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
    close_all_but(keep).map_err(WriteFailure::of_the_writer)?;
    confine::restrict_to_writing().map_err(WriteFailure::of_the_writer)
}

impl<T: Serialize + DeserializeOwned> WriterProcess<T> {
    /// Forks a process that does `write`, with the descriptors in `keep`, and ends without running anything of the VMM's
    /// own end.
    ///
    /// # Errors
    /// When there is no process or pipe for it; nothing was written then.
    pub fn start<E: Into<WriteFailure>>(
        mut keep: Vec<RawFd>,
        write: impl FnOnce() -> Result<T, E>,
    ) -> Result<Self, WriterError> {
        let (ours, theirs) = pipe_with(PipeFlags::CLOEXEC).map_err(|error| WriterError::Pipe(error.into()))?;
        rustix::io::ioctl_fionbio(&ours, true).map_err(|error| WriterError::Pipe(error.into()))?;
        match split()? {
            Side::Child => {
                let mut pipe = File::from(theirs);
                keep.extend([io::stderr().as_raw_fd(), pipe.as_raw_fd()]);
                let result = stand_alone(&keep).and_then(|()| write().map_err(Into::into));
                let status = match postcard::to_stdvec(&result).map(|bytes| pipe.write_all(&bytes)) {
                    Ok(Ok(())) => 0,
                    _ => 1,
                };
                // SAFETY: ends this process, which shares nothing but files with the VMM.
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
    pub fn advance(&mut self) -> Option<Result<T, WriteFailure>> {
        let mut bytes = [0; 4096];
        loop {
            match self.pipe.read(&mut bytes) {
                Ok(0) => return Some(self.report()),
                Ok(n) if self.received.len() + n > MAX_REPORT => {
                    return Some(Err(WriteFailure::of_the_writer("the process that writes reports nonsense")));
                }
                Ok(n) => self.received.extend_from_slice(&bytes[..n]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return None,
                Err(error) => {
                    return Some(Err(WriteFailure::host(&error, "cannot read from the process that writes")));
                }
            }
        }
    }

    fn report(&self) -> Result<T, WriteFailure> {
        let report: Result<T, WriteFailure> = postcard::from_bytes(&self.received)
            .map_err(|_| WriteFailure::of_the_writer("the process writing it was killed; the sandbox runs on"))?;
        report
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{fs, time::Duration};

    fn finish<T: Serialize + DeserializeOwned>(mut writer: WriterProcess<T>) -> Result<T, WriteFailure> {
        loop {
            if let Some(result) = writer.advance() {
                return result;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    #[test]
    fn a_writer_has_no_descriptor_but_those_it_is_given() {
        let (kept, other) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
        let writer = WriterProcess::start(vec![kept.as_raw_fd()], || {
            let open = fs::read_dir("/proc/self/fd").map_err(|error| WriteFailure::host(&error, "cannot look"))?;
            let numbers = open.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
            Ok::<Vec<RawFd>, WriteFailure>(numbers.collect())
        });
        let open = finish(writer.unwrap()).unwrap();
        assert!(open.contains(&kept.as_raw_fd()) && !open.contains(&other.as_raw_fd()), "{open:?}");
        // Standard error, the pipe, what was given, and the directory being read.
        assert_eq!(open.len(), 4, "{open:?}");
    }

    #[test]
    fn a_failure_is_reported_with_its_kind_and_so_is_a_death() {
        let full = || WriteFailure::host(&io::Error::from_raw_os_error(libc::ENOSPC), "cannot write");
        let failed = WriterProcess::<()>::start(Vec::new(), || Err(full()));
        assert_eq!(finish(failed.unwrap()), Err(full()));
        assert_eq!(full().kind, RefusalKind::NoSpace);
        let killed = WriterProcess::<()>::start(Vec::new(), || {
            // SAFETY: ends the writer alone.
            unsafe { libc::_exit(9) };
            #[expect(unreachable_code, reason = "the closure must have a result")]
            Err(full())
        });
        assert!(finish(killed.unwrap()).unwrap_err().message.contains("was killed"));
    }
}
