//! Lists the sandboxes of a home, each with its state and its services. May not change any of them.

use crate::{
    home::directory::DirectoryError,
    manager::{FindError, Manager},
    record::SandboxRecord,
    supervision::status::SupervisionStatus,
    vmm::state::State,
};
use sandboxvm_protocol::identity::SandboxId;
use serde::Serialize;

/// A sandbox whose record cannot be read. It may run, and can be removed by its ID.
#[derive(Debug)]
pub struct Unreadable {
    /// The ID of the sandbox.
    pub id: SandboxId,
    /// Why it cannot be read.
    pub error: FindError,
}

/// A row of `ls`.
#[derive(Debug, Clone, Serialize)]
pub struct SandboxSummary {
    /// The record of the sandbox.
    #[serde(flatten)]
    pub record: SandboxRecord,
    /// The state of the sandbox.
    #[serde(flatten)]
    pub state: State,
    /// The services of the sandbox, if it has any.
    pub supervision: Option<SupervisionStatus>,
}

impl Manager {
    /// Returns all sandboxes with their states, oldest first. [`Self::list_with_unreadable`] also
    /// returns those that cannot be read.
    ///
    /// # Errors
    /// When the home cannot be listed.
    pub fn list(&self) -> Result<Vec<SandboxSummary>, DirectoryError> {
        Ok(self.list_with_unreadable()?.0)
    }

    /// Like [`Self::list`], and also returns the sandboxes that cannot be read.
    ///
    /// # Errors
    /// When the home cannot be listed.
    pub fn list_with_unreadable(&self) -> Result<(Vec<SandboxSummary>, Vec<Unreadable>), DirectoryError> {
        let (mut summaries, mut unreadable) = (Vec::new(), Vec::new());
        for id in self.ids()? {
            match self.summary(&id) {
                Ok(summary) => summaries.extend(summary),
                Err(error) => unreadable.push(Unreadable { id, error }),
            }
        }
        summaries.sort_by(|a, b| (a.record.created_at, &a.record.id).cmp(&(b.record.created_at, &b.record.id)));
        unreadable.sort_by(|a, b| a.id.cmp(&b.id));
        Ok((summaries, unreadable))
    }

    /// Returns `None` if no sandbox has this ID.
    fn summary(&self, id: &SandboxId) -> Result<Option<SandboxSummary>, FindError> {
        let Some(sandbox) = self.open_sandbox(id)? else { return Ok(None) };
        let supervision = sandbox.supervision().ok().flatten();
        Ok(Some(SandboxSummary { state: sandbox.state()?, supervision, record: sandbox.record }))
    }
}

#[cfg(test)]
mod tests {
    use crate::manager::tests::manager_with;
    use std::fs;

    #[test]
    fn list_is_sorted_and_omits_unreadable_sandboxes() {
        let (_dir, manager) = manager_with(&["bbbbbbbb", "aaaaaaaa"]);
        fs::create_dir(manager.home.sandboxes().join("cccccccc")).unwrap();
        let ids: Vec<String> = manager.list().unwrap().iter().map(|s| s.record.id.to_string()).collect();
        assert_eq!(ids, ["aaaaaaaa", "bbbbbbbb"]);
    }
}
