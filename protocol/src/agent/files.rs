//! Files of a sandbox: what can be asked of them, and what comes back. One request on a connection, which then carries
//! nothing else:
//!
//! ```text
//! Files(Read | Archive)      ->    File(Begun), then data in stdout frames, then File(Done)
//! Files(Write | Extract)     ->    File(Begun)
//! data in stdin frames,
//! then StdinEof              ->    File(Entry) of Write, File(Done) of Extract
//! Files(Watch)               ->    File(Begun), then File(Changes) until the host closes the connection
//! Files(List)                ->    File(Entries) any number of times, then File(Done)
//! Files(Describe)            ->    File(Details)
//! Files(ListDetails)         ->    File(DetailsPage) any number of times, then File(Done)
//! Files(WriteWithMetadata)   ->    as Write, with File(Details) at the end
//! Files(Observe)             ->    as Watch, with File(Observed) for File(Changes)
//! the others                 ->    File(Entry), or File(Done) where nothing is left to describe
//! ```
//! [`FileReply::Failed`] may come in the place of any answer, also between data, and is the last. Both directions are
//! held back by the transport's credit alone. A host that goes away before `StdinEof` has changed nothing of what
//! [`FileOperation::Write`] was to replace.
//!
//! What the agent says is a guest's word: capped here, and paths and names are for whoever asked, to be escaped before
//! they are shown.

use super::CText;
use super::details::{FileDetails, FileMetadata, MAX_DETAILS, Observation};
use super::{SINCE_FILE_DETAILS, SINCE_FILES};
use crate::capped;
use serde::{Deserialize, Serialize};

/// Longest path in bytes (Linux `PATH_MAX` less its NUL).
pub const MAX_PATH: usize = 4095;
/// Most entries in one [`FileReply::Entries`].
pub const MAX_ENTRIES: usize = 128;
/// Most changes in one [`FileReply::Changes`].
pub const MAX_CHANGES: usize = 256;
/// What the paths of one message may take together at most, so that it fits the cap of the agent's messages.
pub const PAGE_BUDGET: usize = 32 * 1024;
/// Cap on the name of a user or group, in bytes; a longer one is cut.
pub const MAX_OWNER: usize = 64;
/// Cap on [`FileFailure::message`], in bytes.
pub const MAX_FILE_FAILURE: usize = 1024;

/// Why bytes are no path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FilePathError {
    /// Nothing at all.
    #[error("the path is empty")]
    Empty,
    /// Contains a NUL byte.
    #[error("the path contains a NUL byte")]
    Nul,
    /// Longer than Linux takes.
    #[error("the path has {0} bytes, and Linux accepts at most {MAX_PATH}")]
    TooLong(usize),
}

/// A path in the guest, 1 to [`MAX_PATH`] bytes without NUL. One that does not begin at the root begins at the home of
/// the user.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "Vec<u8>", into = "Vec<u8>")]
pub struct FilePath(Vec<u8>);

impl FilePath {
    /// The bytes, without a terminating NUL.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl TryFrom<Vec<u8>> for FilePath {
    type Error = FilePathError;

    fn try_from(bytes: Vec<u8>) -> Result<Self, FilePathError> {
        match bytes.len() {
            0 => Err(FilePathError::Empty),
            len if len > MAX_PATH => Err(FilePathError::TooLong(len)),
            _ if bytes.contains(&0) => Err(FilePathError::Nul),
            _ => Ok(Self(bytes)),
        }
    }
}

impl TryFrom<&str> for FilePath {
    type Error = FilePathError;

    fn try_from(text: &str) -> Result<Self, FilePathError> {
        Self::try_from(text.as_bytes().to_vec())
    }
}

impl From<FilePath> for Vec<u8> {
    fn from(path: FilePath) -> Self {
        path.0
    }
}

/// What is to be done with files, and as whom.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileRequest {
    /// As for [`super::ExecRequest::user`]: permissions are this user's, and so is what is made. Root when absent.
    pub user: Option<CText>,
    /// What.
    pub operation: FileOperation,
}

