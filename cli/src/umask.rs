//! The umask. Files that a command creates for its caller get the umask of the caller; all other files get ours, so that
//! only the owner of a home can use its files, whatever umask(2) a shell or service manager passes on.

use rustix::{fs::Mode, process::umask};
use std::sync::OnceLock;

static OF_CALLER: OnceLock<u32> = OnceLock::new();

/// Sets our umask. Must be called before the process starts threads or creates files.
pub(crate) fn take_on_ours() {
    let of_caller = umask(Mode::RWXG | Mode::RWXO);
    // Called once.
    let _ = OF_CALLER.set(of_caller.bits());
}

/// Returns the mode bits that files of the caller do not get.
pub(crate) fn of_caller() -> u32 {
    OF_CALLER.get().copied().unwrap_or(0o022)
}
