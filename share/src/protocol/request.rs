//! Requests: bytes to operations.

use super::{
    HEADER, MAX_DATA,
    constants::{FSYNC_DATA, GETATTR_FH, feature, opcode, set},
    fields::Fields,
    name::Name,
    record::Cursor,
    refusal::Refusal,
};
use rustix::fs::Timespec;

/// The head of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) unique: u64,
    pub(crate) node: u64,
    /// User and group, in the guest, of the process that asks. They mean nothing on the host.
    pub(crate) uid: u32,
    pub(crate) gid: u32,
}

/// Times to set, as utimensat(2) takes them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Times {
    pub(crate) accessed: Timespec,
    pub(crate) modified: Timespec,
}

/// What is to be done with the node of the request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Operation<'a> {
    Init {
        major: u32,
        minor: u32,
        max_readahead: u32,
        features: u32,
    },
    Destroy,
    Interrupt,
    Lookup(Name<'a>),
    Forget {
        count: u64,
    },
    /// Pairs of a node and a count, 16 bytes each.
    BatchForget(&'a [u8]),
    GetAttributes {
        handle: Option<u64>,
    },
    SetAttributes {
        handle: Option<u64>,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        times: Option<Times>,
    },
    ReadLink,
    Symlink {
        name: Name<'a>,
        target: &'a [u8],
    },
    MakeNode {
        name: Name<'a>,
        mode: u32,
    },
    MakeDirectory {
        name: Name<'a>,
        mode: u32,
    },
    Unlink(Name<'a>),
    RemoveDirectory(Name<'a>),
    Rename {
        from: Name<'a>,
        parent: u64,
        to: Name<'a>,
        flags: u32,
    },
    Link {
        of: u64,
        name: Name<'a>,
    },
    Open {
        flags: u32,
    },
    Create {
        name: Name<'a>,
        flags: u32,
        mode: u32,
    },
    Read {
        handle: u64,
        offset: u64,
        size: usize,
    },
    Write {
        handle: u64,
        offset: u64,
        data: &'a [u8],
    },
    Flush,
    Release {
        handle: u64,
    },
    Sync {
        handle: u64,
        only_data: bool,
    },
    StatFs,
    OpenDirectory,
    ReadDirectory {
        handle: u64,
        offset: u64,
        size: usize,
        plus: bool,
    },
    GetXattr {
        name: &'a [u8],
        size: usize,
    },
    SetXattr {
        name: &'a [u8],
        value: &'a [u8],
        flags: u32,
    },
    ListXattrs {
        size: usize,
    },
    RemoveXattr {
        name: &'a [u8],
    },
    Access {
        mask: u32,
    },
    Allocate {
        handle: u64,
        offset: u64,
        length: u64,
        mode: u32,
    },
    Seek {
        handle: u64,
        offset: u64,
        whence: u32,
    },
    /// Returns the part of the record that begins there.
    Save(Cursor),
    /// A part of a record, see [`super::record`].
    Restore(&'a [u8]),
}

/// Reads a request, which must have its complete head. Returns the head also for a request that is
/// refused.
pub(crate) fn parse(bytes: &[u8]) -> Option<(Header, Result<Operation<'_>, Refusal>)> {
    let (head, body) = bytes.split_at_checked(HEADER)?;
    let mut fields = Fields::new(head);
    // The stream has used the length.
    let _length = fields.u32().ok()?;
    let code = fields.u32().ok()?;
    let (unique, node) = (fields.u64().ok()?, fields.u64().ok()?);
    let header = Header { unique, node, uid: fields.u32().ok()?, gid: fields.u32().ok()? };
    Some((header, operation(code, Fields::new(body))))
}

fn operation(code: u32, mut fields: Fields<'_>) -> Result<Operation<'_>, Refusal> {
    use Operation as O;
    let operation = match code {
        opcode::INIT => {
            let (major, minor) = (fields.u32()?, fields.u32()?);
            let (max_readahead, features) = (fields.u32()?, fields.u32()?);
            // Newer kernels append fields.
            fields.rest();
            O::Init { major, minor, max_readahead, features: features & known_features() }
        }
        opcode::DESTROY => O::Destroy,
        opcode::INTERRUPT => {
            fields.skip(8)?;
            O::Interrupt
        }
        opcode::LOOKUP => O::Lookup(fields.name()?),
        opcode::FORGET => O::Forget { count: fields.u64()? },
        opcode::BATCH_FORGET => {
            let count = usize::try_from(fields.u32()?).map_err(|_| Refusal::Malformed)?;
            fields.skip(4)?;
            let pairs = fields.rest();
            if pairs.len() != count.saturating_mul(16) {
                return Err(Refusal::Malformed);
            }
            O::BatchForget(pairs)
        }
        opcode::READLINK => O::ReadLink,
        opcode::SYMLINK => O::Symlink { name: fields.name()?, target: fields.text()? },
        opcode::MKNOD => {
            let mode = fields.u32()?;
            fields.skip(12)?;
            O::MakeNode { name: fields.name()?, mode }
        }
        opcode::MKDIR => {
            let mode = fields.u32()?;
            fields.skip(4)?;
            O::MakeDirectory { name: fields.name()?, mode }
        }
        opcode::UNLINK => O::Unlink(fields.name()?),
        opcode::RMDIR => O::RemoveDirectory(fields.name()?),
        opcode::RENAME => {
            let parent = fields.u64()?;
            O::Rename { parent, from: fields.name()?, to: fields.name()?, flags: 0 }
        }
        opcode::RENAME2 => {
            let (parent, flags) = (fields.u64()?, fields.u32()?);
            fields.skip(4)?;
            O::Rename { parent, from: fields.name()?, to: fields.name()?, flags }
        }
        opcode::LINK => O::Link { of: fields.u64()?, name: fields.name()? },
        opcode::CREATE => {
            let (flags, mode) = (fields.u32()?, fields.u32()?);
            fields.skip(8)?;
            O::Create { name: fields.name()?, flags, mode }
        }
        opcode::STATFS => O::StatFs,
        opcode::SAVE => O::Save(Cursor::read(&mut fields)?),
        opcode::RESTORE => O::Restore(fields.rest()),
        _ => of_content(code, &mut fields)?,
    };
    fields.end()?;
    Ok(operation)
}

/// Reads what concerns the content of a node.
fn of_content<'a>(code: u32, fields: &mut Fields<'a>) -> Result<Operation<'a>, Refusal> {
    use Operation as O;
    Ok(match code {
        opcode::OPEN | opcode::OPENDIR => {
            let flags = fields.u32()?;
            fields.skip(4)?;
            if code == opcode::OPEN { O::Open { flags } } else { O::OpenDirectory }
        }
        opcode::READ | opcode::READDIR | opcode::READDIRPLUS => {
            let (handle, offset, size) = (fields.u64()?, fields.u64()?, size(fields.u32()?)?);
            fields.skip(20)?;
            match code {
                opcode::READ => O::Read { handle, offset, size },
                _ => O::ReadDirectory { handle, offset, size, plus: code == opcode::READDIRPLUS },
            }
        }
        opcode::WRITE => {
            let (handle, offset, size) = (fields.u64()?, fields.u64()?, size(fields.u32()?)?);
            fields.skip(20)?;
            let data = fields.rest();
            if data.len() != size {
                return Err(Refusal::Malformed);
            }
            O::Write { handle, offset, data }
        }
        opcode::FLUSH => {
            fields.skip(24)?;
            O::Flush
        }
        opcode::RELEASE | opcode::RELEASEDIR => {
            let handle = fields.u64()?;
            fields.skip(16)?;
            O::Release { handle }
        }
        opcode::FSYNC | opcode::FSYNCDIR => {
            let (handle, flags) = (fields.u64()?, fields.u32()?);
            fields.skip(4)?;
            O::Sync { handle, only_data: flags & FSYNC_DATA != 0 }
        }
        opcode::FALLOCATE => {
            let (handle, offset, length) = (fields.u64()?, fields.u64()?, fields.u64()?);
            let mode = fields.u32()?;
            fields.skip(4)?;
            O::Allocate { handle, offset, length, mode }
        }
        opcode::LSEEK => {
            let (handle, offset, whence) = (fields.u64()?, fields.u64()?, fields.u32()?);
            fields.skip(4)?;
            O::Seek { handle, offset, whence }
        }
        _ => return of_attributes(code, fields),
    })
}

/// Reads what concerns the attributes of a node.
fn of_attributes<'a>(code: u32, fields: &mut Fields<'a>) -> Result<Operation<'a>, Refusal> {
    use Operation as O;
    Ok(match code {
        opcode::GETATTR => {
            let flags = fields.u32()?;
            fields.skip(4)?;
            let handle = fields.u64()?;
            O::GetAttributes { handle: (flags & GETATTR_FH != 0).then_some(handle) }
        }
        opcode::SETATTR => return set_attributes(fields),
        opcode::GETXATTR => {
            let size = size(fields.u32()?)?;
            fields.skip(4)?;
            O::GetXattr { name: fields.text()?, size }
        }
        opcode::LISTXATTR => {
            let size = size(fields.u32()?)?;
            fields.skip(4)?;
            O::ListXattrs { size }
        }
        opcode::SETXATTR => {
            let (size, flags) = (size(fields.u32()?)?, fields.u32()?);
            let (name, value) = (fields.text()?, fields.rest());
            if value.len() != size {
                return Err(Refusal::Malformed);
            }
            O::SetXattr { name, value, flags }
        }
        opcode::REMOVEXATTR => O::RemoveXattr { name: fields.text()? },
        opcode::ACCESS => {
            let mask = fields.u32()?;
            fields.skip(4)?;
            O::Access { mask }
        }
        _ => return Err(Refusal::Unsupported),
    })
}

fn size(size: u32) -> Result<usize, Refusal> {
    usize::try_from(size).ok().filter(|size| *size <= MAX_DATA).ok_or(Refusal::Malformed)
}

/// Returns the features of this server.
fn known_features() -> u32 {
    feature::ASYNC_READ
        | feature::ATOMIC_O_TRUNC
        | feature::BIG_WRITES
        | feature::AUTO_INVAL_DATA
        | feature::DO_READDIRPLUS
        | feature::READDIRPLUS_AUTO
        | feature::PARALLEL_DIROPS
        | feature::MAX_PAGES
        | feature::HANDLE_KILLPRIV_V2
}

fn set_attributes<'a>(fields: &mut Fields<'a>) -> Result<Operation<'a>, Refusal> {
    let valid = fields.u32()?;
    fields.skip(4)?;
    let (handle, size) = (fields.u64()?, fields.u64()?);
    fields.skip(8)?;
    let (accessed, modified) = (fields.u64()?, fields.u64()?);
    fields.skip(8)?;
    let (accessed_ns, modified_ns) = (fields.u32()?, fields.u32()?);
    fields.skip(4)?;
    let mode = fields.u32()?;
    fields.skip(4)?;
    let (uid, gid) = (fields.u32()?, fields.u32()?);
    fields.skip(4)?;
    let has = |bit: u32| valid & bit != 0;
    let time = |is_set: bool, is_now: bool, seconds: u64, nanoseconds: u32| {
        // Special values are above a second, so other nanoseconds may not be.
        let exact = Timespec { tv_sec: seconds.cast_signed(), tv_nsec: i64::from(nanoseconds) };
        match (is_set, is_now) {
            (_, true) => Ok(Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_NOW }),
            (true, false) if nanoseconds < 1_000_000_000 => Ok(exact),
            (true, false) => Err(Refusal::Malformed),
            (false, false) => Ok(Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_OMIT }),
        }
    };
    let times = if has(set::ATIME | set::MTIME | set::ATIME_NOW | set::MTIME_NOW) {
        Some(Times {
            accessed: time(has(set::ATIME), has(set::ATIME_NOW), accessed, accessed_ns)?,
            modified: time(has(set::MTIME), has(set::MTIME_NOW), modified, modified_ns)?,
        })
    } else {
        None
    };
    Ok(Operation::SetAttributes {
        handle: has(set::FH).then_some(handle),
        mode: has(set::MODE).then_some(mode),
        uid: has(set::UID).then_some(uid),
        gid: has(set::GID).then_some(gid),
        size: has(set::SIZE).then_some(size),
        times,
    })
}
