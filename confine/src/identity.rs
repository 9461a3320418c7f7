//! Another user in place of root, and no capability.

use crate::outcome::{Missing, Part, Step, failed};
use rustix::thread::{
    CapabilitySet, CapabilitySets, Gid, Uid, clear_ambient_capability_set, remove_capability_from_bounding_set,
    set_capabilities, set_thread_groups, set_thread_res_gid, set_thread_res_uid,
};

/// A user and its group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct User {
    /// User ID.
    pub uid: u32,
    /// Group ID.
    pub gid: u32,
}

/// Becomes the first of `users` that the host has. For root.
pub(super) fn become_one_of(users: &[User]) -> Result<Option<Missing>, Step> {
    // A service may lack the right to do this. Without a capability to start from, the set has no effect.
    for capability in CapabilitySet::all().iter() {
        let _ = remove_capability_from_bounding_set(capability);
    }
    let _ = clear_ambient_capability_set();
    set_thread_groups(&[]).map_err(failed("giving up groups"))?;
    let mut refused = None;
    for (place, user) in users.iter().enumerate() {
        match become_user(*user) {
            Ok(()) => return Ok(refused.map(|error| Missing { part: Part::OwnUser, error })),
            Err((step, error)) if place + 1 == users.len() => return Err((step, error)),
            // As in a container, where users end at some 65536.
            Err((_, error)) => refused = Some(error),
        }
    }
    Ok(None)
}

fn become_user(user: User) -> Result<(), Step> {
    let (uid, gid) = (Uid::from_raw(user.uid), Gid::from_raw(user.gid));
    set_thread_res_gid(gid, gid, gid).map_err(failed("giving up the group root"))?;
    set_thread_res_uid(uid, uid, uid).map_err(failed("giving up the user root"))
}

/// Gives up every capability. A new user namespace comes with all that count in it.
pub(super) fn give_up_capabilities() -> Result<(), Step> {
    let none = CapabilitySet::empty();
    set_capabilities(None, CapabilitySets { effective: none, permitted: none, inheritable: none })
        .map_err(failed("giving up privileges"))
}
