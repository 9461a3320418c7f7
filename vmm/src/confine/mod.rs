//! Giving up what a VMM does not need, before the first guest instruction: namespaces, file system, privileges, and the
//! system calls that are left. Called by [`crate::session`], once each.
//!
//! A process started by root takes every step or does not run a guest. One started by somebody else lacks the privilege
//! for namespaces and an identity of its own: it takes the other steps, and what is missing is told.

mod dispatch;
mod isolation;
mod syscalls;

use rustix::process::{Resource, Rlimit, getuid, setrlimit};
use std::io;

/// Why the process is not confined; it must not run a guest then.
#[derive(Debug, thiserror::Error)]
pub enum ConfineError {
    /// A step failed.
    #[error("cannot confine the VMM: {step}: {source}")]
    Step {
        /// What was tried.
        step: &'static str,
        /// Why it failed.
        source: io::Error,
    },
    /// The system call filter.
    #[error("cannot confine the VMM: the system call filter was not taken: {0}")]
    Filter(#[from] seccompiler::Error),
}

fn step(step: &'static str) -> impl FnOnce(io::Error) -> ConfineError {
    move |source| ConfineError::Step { step, source }
}

/// Takes this process out of the host: called when `/dev/kvm` is open, before any thread is started, so that every
/// thread begins outside.
///
/// # Errors
/// See [`ConfineError`].
pub fn isolate() -> Result<(), ConfineError> {
    no_core_dumps()?;
    if getuid().is_root() {
        isolation::leave_the_host()?;
        isolation::become_nobody()?;
    }
    isolation::no_new_privileges()
}

/// Leaves this process, all threads it will start and every process forked off it the system calls that build and run a
/// machine. Called after [`isolate`], before the process is told what machine that is.
///
/// # Errors
/// See [`ConfineError`].
pub fn restrict_syscalls() -> Result<(), ConfineError> {
    syscalls::filter()
}

/// A core file would hold the guest's memory.
fn no_core_dumps() -> Result<(), ConfineError> {
    setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) })
        .map_err(|error| step("forbidding core dumps")(error.into()))
}
