//! Which sandboxes have a volume, by their records. May not decide whether one may be used: locks do.

use super::name::VolumeName;
use crate::{
    home::layout::Home,
    manager::{FindError, Manager},
    sandbox::Sandbox,
    vmm::state,
};
use sandboxvm_protocol::ids::{SandboxId, SandboxName};
use serde::Serialize;
use std::collections::HashMap;

/// A sandbox that has a volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct VolumeUser {
    /// ID of the sandbox.
    pub id: SandboxId,
    /// Name of the sandbox, if it has one.
    pub name: Option<SandboxName>,
    /// It cannot write the volume.
    pub read_only: bool,
    /// It runs or is paused.
    pub is_live: bool,
}

impl VolumeUser {
    /// Returns the name of the sandbox, or its ID if it has none.
    #[must_use]
    pub fn label(&self) -> String {
        self.name.as_ref().map_or_else(|| self.id.to_string(), ToString::to_string)
    }
}

/// What is done about a sandbox whose record cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unreadable {
    /// It is left out.
    Ignored,
    /// It may have any volume, so there is no answer.
    Refused,
}

/// Returns the users of each volume, those that run first.
pub(super) fn by_volume(
    home: &Home,
    unreadable: Unreadable,
) -> Result<HashMap<VolumeName, Vec<VolumeUser>>, FindError> {
    let manager = Manager { home: home.clone() };
    let mut users: HashMap<VolumeName, Vec<VolumeUser>> = HashMap::new();
    for id in manager.ids()? {
        let Sandbox { directory, record, .. } = match manager.open_sandbox(&id) {
            Ok(Some(sandbox)) => sandbox,
            Ok(None) => continue,
            Err(_) if unreadable == Unreadable::Ignored => continue,
            Err(error) => return Err(error),
        };
        if record.mounts.is_empty() {
            continue;
        }
        let is_live = state::read(&directory).is_ok_and(|state| state.is_live());
        for volume in record.mounts.volumes() {
            let (id, name) = (record.id.clone(), record.name.clone());
            let user = VolumeUser { id, name, read_only: volume.read_only, is_live };
            users.entry(volume.name.clone()).or_default().push(user);
        }
    }
    for users in users.values_mut() {
        users.sort_by(|a, b| (!a.is_live, &a.id).cmp(&(!b.is_live, &b.id)));
    }
    Ok(users)
}

/// Returns a sandbox that runs and has the volume, for a message.
pub(super) fn holder(home: &Home, name: &VolumeName) -> String {
    let users = by_volume(home, Unreadable::Ignored).ok().and_then(|mut users| users.remove(name));
    match users.into_iter().flatten().find(|user| user.is_live) {
        Some(user) => {
            format!("sandbox {}{}", user.label(), if user.read_only { ", read-only" } else { "" })
        }
        None => "a sandbox that is being created or removed".to_owned(),
    }
}
