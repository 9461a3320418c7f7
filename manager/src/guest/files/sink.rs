//! Data that is written into a guest.

use super::{FileError, next_reply, reply_of};
use crate::{
    guest::connection::{agent::AgentConnection, route::Route},
    vmm::wire::WireError,
};
use sandboxvm_protocol::{
    agent::{
        HostMessage, WIRE,
        details::{FileDetails, FileMetadata},
        files::{FileEntry, FileReply, FileTotals},
    },
    frame::{FrameKind, MAX_STREAM_BODY},
};
use tokio::io::AsyncWriteExt;

/// A sink for the content of a file or for an archive. A file is not replaced before
/// [`Self::finish`]; dropping the sink cancels the request.
#[derive(Debug)]
pub struct FileSink<'s> {
    sandbox: &'s dyn Route,
    connection: AgentConnection,
}

impl<'s> FileSink<'s> {
    pub(super) fn new(sandbox: &'s dyn Route, connection: AgentConnection) -> Self {
        Self { sandbox, connection }
    }

    /// Sends all of `bytes`, as fast as the guest reads them. Not cancel safe: a started write must
    /// be continued, or the sink dropped.
    ///
    /// # Errors
    /// When the guest fails, possibly because of data that was sent before, or when the connection
    /// ends.
    pub async fn write(&mut self, bytes: &[u8]) -> Result<(), FileError> {
        for chunk in bytes.chunks(MAX_STREAM_BODY) {
            let header = WIRE.header(FrameKind::Stdin, chunk.len()).map_err(WireError::from);
            let header = header.map_err(|error| FileError::of_agent(error.into()))?;
            self.send(&[&header[..], chunk].concat()).await?;
        }
        Ok(())
    }

    /// Ends the data. Returns when everything is in its place.
    ///
    /// # Errors
    /// Like [`Self::write`]. A file that was to be replaced is unchanged then.
    pub async fn finish(mut self) -> Result<FileDone, FileError> {
        match self.end().await? {
            FileReply::Entry(entry) | FileReply::Details(FileDetails { entry, .. }) => {
                Ok(FileDone::Entry(Box::new(entry)))
            }
            FileReply::Done(totals) => Ok(FileDone::Totals(totals)),
            _ => Err(FileError::unexpected("answer to the end of a file")),
        }
    }

    /// Like [`Self::finish`], for a file that was written. Returns the file with its metadata.
    ///
    /// # Errors
    /// As [`Self::finish`].
    pub async fn finish_described(mut self) -> Result<FileDetails, FileError> {
        match self.end().await? {
            FileReply::Details(details) => Ok(details),
            FileReply::Entry(entry) => Ok(FileDetails { entry, target: None, metadata: FileMetadata::default() }),
            _ => Err(FileError::unexpected("answer to the end of a file")),
        }
    }

    async fn end(&mut self) -> Result<FileReply, FileError> {
        let mut eof = Vec::new();
        WIRE.append_message(&mut eof, &HostMessage::StdinEof, MAX_STREAM_BODY)
            .map_err(|error| FileError::of_agent(WireError::from(error).into()))?;
        self.send(&eof).await?;
        self.reply().await
    }

    /// Writes a frame, and notices at the same time if the guest has failed: it does not read any
    /// more then, and otherwise only the end of the connection would show it.
    async fn send(&mut self, frame: &[u8]) -> Result<(), FileError> {
        let sent = tokio::select! {
            sent = self.connection.writer.write_all(frame) => sent,
            message = self.connection.reader.next_message() => {
                return match message {
                    Ok(message) => Err(reply_of(message).err().unwrap_or_else(|| FileError::unexpected("early answer"))),
                    Err(error) => Err(self.sandbox.explained(error.into()).await.into()),
                };
            }
        };
        match sent {
            Ok(()) => Ok(()),
            // The guest may have sent the reason before.
            Err(_) => Err(self.reply().await.err().unwrap_or_else(|| FileError::unexpected("early answer"))),
        }
    }

    async fn reply(&mut self) -> Result<FileReply, FileError> {
        next_reply(self.sandbox, &mut self.connection).await
    }
}

/// The result of a sink.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FileDone {
    /// The file that [`super::Files::write`] created.
    Entry(Box<FileEntry>),
    /// The totals of [`super::Files::extract`].
    Totals(FileTotals),
}

impl FileDone {
    /// Returns the totals of an archive. A file counts as one entry.
    #[must_use]
    pub fn totals(&self) -> FileTotals {
        match self {
            Self::Entry(entry) => FileTotals { entries: 1, bytes: entry.size, ..FileTotals::default() },
            Self::Totals(totals) => *totals,
        }
    }
}
