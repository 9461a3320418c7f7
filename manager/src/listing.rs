//! Lists the sandboxes of a home, each with its state and what its supervisor maintains.

use crate::{
    home::directory::DirectoryError,
    manager::{FindError, Manager},
    record::SandboxRecord,
    supervision::status::SupervisionStatus,
    vmm::state::State,
};
use sandboxvm_protocol::ids::SandboxId;
use serde::Serialize;

/// A sandbox whose files say no more what it is: it may run, and can be removed by its ID.
#[derive(Debug)]
pub struct Unreadable {
    /// Its ID.
    pub id: SandboxId,
    /// What is wrong with it.
    pub error: FindError,
}

/// One row of `ls`.
#[derive(Debug, Clone, Serialize)]
pub struct SandboxSummary {
    /// What it was made as.
    #[serde(flatten)]
    pub record: SandboxRecord,
    /// What it does.
    #[serde(flatten)]
    pub state: State,
    /// What is kept up for it.
    pub supervision: Option<SupervisionStatus>,
}

impl Manager {
    /// All sandboxes, oldest first, with what they do. Those that cannot be read are in [`Self::list_with_unreadable`].
    ///
    /// # Errors
    /// When the home cannot be listed.
    pub fn list(&self) -> Result<Vec<SandboxSummary>, DirectoryError> {
        Ok(self.list_with_unreadable()?.0)
    }

    /// The same, and those that cannot be read.
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

    /// `None` when there is none with this ID.
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
    fn the_list_is_in_order_and_leaves_out_what_cannot_be_read() {
        let (_dir, manager) = manager_with(&["bbbbbbbb", "aaaaaaaa"]);
        fs::create_dir(manager.home.sandboxes().join("cccccccc")).unwrap();
        let ids: Vec<String> = manager.list().unwrap().iter().map(|s| s.record.id.to_string()).collect();
        assert_eq!(ids, ["aaaaaaaa", "bbbbbbbb"]);
    }
}
