//! Files with all their details, and metadata for new files. An agent from before wire version 5,
//! which a snapshot may contain, knows less: then the targets of links and metadata are missing.

use super::{FileError, FileSink, FileWatch, Files, MAX_LISTED, MAX_LISTED_BYTES};
use crate::guest::{connection::agent::AgentError, error::ExecError};
use sandboxvm_protocol::agent::{
    details::{FileDetails, FileMetadata},
    files::{FileEntry, FileOperation, FilePath, FileReply},
};

/// Converts the report of an older agent.
fn plain(entry: FileEntry) -> FileDetails {
    FileDetails { entry, target: None, metadata: FileMetadata::default() }
}

/// Returns true if the agent does not know the request.
fn is_too_old(error: &FileError) -> bool {
    matches!(error, FileError::Sandbox(ExecError::Agent(AgentError::TooOld { .. })))
}

impl<'s> Files<'s> {
    /// Returns all details of a path. For a symbolic link, these are the link itself and its
    /// target.
    ///
    /// # Errors
    /// Every [`FileError`].
    pub async fn describe(&self, path: FilePath) -> Result<FileDetails, FileError> {
        match self.begin(FileOperation::Describe { path: path.clone() }).await {
            Ok((_, FileReply::Details(details))) => Ok(details),
            Ok(_) => Err(FileError::unexpected("answer to a request about a file")),
            Err(error) if is_too_old(&error) => self.stat(path, false).await.map(plain),
            Err(error) => Err(error),
        }
    }

    /// Like [`Files::list`], with all details of each entry.
    ///
    /// # Errors
    /// Every [`FileError`].
    pub async fn list_details(&self, path: FilePath, depth: u32) -> Result<Vec<FileDetails>, FileError> {
        let begun = self.begin(FileOperation::ListDetails { path: path.clone(), depth }).await;
        let (mut connection, mut reply) = match begun {
            Err(error) if is_too_old(&error) => {
                return Ok(self.list(path, depth).await?.into_iter().map(plain).collect());
            }
            begun => begun?,
        };
        let (mut all, mut bytes) = (Vec::new(), 0);
        loop {
            match reply {
                FileReply::DetailsPage(page) => {
                    bytes += page.iter().map(size).sum::<usize>();
                    all.extend(page);
                    if all.len() > MAX_LISTED || bytes > MAX_LISTED_BYTES {
                        return Err(FileError::TooMany(MAX_LISTED));
                    }
                }
                FileReply::Done(_) => return Ok(all),
                _ => return Err(FileError::unexpected("answer to a request for a list")),
            }
            reply = self.next(&mut connection).await?;
        }
    }

    /// Like [`Files::write`]. The file gets this metadata and no other.
    /// [`FileSink::finish_described`] returns what it actually got: a file system without extended
    /// attributes stores none.
    ///
    /// # Errors
    /// Every [`FileError`]. An agent from before wire version 5 rejects metadata.
    pub async fn write_with_metadata(
        &self,
        path: FilePath,
        mode: Option<u32>,
        parents: bool,
        metadata: FileMetadata,
    ) -> Result<FileSink<'s>, FileError> {
        if metadata.is_empty() {
            // A written file is always a new one, so it has no metadata of an old file.
            return self.write(path, mode, parents).await;
        }
        self.sink(FileOperation::WriteWithMetadata { path, mode, parents, metadata }).await
    }

    /// Like [`Files::watch`]. With `details`, each change has the details of the file at that time,
    /// if it exists. Unless `network` is set, a directory on a network file system is rejected:
    /// changes that others make there are not noticed.
    ///
    /// # Errors
    /// Every [`FileError`].
    pub async fn observe(
        &self,
        path: FilePath,
        recursive: bool,
        details: bool,
        network: bool,
    ) -> Result<FileWatch<'s>, FileError> {
        match self.begin(FileOperation::Observe { path: path.clone(), recursive, details, network }).await {
            Ok((connection, FileReply::Begun(_))) => Ok(FileWatch::new(self.sandbox, connection)),
            Ok(_) => Err(FileError::unexpected("answer to a request to watch a directory")),
            Err(error) if is_too_old(&error) => self.watch(path, recursive).await,
            Err(error) => Err(error),
        }
    }
}

/// Returns the number of bytes that count against [`MAX_LISTED_BYTES`].
fn size(details: &FileDetails) -> usize {
    let target = details.target.as_ref().map_or(0, |target| target.path.as_bytes().len());
    details.entry.path.as_bytes().len() + target + details.metadata.size()
}