/// What can be done with files.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum FileOperation {
    /// What a path is.
    Stat {
        /// Which.
        path: FilePath,
        /// Of a symbolic link, what it points to.
        follow: bool,
    },
    /// What is in a directory, itself not included, in no order.
    List {
        /// Which.
        path: FilePath,
        /// Levels below it; 1 is its own entries.
        depth: u32,
    },
    /// The bytes of a regular file.
    Read {
        /// Which; symbolic links are followed.
        path: FilePath,
    },
    /// Put a regular file in place of what is at a path, in one step once all of its bytes are there. Symbolic links are
    /// followed; a file that is replaced keeps its mode, and of root its owner.
    Write {
        /// Where.
        path: FilePath,
        /// Permissions of a file that is new; 0644 when absent.
        mode: Option<u32>,
        /// Make missing directories above it.
        parents: bool,
    },
    /// Make a directory and those missing above it. One that is there is no failure, unless it must be new.
    MakeDirectory {
        /// Where.
        path: FilePath,
        /// Its permissions if it is made; 0755 when absent.
        mode: Option<u32>,
        /// Fail when something is there already.
        must_be_new: bool,
    },
    /// Rename, in one step; what is at the new place is replaced as rename(2) does.
    Move {
        /// From.
        from: FilePath,
        /// To.
        to: FilePath,
    },
    /// Remove a file, symbolic link or directory.
    Remove {
        /// Which.
        path: FilePath,
        /// With all that is in it.
        recursive: bool,
    },
    /// chmod(2); symbolic links are followed.
    SetMode {
        /// Which.
        path: FilePath,
        /// Permissions, set-user-ID, set-group-ID and sticky bit: the low twelve bits.
        mode: u32,
        /// Also all that is in it.
        recursive: bool,
    },
    /// chown(2), of a symbolic link itself.
    SetOwner {
        /// Which.
        path: FilePath,
        /// `name`, `uid`, `name:group` or `uid:gid`, looked up in the guest.
        owner: CText,
        /// Also all that is in it.
        recursive: bool,
    },
    /// Tell what changes in a directory, by inotify(7).
    Watch {
        /// Which.
        path: FilePath,
        /// Also in the directories below it, those made later included.
        recursive: bool,
    },
    /// A file or tree as a tar archive.
    Archive {
        /// Which. Other file systems mounted below it are left out.
        path: FilePath,
        /// What it is called in the archive; `.` for its content alone.
        name: FilePath,
        /// Of a symbolic link, what it points to.
        follow: bool,
    },
    /// The content of a tar archive into a directory.
    Extract {
        /// Which; it must be there.
        path: FilePath,
        /// Make the directory if it is missing, and give it what the archive says of `.`.
        create: bool,
        /// Give files the owners and the set-user-ID and set-group-ID bits that the archive states. Else they are the
        /// user's, without such bits.
        keep_owner: bool,
    },
    /// What a path is, with all that is known of it; of a symbolic link, the link and where it leads.
    Describe {
        /// Which.
        path: FilePath,
    },
    /// As [`Self::List`], with all that is known of each entry.
    ListDetails {
        /// Which.
        path: FilePath,
        /// Levels below it; 1 is its own entries.
        depth: u32,
    },
    /// As [`Self::Write`]; the file gets this metadata and no other. A file system that has no extended attributes
    /// leaves the file without it.
    WriteWithMetadata {
        /// Where.
        path: FilePath,
        /// Permissions of a file that is new; 0644 when absent.
        mode: Option<u32>,
        /// Make missing directories above it.
        parents: bool,
        /// What the file gets.
        metadata: FileMetadata,
    },
    /// As [`Self::Watch`].
    Observe {
        /// Which.
        path: FilePath,
        /// Also in the directories below it, those made later included.
        recursive: bool,
        /// With what is known of the files that are there.
        details: bool,
        /// Also where it is on a network file system, of which the kernel does not report what others do there.
        network: bool,
    },
}

impl FileOperation {
    /// The wire version that first had it.
    pub(super) fn since(&self) -> u8 {
        match self {
            Self::Describe { .. }
            | Self::ListDetails { .. }
            | Self::WriteWithMetadata { .. }
            | Self::Observe { .. } => SINCE_FILE_DETAILS,
            _ => SINCE_FILES,
        }
    }
}

/// The kind of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FileKind {
    /// Regular file.
    File,
    /// Directory.
    Directory,
    /// Symbolic link.
    Symlink,
    /// Named pipe.
    Fifo,
    /// Unix socket.
    Socket,
    /// Character device.
    CharacterDevice,
    /// Block device.
    BlockDevice,
}

/// Seconds and nanoseconds since the Unix epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileTime {
    /// Seconds; negative before the epoch.
    pub seconds: i64,
    /// Nanoseconds after that, below 1,000,000,000.
    pub nanoseconds: u32,
}

