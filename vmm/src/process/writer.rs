//! A process forked off the VMM that writes files while the machine keeps running, and reports over a pipe when it is done.
//! It sees memory and tables as they were when it was made, keeps no descriptor but those it is allowed, and ends with the
//! VMM: no process may mistake it for the machine it was forked off. Knows nothing of what is written.

use super::split::{Side, SplitError, close_all_but, split};
use crate::confine;
use rustix::pipe::{PipeFlags, pipe_with};
use serde::{Serialize, de::DeserializeOwned};
use std::{
    fmt::Display,
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

/// A writer at work, which reports a `T`.
#[derive(Debug)]
pub struct WriterProcess<T> {
    pipe: File,
    received: Vec<u8>,
    report: PhantomData<T>,
}

/// In the writer: closes the sandbox's lock, its sockets and their connections, gives up the system calls that writing does
/// not need, and makes the writer end when the VMM does.
fn stand_alone(keep: &[RawFd]) -> Result<(), String> {
    // SAFETY: plain numbers. The VMM's thread that forked us lives as long as the VMM.
    unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
    close_all_but(keep).map_err(|error| error.to_string())?;
    confine::restrict_to_writing().map_err(|error| error.to_string())
}

impl<T: Serialize + DeserializeOwned> WriterProcess<T> {
    /// Forks a process that does `write`, with the descriptors in `keep`, and ends without running anything of the VMM's
    /// own end.
    ///
    /// # Errors
    /// When there is no process or pipe for it; nothing was written then.
    pub fn start<E: Display>(mut keep: Vec<RawFd>, write: impl FnOnce() -> Result<T, E>) -> Result<Self, WriterError> {
        let (ours, theirs) = pipe_with(PipeFlags::CLOEXEC).map_err(|error| WriterError::Pipe(error.into()))?;
        rustix::io::ioctl_fionbio(&ours, true).map_err(|error| WriterError::Pipe(error.into()))?;
        match split()? {
            Side::Child => {
                let mut pipe = File::from(theirs);
                keep.extend([io::stderr().as_raw_fd(), pipe.as_raw_fd()]);
                let result = stand_alone(&keep).and_then(|()| write().map_err(|error| error.to_string()));
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::{fs, time::Duration};

    fn finish<T: Serialize + DeserializeOwned>(mut writer: WriterProcess<T>) -> Result<T, String> {
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
            let open = fs::read_dir("/proc/self/fd").map_err(|error| error.to_string())?;
            let numbers = open.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
            Ok::<Vec<RawFd>, String>(numbers.collect())
        });
        let open = finish(writer.unwrap()).unwrap();
        assert!(open.contains(&kept.as_raw_fd()) && !open.contains(&other.as_raw_fd()), "{open:?}");
        // Standard error, the pipe, what was given, and the directory being read.
        assert_eq!(open.len(), 4, "{open:?}");
    }

    #[test]
    fn a_failure_is_told_and_so_is_a_death() {
        let failed = WriterProcess::<()>::start(Vec::new(), || Err("no room"));
        assert_eq!(finish(failed.unwrap()), Err("no room".to_owned()));
        let killed = WriterProcess::<()>::start(Vec::new(), || {
            // SAFETY: ends the writer alone.
            unsafe { libc::_exit(9) };
            #[expect(unreachable_code, reason = "the closure must have a result")]
            Err("unreachable")
        });
        assert!(finish(killed.unwrap()).unwrap_err().contains("was killed"));
    }
}
