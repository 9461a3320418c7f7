//! The files of a sandbox, as the host sees them.
//!
//! ```text
//! Files ── stat, list, make_directory, rename, remove, set_mode, set_owner             here
//!   ├─ read, archive  ──> FileStream  chunks, until the guest reports the end          stream
//!   ├─ write, extract ──> FileSink    chunks, then `finish`; dropping changes nothing  sink
//!   ├─ disk_changes   ──> DiskChanges chunks of a layer, within a limit                changes
//!   ├─ watch          ──> FileWatch                                                    watch
//!   ├─ describe, list_details, write_with_metadata, observe: more of each file         details
//!   └─ copy_in, copy_out              trees of the host: packed and unpacked here      copy, target
//! ```
//! Each request has a separate connection; dropping the value that holds it cancels the request.
//! Memory is limited to a few frames of 64 KiB, whatever is moved. Everything that comes from the
//! guest is untrusted: lists are capped, names may not be printed to a terminal as they are (see
//! [`crate::printable`]), and an archive that is unpacked on the host is treated as hostile.

mod changes;
mod copy;
mod details;
mod error;
mod sink;
mod stream;
mod target;
mod watch;

pub use changes::DiskChanges;
pub use copy::{CopyLimits, CopyReport};
pub use error::{CopyError, FileError, FileRefusal};
pub use sink::{FileDone, FileSink};
pub use stream::FileStream;
pub use target::HostTarget;
pub use watch::FileWatch;

use crate::{
    guest::{
        connection::{
            agent::{AgentConnection, AgentError},
            route::Route,
        },
        silence::Step,
    },
    sandbox::Sandbox,
    vmm::wire::WireError,
};
use futures_util::future::BoxFuture;
use sandboxvm_protocol::agent::{
    AgentMessage, CText, HostMessage,
    files::{FileEntry, FileOperation, FilePath, FileReply, FileRequest, FileTotals},
};

/// Maximum number of entries in one list.
const MAX_LISTED: usize = 100_000;
/// Maximum number of bytes of paths in one list.
const MAX_LISTED_BYTES: usize = 32 << 20;

/// The files of a sandbox, as one of its users sees them.
#[derive(Debug, Clone)]
pub struct Files<'s> {
    sandbox: &'s dyn Route,
    user: Option<CText>,
}

impl Sandbox {
    /// Returns the files of the sandbox, as root sees them.
    #[must_use]
    pub fn files(&self) -> Files<'_> {
        Files::of(self)
    }
}

/// Returns the ten letters of `ls -l`.
#[must_use]
pub fn permissions(entry: &FileEntry) -> String {
    use sandboxvm_protocol::agent::files::FileKind;
    let kind = match entry.kind {
        FileKind::File => '-',
        FileKind::Directory => 'd',
        FileKind::Symlink => 'l',
        FileKind::Fifo => 'p',
        FileKind::Socket => 's',
        FileKind::CharacterDevice => 'c',
        FileKind::BlockDevice => 'b',
    };
    let bit = |bit: u32, letter| if entry.mode >> bit & 1 == 1 { letter } else { '-' };
    let execute = |bit: u32, special: u32, letters: [char; 2]| match (entry.mode >> special & 1, entry.mode >> bit & 1)
    {
        (1, 1) => letters[0],
        (1, _) => letters[1],
        (_, 1) => 'x',
        _ => '-',
    };
    let class = |shift, special, letters| [bit(shift + 2, 'r'), bit(shift + 1, 'w'), execute(shift, special, letters)];
    let classes = [class(6, 11, ['s', 'S']), class(3, 10, ['s', 'S']), class(0, 9, ['t', 'T'])];
    std::iter::once(kind).chain(classes.into_iter().flatten()).collect()
}

impl<'s> Files<'s> {
    pub(crate) fn of(sandbox: &'s dyn Route) -> Self {
        Self { sandbox, user: None }
    }

    /// Returns the same files as this user sees them: `name`, `uid`, `name:group` or `uid:gid`,
    /// looked up in the guest. New files belong to this user, and a relative path starts at this
    /// user's home.
    #[must_use]
    pub fn as_user(&self, user: CText) -> Self {
        Self { sandbox: self.sandbox, user: Some(user) }
    }

    /// Returns what a path is. With `follow`, returns what the symbolic link points to.
    ///
    /// # Errors
    /// Every [`FileError`].
    pub async fn stat(&self, path: FilePath, follow: bool) -> Result<FileEntry, FileError> {
        self.entry(FileOperation::Stat { path, follow }).await
    }