/// What there is to know of a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileEntry {
    /// Its absolute path, as far as the request's was resolved.
    pub path: FilePath,
    /// What it is.
    pub kind: FileKind,
    /// Bytes.
    pub size: u64,
    /// Permissions, set-user-ID, set-group-ID and sticky bit: the low twelve bits.
    pub mode: u32,
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// The user's name, or its number again.
    #[serde(with = "capped::Text::<MAX_OWNER>")]
    pub owner: String,
    /// The group's name, or its number again.
    #[serde(with = "capped::Text::<MAX_OWNER>")]
    pub group: String,
    /// When its content last changed.
    pub modified: FileTime,
    /// What a symbolic link points to.
    pub link_target: Option<FilePath>,
}

/// Something happened in a watched directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileChange {
    /// What.
    pub kind: ChangeKind,
    /// To what, relative to the watched directory; nothing for the directory itself.
    pub path: Option<FilePath>,
}

/// What happens to files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ChangeKind {
    /// It is there now: made, or moved here.
    Created,
    /// Its content was written to.
    Written,
    /// It is gone.
    Removed,
    /// It was moved away; where to is told as [`Self::Created`], if that is watched.
    Renamed,
    /// Mode, owner or times changed.
    AttributesChanged,
    /// Changes were too many to be told: some are missing here.
    Missed,
}

/// What a request came to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileTotals {
    /// Entries that were read, written, listed or removed.
    pub entries: u64,
    /// Bytes of content, holes included.
    pub bytes: u64,
    /// Sockets, named pipes and devices that were left out, as no archive carries them.
    pub left_out: u64,
    /// Extended attributes that the guest's file system would not take.
    pub attributes_lost: u64,
}

/// What the agent says of files.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum FileReply {
    /// Granted: data follows, is awaited, or changes are told from now on. The entry is what is read or archived, or the
    /// directory that is watched or extracted into.
    Begun(Option<FileEntry>),
    /// One entry; the last message.
    Entry(FileEntry),
    /// Some of a list.
    Entries(#[serde(with = "capped::List::<MAX_ENTRIES>")] Vec<FileEntry>),
    /// Some changes, in order.
    Changes(#[serde(with = "capped::List::<MAX_CHANGES>")] Vec<FileChange>),
    /// All is done; the last message.
    Done(FileTotals),
    /// It failed; the last message.
    Failed(FileFailure),
    /// One file with all that is known of it; the last message.
    Details(FileDetails),
    /// Some of a list.
    DetailsPage(#[serde(with = "capped::List::<MAX_DETAILS>")] Vec<FileDetails>),
    /// Some changes, in order.
    Observed(#[serde(with = "capped::List::<MAX_DETAILS>")] Vec<Observation>),
}

impl FileReply {
    /// The wire version that first had it.
    pub(super) fn since(&self) -> u8 {
        match self {
            Self::Details(_) | Self::DetailsPage(_) | Self::Observed(_) => SINCE_FILE_DETAILS,
            Self::Failed(failure) if failure.kind == FileErrorKind::NetworkMount => SINCE_FILE_DETAILS,
            _ => SINCE_FILES,
        }
    }
}

/// Why something could not be done with a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileFailure {
    /// For programs.
    pub kind: FileErrorKind,
    /// What the kernel said, where it said something.
    pub errno: Option<i32>,
    /// The file that it was about.
    pub path: Option<FilePath>,
    /// What was tried and what is wrong with it, for people.
    #[serde(with = "capped::Text::<MAX_FILE_FAILURE>")]
    pub message: String,
}

/// Kinds of failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum FileErrorKind {
    /// Nothing there.
    NotFound,
    /// Something there already.
    AlreadyExists,
    /// A directory where none may be.
    IsADirectory,
    /// No directory where one must be.
    NotADirectory,
    /// A directory that is not empty.
    NotEmpty,
    /// The user may not.
    PermissionDenied,
    /// The disk or the user's quota is full.
    NoSpace,
    /// The file system cannot be written.
    ReadOnly,
    /// Neither a regular file nor a directory.
    NotAFile,
    /// The guest has no such user or group.
    NoSuchUser,
    /// A name or path is too long, or leads through too many symbolic links.
    BadPath,
    /// The archive is damaged, or holds what is not taken from one.
    BadArchive,
    /// The guest is out of memory, processes, open files or watches.
    Resources,
    /// The host's messages make no sense here.
    BadRequest,
    /// Anything else; the message says what.
    Other,
    /// The directory is on a network file system.
    NetworkMount,
}
