//! A control group for each VMM, in the version 2 hierarchy. Everything that a VMM starts is in its
//! group too and cannot leave it, so that killing all processes of the group ends the sandbox,
//! whatever code took over the VMM. A VMM is in its group from its start ([`crate::vmm::spawn`]). A
//! live fork is moved before its guest runs, since the filter of system calls could not let a VMM
//! choose a group without letting it make namespaces.
//!
//! ```text
//! handle   an open group: its bounds, its processes and their end
//! taking   gives a sandbox its group
//! place    where groups can be made
//! making   makes one, with the controllers that the place can give
//! pool     groups made ahead, so that a start does not wait for one
//! ```
//! The path of the group is recorded in the sandbox's directory before it is used, as a symbolic
//! link, so that any process that removes the sandbox finds it, even after a kill -9 of any
//! process. The group is removed with the sandbox and not with its VMM. If the group has
//! controllers, it limits memory and processes of the VMM and of everything that it starts. If
//! there is no group, [`crate::vmm::family`] ends what can be found. This module may never end or
//! remove a group whose name does not start with [`PREFIX`].

mod handle;
mod making;
pub(crate) mod place;
pub(crate) mod pool;
mod taking;

pub(crate) use handle::{Group, LINK, PREFIX};
pub(crate) use making::give_controllers;
pub use making::{Containment, containment};

#[cfg(test)]
mod tests;
