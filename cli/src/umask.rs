//! The umask: the caller's is for what a command makes for its caller, and ours for everything else. What is in a home is
//! for its owner alone, and usable by its owner, whatever umask(2) a shell or service manager passes on.

use rustix::{fs::Mode, process::umask};
use std::sync::OnceLock;

static OF_CALLER: OnceLock<u32> = OnceLock::new();

/// Takes ours on. Before there are threads, and before anything is made.
pub(crate) fn take_on_ours() {
    let of_caller = umask(Mode::RWXG | Mode::RWXO);
    // Called once.
    let _ = OF_CALLER.set(of_caller.bits());
}

/// Bits of a mode that the caller's files do not get.
pub(crate) fn of_caller() -> u32 {
    OF_CALLER.get().copied().unwrap_or(0o022)
}
