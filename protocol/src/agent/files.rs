//! Operations on files of a sandbox, and their results. Each request has a separate connection:
//!
//! ```text
//! Files(Read | Archive)      ->    File(Begun), then data in stdout frames, then File(Done)
//! Files(Write | Extract...)  ->    File(Begun)
//! data in stdin frames,
//! then StdinEof              ->    File(Entry) of Write, File(Done) of Extract
//! Files(Watch)               ->    File(Begun), then File(Changes) until the host closes the connection
//! Files(List)                ->    File(Entries) any number of times, then File(Done)
//! Files(Describe)            ->    File(Details)
//! Files(ListDetails)         ->    File(DetailsPage) any number of times, then File(Done)
//! Files(WriteWithMetadata)   ->    as Write, with File(Details) at the end
//! Files(Observe)             ->    as Watch, with File(Observed) for File(Changes)
//! Files(PackChanges | PackWorkspace) -> as Archive, with File(Begun) without an entry
//! Files(MountWorkspace | Mount | MountShare) -> File(Done)
//! the others                 ->    File(Entry), or File(Done) where nothing is left to describe
//! ```
//! [`FileReply::Failed`] can replace any reply, also between data, and is the last. Only the credit
//! of the transport limits both directions. A host that disconnects before `StdinEof` has not
//! changed the file that [`FileOperation::Write`] would replace.
//!
//! The agent's replies come from a guest, so their size is limited here. Clients escape paths and
//! names before they show them.

use super::details::{FileDetails, FileMetadata, MAX_DETAILS, Observation};
pub use super::file_entry::{
    ChangeKind, FileChange, FileEntry, FileKind, FilePath, FilePathError, FileTime, MAX_OWNER, MAX_PATH,
};
use super::mounts::MountTable;
use super::share::ShareMount;
use super::text::CText;
use super::version::{
    SINCE_BELOW_MOUNTS, SINCE_DISK_CHANGES, SINCE_FILE_DETAILS, SINCE_FILES, SINCE_MOUNTS, SINCE_SHARES,
    SINCE_WORKSPACES,
};
use super::workspace::WorkspaceMount;
use crate::{capped, machine::SlotNumber};
use serde::{Deserialize, Serialize};

/// Maximum number of entries in one [`FileReply::Entries`].
pub const MAX_ENTRIES: usize = 128;
/// Maximum number of changes in one [`FileReply::Changes`].
pub const MAX_CHANGES: usize = 256;
/// Maximum size of the paths of one message, so that it fits the maximum size of the agent's
/// messages.
pub const PAGE_BUDGET: usize = 32 * 1024;
/// Maximum length of [`FileFailure::message`] in bytes.
pub const MAX_FILE_FAILURE: usize = 1024;

/// An operation on files, and its user.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileRequest {
    /// As [`super::ExecRequest::user`]. The operation has this user's permissions, and new files
    /// belong to it. Root if absent.
    pub user: Option<CText>,
    /// The operation.
    pub operation: FileOperation,
}