    /// Returns the entries of a directory and, with a `depth` above 1, of those below it, in no
    /// particular order.
    ///
    /// # Errors
    /// Every [`FileError`].
    pub async fn list(&self, path: FilePath, depth: u32) -> Result<Vec<FileEntry>, FileError> {
        let (mut connection, mut reply) = self.begin(FileOperation::List { path, depth }).await?;
        let (mut all, mut bytes) = (Vec::new(), 0);
        loop {
            match reply {
                FileReply::Entries(entries) => {
                    bytes += entries.iter().map(|entry| entry.path.as_bytes().len()).sum::<usize>();
                    all.extend(entries);
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

    /// Creates a directory and missing ones above it.
    ///
    /// # Errors
    /// Every [`FileError`]. With `must_be_new`, also if the directory exists.
    pub async fn make_directory(
        &self,
        path: FilePath,
        mode: Option<u32>,
        must_be_new: bool,
    ) -> Result<FileEntry, FileError> {
        self.entry(FileOperation::MakeDirectory { path, mode, must_be_new }).await
    }

    /// Renames a file or directory in one step.
    ///
    /// # Errors
    /// Every [`FileError`].
    pub async fn rename(&self, from: FilePath, to: FilePath) -> Result<FileEntry, FileError> {
        self.entry(FileOperation::Move { from, to }).await
    }

    /// Removes a file or directory. A directory that is not empty is removed only with `recursive`.
    ///
    /// # Errors
    /// Every [`FileError`].
    pub async fn remove(&self, path: FilePath, recursive: bool) -> Result<FileTotals, FileError> {
        match self.begin(FileOperation::Remove { path, recursive }).await?.1 {
            FileReply::Done(totals) => Ok(totals),
            _ => Err(FileError::unexpected("answer to a request to remove a file")),
        }
    }

    /// Sets the low twelve bits of the mode.
    ///
    /// # Errors
    /// Every [`FileError`].
    pub async fn set_mode(&self, path: FilePath, mode: u32, recursive: bool) -> Result<FileEntry, FileError> {
        self.entry(FileOperation::SetMode { path, mode, recursive }).await
    }

    /// Sets the owner: `name`, `uid`, `name:group` or `uid:gid`.
    ///
    /// # Errors
    /// Every [`FileError`].
    pub async fn set_owner(&self, path: FilePath, owner: CText, recursive: bool) -> Result<FileEntry, FileError> {
        self.entry(FileOperation::SetOwner { path, owner, recursive }).await
    }

    /// Reads the content of a regular file.
    ///
    /// # Errors
    /// Every [`FileError`].
    pub async fn read(&self, path: FilePath) -> Result<FileStream<'s>, FileError> {
        self.stream(FileOperation::Read { path }).await
    }

    /// Reads a file or tree as a tar archive, in which it is called `name`; `.` stands for the
    /// content of a directory only. With `follow`, the target of a symbolic link is read.
    ///
    /// # Errors
    /// Every [`FileError`].
    pub async fn archive(&self, path: FilePath, name: FilePath, follow: bool) -> Result<FileStream<'s>, FileError> {
        self.stream(FileOperation::Archive { path, name, follow }).await
    }

    /// Replaces `path` by a regular file, in one step, when [`FileSink::finish`] is called. With
    /// `parents`, creates missing directories above it.
    ///
    /// # Errors
    /// Every [`FileError`].
    pub async fn write(&self, path: FilePath, mode: Option<u32>, parents: bool) -> Result<FileSink<'s>, FileError> {
        self.sink(FileOperation::Write { path, mode, parents }).await
    }

    /// Extracts a tar archive into a directory. Each of its files is put in place in one step;
    /// files that were extracted before a failure stay. With `create`, the directory is created.
    /// With `keep_owner`, owners and set-user-ID bits are those of the archive.
    ///
    /// # Errors
    /// Every [`FileError`].
    pub async fn extract(&self, path: FilePath, create: bool, keep_owner: bool) -> Result<FileSink<'s>, FileError> {
        self.sink(FileOperation::Extract { path, create, keep_owner }).await
    }

