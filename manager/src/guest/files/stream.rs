//! Data that is read from a guest.

use super::{FileError, reply_of};
use crate::{
    guest::connection::{agent::AgentConnection, route::Route},
    vmm::wire::WireError,
};
use sandboxvm_protocol::{
    agent::{
        WIRE,
        files::{FileEntry, FileReply, FileTotals},
    },
    frame::FrameKind,
};

/// The content of a file or an archive, as it arrives. If it is not read, the guest stalls, and no
/// memory grows. Dropping the stream cancels the request.
#[derive(Debug)]
pub struct FileStream<'s> {
    data: Incoming<'s>,
    entry: FileEntry,
}

impl<'s> FileStream<'s> {
    pub(super) fn new(sandbox: &'s dyn Route, connection: AgentConnection, entry: FileEntry) -> Self {
        Self { data: Incoming::new(sandbox, connection), entry }
    }

    /// Returns the file that is being read.
    #[must_use]
    pub fn entry(&self) -> &FileEntry {
        &self.entry
    }

    /// Returns the totals, once [`Self::next`] has returned `None`.
    #[must_use]
    pub fn totals(&self) -> Option<FileTotals> {
        self.data.totals
    }

    /// Returns at most 64 KiB, or `None` at the end. Cancel safe.
    ///
    /// # Errors
    /// When the guest fails, or the connection ends before the data does. The data that arrived
    /// until then is incomplete.
    pub async fn next(&mut self) -> Result<Option<Vec<u8>>, FileError> {
        self.data.next().await
    }
}

/// Data that follow the first reply, up to the totals.
#[derive(Debug)]
pub(super) struct Incoming<'s> {
    sandbox: &'s dyn Route,
    connection: AgentConnection,
    /// Known at the end.
    pub(super) totals: Option<FileTotals>,
}

impl<'s> Incoming<'s> {
    pub(super) fn new(sandbox: &'s dyn Route, connection: AgentConnection) -> Self {
        Self { sandbox, connection, totals: None }
    }

    /// Returns at most 64 KiB, or `None` at the end. Cancel safe.
    pub(super) async fn next(&mut self) -> Result<Option<Vec<u8>>, FileError> {
        if self.totals.is_some() {
            return Ok(None);
        }
        let frame = match self.connection.reader.next().await {
            Ok(frame) => frame,
            Err(error) => return Err(self.sandbox.explained(error.into()).await.into()),
        };
        match frame.kind {
            FrameKind::Stdout => Ok(Some(frame.body)),
            FrameKind::Message => {
                let message = WIRE
                    .decode_message(&frame.body)
                    .map_err(|error| FileError::of_agent(WireError::from(error).into()))?;
                match reply_of(message)? {
                    FileReply::Done(totals) => {
                        self.totals = Some(totals);
                        Ok(None)
                    }
                    _ => Err(FileError::unexpected("message between data")),
                }
            }
            FrameKind::Stdin | FrameKind::Stderr => Err(FileError::unexpected("stream")),
        }
    }
}