/// An operation on files.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum FileOperation {
    /// Describes a file.
    Stat {
        /// Which.
        path: FilePath,
        /// For a symbolic link, describe its target.
        follow: bool,
    },
    /// Lists a directory, without itself, in no order.
    List {
        /// Which.
        path: FilePath,
        /// Number of levels below it. 1 lists only its own entries.
        depth: u32,
    },
    /// Reads a regular file.
    Read {
        /// The file. Symbolic links are followed.
        path: FilePath,
    },
    /// Writes a regular file and moves it to its path in one step, when all its bytes have arrived.
    /// Symbolic links are followed. A replaced file keeps its mode and, if the user is root, its
    /// owner.
    Write {
        /// Where.
        path: FilePath,
        /// Permissions of a file that is new; 0644 when absent.
        mode: Option<u32>,
        /// Create missing directories above it.
        parents: bool,
    },
    /// Creates a directory and the missing ones above it. Fails for an existing one only if it must
    /// be new.
    MakeDirectory {
        /// Where.
        path: FilePath,
        /// Its permissions if it is created. 0755 if absent.
        mode: Option<u32>,
        /// Fail if the path exists.
        must_be_new: bool,
    },
    /// Renames a file in one step. A file at the new path is replaced as by rename(2).
    Move {
        /// From.
        from: FilePath,
        /// To.
        to: FilePath,
    },
    /// Removes a file, symbolic link or directory.
    Remove {
        /// Which.
        path: FilePath,
        /// Also remove everything in it.
        recursive: bool,
    },
    /// Changes the mode by chmod(2). Symbolic links are followed.
    SetMode {
        /// Which.
        path: FilePath,
        /// Permissions, set-user-ID, set-group-ID and sticky bit: the low twelve bits.
        mode: u32,
        /// Also change everything in it.
        recursive: bool,
    },
    /// Changes the owner by chown(2), of a symbolic link itself.
    SetOwner {
        /// Which.
        path: FilePath,
        /// `name`, `uid`, `name:group` or `uid:gid`, looked up in the guest.
        owner: CText,
        /// Also change everything in it.
        recursive: bool,
    },
    /// Reports the changes in a directory, by inotify(7).
    Watch {
        /// Which.
        path: FilePath,
        /// Also watch the directories below it, and those that are created later.
        recursive: bool,
    },
    /// Packs a file or directory tree into a tar archive.
    Archive {
        /// The file or directory. Other file systems that are mounted below it are omitted.
        path: FilePath,
        /// Its name in the archive. `.` packs only its content.
        name: FilePath,
        /// For a symbolic link, pack its target.
        follow: bool,
    },
    /// Unpacks a tar archive into a directory.
    Extract {
        /// The directory, which must exist.
        path: FilePath,
        /// Create the directory if it is missing, and give it the attributes that the archive
        /// states for `.`.
        create: bool,
        /// Give files the owners and the set-user-ID and set-group-ID bits that the archive states.
        /// Otherwise they belong to the user and have none of these bits.
        keep_owner: bool,
    },
    /// Describes a file with all details. For a symbolic link, describes the link and its target.
    Describe {
        /// Which.
        path: FilePath,
    },
    /// As [`Self::List`], with all details of each entry.
    ListDetails {
        /// Which.
        path: FilePath,
        /// Number of levels below it. 1 lists only its own entries.
        depth: u32,
    },
    /// As [`Self::Write`]. The file gets exactly this metadata. If the file system has no extended
    /// attributes, the file has none.
    WriteWithMetadata {
        /// Where.
        path: FilePath,
        /// Permissions of a file that is new; 0644 when absent.
        mode: Option<u32>,
        /// Create missing directories above it.
        parents: bool,
        /// The metadata of the file.
        metadata: FileMetadata,
    },
    /// As [`Self::Watch`], with more options.
    Observe {
        /// Which.
        path: FilePath,
        /// Also watch the directories below it, and those that are created later.
        recursive: bool,
        /// Report the details of files that exist.
        details: bool,
        /// Also watch a network file system, where the kernel does not report the changes of other
        /// machines.
        network: bool,
    },
    /// Packs everything in which the disk differs from the image, as the layer of a container image
    /// (a tar archive with whiteouts). Only root may request it.
    PackChanges,
    /// As [`Self::Extract`] into the root, with owners. Passes by what is mounted over files of the disk:
    /// an entry `etc/hosts` is the file on the disk, and not the machine's file that is mounted over it.
    /// Only root may request it.
    ExtractBelowMounts,
    /// Mounts a workspace. Does nothing if it is mounted. Only root may request it.
    MountWorkspace(WorkspaceMount),
    /// As [`Self::PackChanges`], for everything in which a workspace differs from its slots. A
    /// directory itself is in the layer only if it changed, and the workspace's own is not.
    PackWorkspace {
        /// The lowest slot of the workspace.
        lowest: SlotNumber,
    },
    /// Mounts volumes and file systems in memory, and makes the root read-only. Does nothing of it a second
    /// time. Only root may request it.
    Mount(MountTable),
    /// Mounts a live share. Does nothing if it is mounted. Only root may request it.
    MountShare(ShareMount),
}

