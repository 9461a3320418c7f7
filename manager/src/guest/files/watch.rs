//! Changes in a directory of a guest, as they happen.

use super::{FileError, reply_of};
use crate::guest::connection::{agent::AgentConnection, route::Route};
use sandboxvm_archive::temporary_replaces;
use sandboxvm_protocol::agent::{
    details::Observation,
    files::{FileChange, FileReply},
};
use std::collections::VecDeque;

/// A stream of changes. If it is not read, the kernel of the guest drops some, which is reported as
/// well. Dropping the value ends the watch.
#[derive(Debug)]
pub struct FileWatch<'s> {
    sandbox: &'s dyn Route,
    connection: AgentConnection,
    /// The rest of one message, whose size is capped.
    changes: VecDeque<Observation>,
    ended: bool,
}

impl<'s> FileWatch<'s> {
    pub(super) fn new(sandbox: &'s dyn Route, connection: AgentConnection) -> Self {
        Self { sandbox, connection, changes: VecDeque::new(), ended: false }
    }

    /// Returns the next change, or `None` once the directory itself has been removed. Cancel safe.
    ///
    /// # Errors
    /// When the connection ends, as it does when the machine is restored or reset.
    pub async fn next(&mut self) -> Result<Option<FileChange>, FileError> {
        Ok(self.next_observed().await?.map(|observed| observed.change))
    }

    /// Like [`Self::next`], with the details of the file if [`super::Files::observe`] asked for
    /// them.
    ///
    /// # Errors
    /// Like [`Self::next`].
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
                Err(error) => return Err(self.sandbox.explained(error.into()).await.into()),
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

/// Returns true for a temporary file that has not reached its place yet. Older agents report these
/// too.
fn is_temporary(change: &FileChange) -> bool {
    let name = change.path.as_ref().and_then(|path| path.as_bytes().rsplit(|byte| *byte == b'/').next());
    name.is_some_and(|name| temporary_replaces(name).is_some())
}

#[cfg(test)]
mod tests {
    use super::*;
    use sandboxvm_protocol::agent::files::{ChangeKind, FilePath};

    #[test]
    fn temporary_files_are_not_reported() {
        let of =
            |path: &str| is_temporary(&FileChange { kind: ChangeKind::Created, path: FilePath::try_from(path).ok() });
        assert!(of(".sandboxvm-0123456789abcdef") && of("sub/.sandboxvm-0123456789abcdef-r"));
        assert!(!of(".sandboxvm-0123456789abcdef/a") && !of(".sandboxvm-x") && !of("a"));
    }
}
