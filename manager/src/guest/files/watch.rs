//! Changes in a guest's directory, as they happen.

use super::{FileError, reply_of};
use crate::{guest::agent::AgentConnection, sandbox::Sandbox};
use sandboxvm_archive::temporary_replaces;
use sandboxvm_protocol::agent::{
    details::Observation,
    files::{FileChange, FileReply},
};
use std::collections::VecDeque;

/// Changes as they are told. Not reading makes the guest's kernel drop some, which is told too; dropping it ends it.
#[derive(Debug)]
pub struct FileWatch<'s> {
    sandbox: &'s Sandbox,
    connection: AgentConnection,
    /// Of one message: it is capped.
    changes: VecDeque<Observation>,
    ended: bool,
}

impl<'s> FileWatch<'s> {
    pub(super) fn new(sandbox: &'s Sandbox, connection: AgentConnection) -> Self {
        Self { sandbox, connection, changes: VecDeque::new(), ended: false }
    }

    /// The next change; `None` once the directory itself is gone. Cancel safe.
    ///
    /// # Errors
    /// When the connection ends, as it does by a restore or reset of the machine.
    pub async fn next(&mut self) -> Result<Option<FileChange>, FileError> {
        Ok(self.next_observed().await?.map(|observed| observed.change))
    }

    /// As [`Self::next`], with the file where [`super::Files::observe`] asked for it.
    ///
    /// # Errors
    /// As [`Self::next`].
    pub async fn next_observed(&mut self) -> Result<Option<Observation>, FileError> {
        loop {
            if let Some(observed) = self.changes.pop_front() {
                return Ok(Some(observed));
            }
            if self.ended {
                return Ok(None);
            }
            let message = match self.connection.reader.next_message().await {
                Ok(message) => message,
                Err(error) => return Err(self.sandbox.explain(error.into()).await.into()),
            };
            match reply_of(message)? {
                FileReply::Changes(changes) => {
                    let shown = changes.into_iter().filter(|change| !is_temporary(change));
                    self.changes = shown.map(|change| Observation { change, details: None }).collect();
                }
                FileReply::Observed(observed) => self.changes = observed.into(),
                FileReply::Done(_) => self.ended = true,
                _ => return Err(FileError::unexpected("message while a directory is watched")),
            }
        }
    }
}

/// True for a file that is on its way to its place, of which older agents tell too.
fn is_temporary(change: &FileChange) -> bool {
    let name = change.path.as_ref().and_then(|path| path.as_bytes().rsplit(|byte| *byte == b'/').next());
    name.is_some_and(|name| temporary_replaces(name).is_some())
}

#[cfg(test)]
mod tests {
    use super::*;
    use sandboxvm_protocol::agent::files::{ChangeKind, FilePath};

    #[test]
    fn files_on_their_way_to_their_place_are_not_shown() {
        let of =
            |path: &str| is_temporary(&FileChange { kind: ChangeKind::Created, path: FilePath::try_from(path).ok() });
        assert!(of(".sandboxvm-0123456789abcdef") && of("sub/.sandboxvm-0123456789abcdef-r"));
        assert!(!of(".sandboxvm-0123456789abcdef/a") && !of(".sandboxvm-x") && !of("a"));
    }
}