impl FileOperation {
    /// Returns the first wire version that has it.
    pub(super) fn since(&self) -> u8 {
        match self {
            Self::Describe { .. }
            | Self::ListDetails { .. }
            | Self::WriteWithMetadata { .. }
            | Self::Observe { .. } => SINCE_FILE_DETAILS,
            Self::PackChanges => SINCE_DISK_CHANGES,
            Self::ExtractBelowMounts => SINCE_BELOW_MOUNTS,
            Self::MountWorkspace(_) | Self::PackWorkspace { .. } => SINCE_WORKSPACES,
            Self::Mount(_) => SINCE_MOUNTS,
            Self::MountShare(_) => SINCE_SHARES,
            _ => SINCE_FILES,
        }
    }
}

/// The totals of an operation.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileTotals {
    /// Number of entries that were read, written, listed or removed.
    pub entries: u64,
    /// Size of the content in bytes, holes included.
    pub bytes: u64,
    /// Number of sockets, named pipes and devices that were omitted, because archives cannot
    /// contain them.
    pub left_out: u64,
    /// Number of extended attributes that the guest's file system did not accept.
    pub attributes_lost: u64,
}

/// A reply to a request about files.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum FileReply {
    /// The request was accepted. Data follow, the agent waits for data, or it reports changes from
    /// now on. The entry is the file that is read or archived, or the directory that is watched or
    /// unpacked into.
    Begun(Option<FileEntry>),
    /// One entry. This is the last message.
    Entry(FileEntry),
    /// A part of a list.
    Entries(#[serde(with = "capped::List::<MAX_ENTRIES>")] Vec<FileEntry>),
    /// Changes, oldest first.
    Changes(#[serde(with = "capped::List::<MAX_CHANGES>")] Vec<FileChange>),
    /// The operation is complete. This is the last message.
    Done(FileTotals),
    /// The operation failed. This is the last message.
    Failed(FileFailure),
    /// One file with all details. This is the last message.
    Details(FileDetails),
    /// A part of a list.
    DetailsPage(#[serde(with = "capped::List::<MAX_DETAILS>")] Vec<FileDetails>),
    /// Changes, oldest first.
    Observed(#[serde(with = "capped::List::<MAX_DETAILS>")] Vec<Observation>),
}

impl FileReply {
    /// Returns the first wire version that has it.
    pub(super) fn since(&self) -> u8 {
        match self {
            Self::Details(_) | Self::DetailsPage(_) | Self::Observed(_) => SINCE_FILE_DETAILS,
            Self::Failed(failure) if failure.kind == FileErrorKind::NetworkMount => SINCE_FILE_DETAILS,
            _ => SINCE_FILES,
        }
    }
}

/// Why an operation failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileFailure {
    /// Kind of the failure, for programs.
    pub kind: FileErrorKind,
    /// The error of the kernel, if it returned one.
    pub errno: Option<i32>,
    /// The file that caused the failure.
    pub path: Option<FilePath>,
    /// What failed and why, for users.
    #[serde(with = "capped::Text::<MAX_FILE_FAILURE>")]
    pub message: String,
}

/// The kind of a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum FileErrorKind {
    /// The file does not exist.
    NotFound,
    /// The path exists already.
    AlreadyExists,
    /// The path is a directory, which is not allowed here.
    IsADirectory,
    /// The path is not a directory.
    NotADirectory,
    /// The directory is not empty.
    NotEmpty,
    /// The user lacks the permission.
    PermissionDenied,
    /// The disk or the user's quota is full.
    NoSpace,
    /// The file system is read-only.
    ReadOnly,
    /// The file is neither a regular file nor a directory.
    NotAFile,
    /// The guest has no such user or group.
    NoSuchUser,
    /// A name or path is too long, or leads through too many symbolic links.
    BadPath,
    /// The archive is damaged, or contains something that is not unpacked.
    BadArchive,
    /// The guest is out of memory, processes, open files or watches.
    Resources,
    /// The host's message is invalid here.
    BadRequest,
    /// Anything else; the message says what.
    Other,
    /// The directory is on a network file system.
    NetworkMount,
}
