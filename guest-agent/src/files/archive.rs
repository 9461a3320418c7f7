//! Packs and unpacks directory trees as tar archives.

use super::change::make_directories;
use super::channel::{Channel, DataWriter};
use super::failure::{Trouble, failure, kind, refused};
use super::inspect::describe;
use rustix::fs::{Mode, OFlags, open};
use rustix::io::Errno;
use sandboxvm_archive::{PackError, PackOptions, ReadError, Reader, Totals, Trust, UnpackError, UnpackPolicy, Writer};
use sandboxvm_protocol::agent::files::{FileErrorKind, FileFailure, FilePath, FileReply, FileTotals};
use std::os::fd::AsFd;

pub(super) fn pack(channel: &mut Channel, path: &[u8], name: &[u8], follow: bool) -> Result<FileReply, Trouble> {
    let begun = describe(path, follow)?;
    channel.reply(&FileReply::Begun(Some(begun)))?;
    let root = open_directory(b"/")?;
    let mut writer = Writer::new(DataWriter::new(channel));
    let options = PackOptions { follow, one_filesystem: true, progress: None };
    let packed = sandboxvm_archive::pack(&mut writer, root.as_fd(), path, name, options);
    let totals = packed.map_err(|error| pack_trouble(error, path))?;
    writer.finish().map_err(|_| Trouble::Gone)?;
    Ok(FileReply::Done(of_wire(totals)))
}

pub(super) fn unpack(channel: &mut Channel, path: &[u8], create: bool, keep_owner: bool) -> Result<FileReply, Trouble> {
    let is_new = create && make_directories(path, 0o755)?;
    let directory = open_directory(path)?;
    channel.reply(&FileReply::Begun(None))?;
    let policy = UnpackPolicy {
        trust: Trust::Target,
        // The sandbox's disk is the only limit.
        max_bytes: u64::MAX,
        max_entries: u64::MAX,
        keep_owner,
        adopt_root: is_new,
        // Files get the modes that they have on the host.
        umask: 0,
        progress: None,
    };
    let mut reader = Reader::new(&mut *channel);
    let totals =
        sandboxvm_archive::unpack(&mut reader, directory, &policy).map_err(|error| unpack_trouble(error, path))?;
    // Other data may follow the end of the archive, for example the padding of tar's last record.
    channel.finish_input()?;
    Ok(FileReply::Done(of_wire(totals)))
}

fn open_directory(path: &[u8]) -> Result<std::os::fd::OwnedFd, Trouble> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    open(path, flags, Mode::empty()).map_err(|errno| refused("open the directory", path, errno))
}

pub(super) fn of_wire(totals: Totals) -> FileTotals {
    FileTotals {
        entries: totals.entries,
        bytes: totals.bytes,
        left_out: totals.left_out,
        attributes_lost: totals.attributes_lost,
    }
}

/// Returns the failure of a request whose tree `root` could not be packed.
pub(super) fn pack_trouble(error: PackError, root: &[u8]) -> Trouble {
    let message = error.to_string();
    match error {
        PackError::Output(_) => Trouble::Gone,
        PackError::NotAFile(_) => failure(FileErrorKind::NotAFile, Some(root), message),
        PackError::Shrank(path) => failure(FileErrorKind::Other, Some(&path), message),
        PackError::TooMany(path) => failure(FileErrorKind::Resources, Some(&path), message),
        PackError::NotInLayers { path, .. } => failure(FileErrorKind::NotAFile, Some(&path), message),
        PackError::TooDeep(path) => failure(FileErrorKind::BadPath, Some(&path), message),
        PackError::File { path, errno, .. } => of_kernel(errno, &path, message),
    }
}

pub(super) fn unpack_trouble(error: UnpackError, root: &[u8]) -> Trouble {
    let message = error.to_string();
    match error {
        UnpackError::Archive(ReadError::Input(_)) => Trouble::Gone,
        UnpackError::File { path, errno, .. } => of_kernel(errno, &[root, b"/", &path].concat(), message),
        _ => failure(FileErrorKind::BadArchive, Some(root), message),
    }
}

fn of_kernel(errno: Errno, path: &[u8], message: String) -> Trouble {
    let (path, errno_number) = (FilePath::try_from(path.to_vec()).ok(), Some(errno.raw_os_error()));
    Trouble::Failed(Box::new(FileFailure { kind: kind(errno), errno: errno_number, path, message }))
}
