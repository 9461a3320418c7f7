//! Bounding existing control groups again. systemd takes the controllers below a service's group away when the service starts
//! again, and with them the bounds of the VMMs that outlived it.

use super::{Group, making, pool};
use crate::{directory::SandboxDirectory, manager::Manager, parts, record::SandboxRecord};

impl Manager {
    /// Bounds the control groups of all sandboxes, and those made ahead, as when they were made. A sandbox that cannot be read
    /// keeps the bounds that it has.
    pub fn renew_bounds(&self) {
        // Gives the controllers.
        if making::best_place().is_none() {
            return;
        }
        for id in self.ids().unwrap_or_default() {
            let Ok(directory) = SandboxDirectory::open(self.home.sandbox(&id)) else { continue };
            if let (Some(group), Ok(record)) = (Group::of(&directory), SandboxRecord::read(&directory)) {
                // What does not exist or is not to be had bounds nothing, as when it was made.
                let _ = making::make(group.path());
                parts::bound(&group, &record);
            }
        }
        pool::renew(&self.home);
    }
}
