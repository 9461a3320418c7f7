//! The end of the machine: disks to a clean state, then a reset that the VMM takes as the stop.
//!
//! For PID 1 only, once the server has ended every process. A sandbox cannot power off: the reset through the
//! i8042 (`reboot=k`) is what the VMM stops at, and the notify byte before it tells an orderly end from any other.

use crate::{boot, notify::NotifyPort};
use rustix::system::{RebootCommand, reboot};
use std::fmt::Display;
use std::time::Duration;

/// Syncs, leaves the writable disk cleanly unmounted or read-only, and resets the machine.
pub(crate) fn in_order(notify: &mut NotifyPort) -> ! {
    boot::mounts::seal_writable_disk();
    notify.shutting_down();
    reset()
}

/// Reports on the console why the machine cannot continue, and resets it without the byte that means an orderly end.
pub(crate) fn stop_after(cause: &dyn Display) -> ! {
    eprintln!("sandboxvm-agent: {cause}");
    rustix::fs::sync();
    reset()
}

fn reset() -> ! {
    if let Err(error) = reboot(RebootCommand::Restart) {
        eprintln!("sandboxvm-agent: cannot reset the machine: {error}");
    }
    // Only reached when the reset was refused. PID 1 that ends is a guest kernel panic, which the VMM also stops at.
    std::thread::sleep(Duration::from_secs(1));
    std::process::exit(125)
}
