//! The end of the machine: brings the disks into a clean state, then resets the machine, which ends
//! the VMM.
//!
//! For PID 1 only, after the server has ended every process. A sandbox cannot power off: the VMM
//! ends at the reset through the i8042 (`reboot=k`), and the byte on the notify port before it
//! distinguishes an orderly end.

use crate::{boot, notify::NotifyPort};
use rustix::system::{RebootCommand, reboot};
use std::fmt::Display;
use std::time::Duration;

/// Syncs, leaves the writable disk and the volumes cleanly unmounted or read-only, and resets the machine.
pub(crate) fn in_order(notify: &mut NotifyPort) -> ! {
    boot::mounts::seal_writable_disks();
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
    // Reached only if the reset was refused. The end of PID 1 is then a panic of the guest kernel,
    // which also ends the VMM.
    std::thread::sleep(Duration::from_secs(1));
    std::process::exit(125)
}
