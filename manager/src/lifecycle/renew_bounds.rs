//! Bounds existing control groups again. systemd removes the controllers below the group of a service
//! when the service starts again, and with them the bounds of the VMMs that outlived it.

use crate::{
    create::parts,
    home::directory::SandboxDirectory,
    manager::Manager,
    record::SandboxRecord,
    vmm::group::{self, Group, pool},
};

impl Manager {
    /// Bounds the control groups of all sandboxes, and those of the pool, as when they were made. A
    /// sandbox that cannot be read keeps the bounds that it has.
    pub fn renew_bounds(&self) {
        if !group::give_controllers() {
            return;
        }
        for id in self.ids().unwrap_or_default() {
            let Ok(directory) = SandboxDirectory::open(self.home.sandbox(&id)) else { continue };
            if let (Some(group), Ok(record)) = (Group::of(&directory), SandboxRecord::read(&directory)) {
                group.remake();
                parts::bound(&group, &record);
            }
        }
        pool::renew(&self.home);
    }
}
