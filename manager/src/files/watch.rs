//! Changes in a guest's directory, as they happen.

use super::{FileError, reply_of};
use crate::{agent::AgentConnection, sandbox::Sandbox};
use sandboxvm_protocol::agent::files::{FileChange, FileReply};
use std::collections::VecDeque;

/// Changes as they are told. Not reading makes the guest's kernel drop some, which is told too; dropping it ends it.
#[derive(Debug)]
pub struct FileWatch<'s> {
    sandbox: &'s Sandbox,
    connection: AgentConnection,
    /// Of one message: it is capped.
    changes: VecDeque<FileChange>,
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
        loop {
            if let Some(change) = self.changes.pop_front() {
                return Ok(Some(change));
            }
            if self.ended {
                return Ok(None);
            }
            let message = match self.connection.reader.next_message().await {
                Ok(message) => message,
                Err(error) => return Err(self.sandbox.explain(error.into()).await.into()),
            };
            match reply_of(message)? {
                FileReply::Changes(changes) => self.changes = changes.into(),
                FileReply::Done(_) => self.ended = true,
                _ => return Err(FileError::unexpected("message while a directory is watched")),
            }
        }
    }
}
