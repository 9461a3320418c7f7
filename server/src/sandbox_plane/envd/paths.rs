//! Paths as E2B's clients state them: from the root, from the user's home, or with a tilde for that.

use super::{
    connect::{Call, ConnectError, text},
    homes::Home,
};
use crate::channel::paths;
use sandboxvm_manager::FilePath;

/// The home of the call's user, which its sandbox is asked for once: users do not move.
pub(super) async fn home(call: &Call) -> Result<Home, ConnectError> {
    let homes = &call.state().homes;
    if let Some(home) = homes.of(&call.user) {
        return Ok(home);
    }
    let entry = call.files().stat(path(".")?, true).await?;
    let is_own = entry.owner.as_bytes() == call.user.as_bytes();
    let home = Home { path: text(&entry.path), group: is_own.then_some(entry.gid) };
    homes.add(&call.user, &home);
    Ok(home)
}

/// A path for the agent, which takes one that does not begin at the root from the user's home.
pub(super) fn path(text: &str) -> Result<FilePath, ConnectError> {
    paths::agent_path(text).map_err(ConnectError::invalid)
}

/// What is below the user's home, of a path that does not begin at the root.
pub(super) fn below_home(text: &str) -> Result<&str, ConnectError> {
    paths::below_home(text).map_err(ConnectError::invalid)
}
