//! A user that no other process has, and no privilege at all.

use super::{
    error::{ConfineError, failed, step},
    isolation,
    switches::{Protection, is_off},
};
use rustix::process::{DumpableBehavior, set_dumpable_behavior};
use rustix::thread::{CapabilitySet, CapabilitySets, set_capabilities, set_keep_capabilities, set_no_new_privs};
use sandboxvm_protocol::vmm::{JailPart, users};
use std::io;

/// Takes an identity that no other process has, in a user namespace that has none of the host's. For root. Returns what the
/// host does not give.
pub(super) fn become_nobody() -> Result<Vec<JailPart>, ConfineError> {
    let mut missing = Vec::new();
    // SAFETY: no pointers but an empty list.
    checked(unsafe { libc::setgroups(0, std::ptr::null()) }, "giving up groups")?;
    // A host may keep user namespaces from those without privileges, so they go one step later than the user.
    set_keep_capabilities(true).map_err(failed("keeping privileges for one more step"))?;
    let own = users::of_vmm(std::process::id());
    let own = if is_off(Protection::OwnUser) { users::SHARED } else { own };
    if take(own).is_err() {
        missing.push(JailPart::OwnUser);
        take(users::SHARED)?;
    }
    // What live forks, who share a user, may not do to each other either. Root may still look into it.
    set_dumpable_behavior(DumpableBehavior::NotDumpable).map_err(failed("keeping equals from tracing it"))?;
    let only = CapabilitySet::SYS_ADMIN;
    let sets = CapabilitySets { effective: only, permitted: only, inheritable: CapabilitySet::empty() };
    set_capabilities(None, sets).map_err(failed("giving up privileges"))?;
    if !isolation::own_users() {
        missing.push(JailPart::UserNamespace);
    }
    Ok(missing)
}

fn take(user: u32) -> Result<(), ConfineError> {
    // SAFETY: plain numbers.
    checked(unsafe { libc::setresgid(user, user, user) }, "giving up the group root")?;
    // SAFETY: plain numbers.
    checked(unsafe { libc::setresuid(user, user, user) }, "giving up the user root")
}

/// Gives up every capability; a new user namespace comes with all that count in it.
pub(super) fn give_up_capabilities() -> Result<(), ConfineError> {
    let none = CapabilitySet::empty();
    set_capabilities(None, CapabilitySets { effective: none, permitted: none, inheritable: none })
        .map_err(failed("giving up all privileges"))
}

/// From here on no program this process could execute has more privileges than it has.
pub(super) fn no_new_privileges() -> Result<(), ConfineError> {
    set_no_new_privs(true).map_err(failed("giving up new privileges"))
}

fn checked(result: libc::c_int, what: &'static str) -> Result<(), ConfineError> {
    if result == 0 { Ok(()) } else { Err(step(what)(io::Error::last_os_error())) }
}