    /// As [`Self::extract`] into the root with owners, but passes by what is mounted over files of the
    /// disk, for example `/etc/hosts` and `/proc`. So the disk gets what the archive states.
    ///
    /// # Errors
    /// Every [`FileError`]. An agent of an earlier version, which a snapshot may contain, refuses the
    /// request.
    pub async fn extract_below_mounts(&self) -> Result<FileSink<'s>, FileError> {
        self.sink(FileOperation::ExtractBelowMounts).await
    }

    /// Watches a directory for changes from now on. With `recursive`, also those below it.
    ///
    /// # Errors
    /// Every [`FileError`].
    pub async fn watch(&self, path: FilePath, recursive: bool) -> Result<FileWatch<'s>, FileError> {
        let (connection, reply) = self.begin(FileOperation::Watch { path, recursive }).await?;
        match reply {
            FileReply::Begun(_) => Ok(FileWatch::new(self.sandbox, connection)),
            _ => Err(FileError::unexpected("answer to a request to watch a directory")),
        }
    }

    async fn stream(&self, operation: FileOperation) -> Result<FileStream<'s>, FileError> {
        match self.begin(operation).await? {
            (connection, FileReply::Begun(Some(entry))) => Ok(FileStream::new(self.sandbox, connection, entry)),
            _ => Err(FileError::unexpected("answer to a request for a file")),
        }
    }

    async fn sink(&self, operation: FileOperation) -> Result<FileSink<'s>, FileError> {
        match self.begin(operation).await? {
            (connection, FileReply::Begun(_)) => Ok(FileSink::new(self.sandbox, connection)),
            _ => Err(FileError::unexpected("answer to a request to write a file")),
        }
    }

    async fn entry(&self, operation: FileOperation) -> Result<FileEntry, FileError> {
        match self.begin(operation).await?.1 {
            FileReply::Entry(entry) => Ok(entry),
            _ => Err(FileError::unexpected("answer to a request about a file")),
        }
    }

    /// Connects and sends a request. Returns the first reply, unless it is a failure.
    fn begin<'a>(&'a self, operation: FileOperation) -> BoxFuture<'a, Result<(AgentConnection, FileReply), FileError>> {
        Box::pin(async move {
            let request = HostMessage::Files(FileRequest { user: self.user.clone(), operation });
            match self.sandbox.request(request).await? {
                (connection, AgentMessage::File(reply)) => Ok((connection, error::unless_failed(reply)?)),
                _ => Err(FileError::unexpected("answer to a request about files")),
            }
        })
    }

    /// Returns the next reply of several.
    fn next<'a>(&'a self, connection: &'a mut AgentConnection) -> BoxFuture<'a, Result<FileReply, FileError>> {
        Box::pin(async move { next_reply(self.sandbox, connection).await })
    }
}

/// Returns the next reply outside of a stream. It comes after work of the guest, within the time
/// limit for work.
async fn next_reply(sandbox: &dyn Route, connection: &mut AgentConnection) -> Result<FileReply, FileError> {
    let next = tokio::select! {
        biased;
        message = connection.reader.next_message() => message.map_err(AgentError::from),
        silence = sandbox.silence(Step::Work) => Err(silence.into()),
    };
    match next {
        Ok(message) => reply_of(message),
        Err(error) => Err(sandbox.explained(error).await.into()),
    }
}

/// Returns a reply about files. Any other message is an error on such a connection.
fn reply_of(message: AgentMessage) -> Result<FileReply, FileError> {
    match message {
        AgentMessage::File(reply) => error::unless_failed(reply),
        AgentMessage::Failed(failure) => {
            Err(FileError::of_agent(crate::guest::connection::agent::refused(failure.kind, &failure.message)))
        }
        _ => Err(FileError::unexpected("message about no file")),
    }
}

impl FileError {
    fn unexpected(what: &'static str) -> Self {
        Self::of_agent(WireError::Unexpected(what).into())
    }

    fn of_agent(error: AgentError) -> Self {
        Self::Sandbox(error.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sandboxvm_protocol::agent::files::{FileKind, FileTime};

    #[test]
    fn permissions_are_shown_as_ls_shows_them() {
        let shown = |kind, mode| {
            permissions(&FileEntry {
                path: FilePath::try_from("/a").unwrap(),
                kind,
                size: 0,
                mode,
                uid: 0,
                gid: 0,
                owner: String::new(),
                group: String::new(),
                modified: FileTime { seconds: 0, nanoseconds: 0 },
                link_target: None,
            })
        };
        assert_eq!(shown(FileKind::File, 0o644), "-rw-r--r--");
        assert_eq!(shown(FileKind::Directory, 0o1777), "drwxrwxrwt");
        assert_eq!(shown(FileKind::Symlink, 0o777), "lrwxrwxrwx");
        assert_eq!(shown(FileKind::File, 0o6711), "-rws--s--x");
        assert_eq!(shown(FileKind::File, 0o7000), "---S--S--T");
    }
}
