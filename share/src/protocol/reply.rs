//! Replies: results to bytes.

use super::MAX_DATA;
use rustix::io::Errno;

/// Size in bytes of the head of a reply.
const HEADER: usize = 16;
/// How long the guest's kernel may use names and attributes without asking again, in seconds.
const VALID: u64 = 1;
/// Size in bytes of the fields of an entry of a directory, before its name.
const DIRECTORY_ENTRY: usize = 24;
/// Size in bytes of the fields of an entry.
const ENTRY: usize = 128;

/// Attributes of a file, as the guest sees them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Attributes {
    pub(crate) inode: u64,
    pub(crate) size: u64,
    pub(crate) blocks: u64,
    /// Seconds and nanoseconds of access, modification and change.
    pub(crate) times: [(u64, u32); 3],
    pub(crate) mode: u32,
    pub(crate) links: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) block_size: u32,
}

/// A file that the guest refers to from now on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) node: u64,
    pub(crate) attributes: Attributes,
}

/// The bytes of a reply, which begin with an empty head.
#[derive(Debug)]
pub(crate) struct Reply(Vec<u8>);

/// Returns the bytes of a reply that reports an error.
pub(crate) fn error(unique: u64, errno: Errno) -> Vec<u8> {
    Reply::empty().finish(unique, -errno.raw_os_error())
}

impl Reply {
    pub(crate) fn empty() -> Self {
        Self(vec![0; HEADER])
    }

    fn u32(mut self, value: u32) -> Self {
        self.0.extend(value.to_le_bytes());
        self
    }

    fn u64(mut self, value: u64) -> Self {
        self.0.extend(value.to_le_bytes());
        self
    }

    fn attribute_fields(self, attributes: &Attributes) -> Self {
        let [accessed, modified, changed] = attributes.times;
        self.u64(attributes.inode)
            .u64(attributes.size)
            .u64(attributes.blocks)
            .u64(accessed.0)
            .u64(modified.0)
            .u64(changed.0)
            .u32(accessed.1)
            .u32(modified.1)
            .u32(changed.1)
            .u32(attributes.mode)
            .u32(attributes.links)
            .u32(attributes.uid)
            .u32(attributes.gid)
            // Devices are never served, so there is no number of one.
            .u32(0)
            .u32(attributes.block_size)
            .u32(0)
    }

    fn entry_fields(self, node: u64, attributes: &Attributes) -> Self {
        self.u64(node).u64(0).u64(VALID).u64(VALID).u32(0).u32(0).attribute_fields(attributes)
    }

    pub(crate) fn attributes(attributes: &Attributes) -> Self {
        Self::empty().u64(VALID).u32(0).u32(0).attribute_fields(attributes)
    }

    pub(crate) fn entry(entry: &Entry) -> Self {
        Self::empty().entry_fields(entry.node, &entry.attributes)
    }

    pub(crate) fn opened(self, handle: u64) -> Self {
        self.u64(handle).u32(0).u32(0)
    }

    pub(crate) fn bytes(bytes: &[u8]) -> Self {
        let mut reply = Self::empty();
        reply.0.extend_from_slice(bytes);
        reply
    }

    /// Fills the reply with what `read` reads into a buffer of this size.
    pub(crate) fn filled(size: usize, read: impl FnOnce(&mut [u8]) -> Result<usize, Errno>) -> Result<Self, Errno> {
        let mut reply = Self(vec![0; HEADER + size.min(MAX_DATA)]);
        let count = read(&mut reply.0[HEADER..])?;
        reply.0.truncate(HEADER + count);
        Ok(reply)
    }

    pub(crate) fn written(count: usize) -> Self {
        Self::empty().u32(u32::try_from(count).unwrap_or(u32::MAX)).u32(0)
    }

    /// The size of an extended attribute, or of their list.
    pub(crate) fn xattr_size(size: usize) -> Self {
        Self::written(size)
    }

    pub(crate) fn offset(offset: u64) -> Self {
        Self::empty().u64(offset)
    }

    pub(crate) fn statfs(stat: &rustix::fs::StatVfs) -> Self {
        let u32 = |value: u64| u32::try_from(value).unwrap_or(u32::MAX);
        let reply = Self::empty()
            .u64(stat.f_blocks)
            .u64(stat.f_bfree)
            .u64(stat.f_bavail)
            .u64(stat.f_files)
            .u64(stat.f_ffree)
            .u32(u32(stat.f_bsize))
            .u32(u32(stat.f_namemax))
            .u32(u32(stat.f_frsize));
        (0..7).fold(reply, |reply, _| reply.u32(0))
    }

    /// The answer to INIT.
    pub(crate) fn init(minor: u32, max_readahead: u32, features: u32) -> Self {
        let data = u32::try_from(MAX_DATA).unwrap_or(u32::MAX);
        let pages = data / 4096;
        // Requests that the kernel sends at a time without a process that waits, and from when on it delays
        // more of them: 12 and 10, 16 bits each.
        let background = 12 | 10 << 16;
        let reply = Self::empty()
            .u32(super::constants::MAJOR)
            .u32(minor)
            .u32(max_readahead.min(data))
            .u32(features)
            .u32(background)
            .u32(data)
            // Times are exact to the nanosecond.
            .u32(1)
            .u32(pages);
        (0..8).fold(reply, |reply, _| reply.u32(0))
    }

    /// Completes the head.
    pub(crate) fn finish(mut self, unique: u64, error: i32) -> Vec<u8> {
        let length = u32::try_from(self.0.len()).unwrap_or(u32::MAX);
        self.0[..4].copy_from_slice(&length.to_le_bytes());
        self.0[4..8].copy_from_slice(&error.to_le_bytes());
        self.0[8..HEADER].copy_from_slice(&unique.to_le_bytes());
        self.0
    }
}

/// An entry of a directory.
#[derive(Debug, Clone, Copy)]
pub(crate) struct DirectoryEntry<'a> {
    pub(crate) inode: u64,
    /// Where the next entry begins.
    pub(crate) next: u64,
    /// Type of the file, as in readdir(3).
    pub(crate) kind: u32,
    pub(crate) name: &'a [u8],
}

/// A part of a directory.
#[derive(Debug)]
pub(crate) struct Directory {
    reply: Reply,
    room: usize,
    plus: bool,
}

impl Directory {
    /// Begins a part with this number of bytes. With `plus`, entries come with their attributes.
    pub(crate) fn new(size: usize, plus: bool) -> Self {
        Self { reply: Reply::empty(), room: size.min(MAX_DATA), plus }
    }

    /// Returns true if there is room for an entry with a name of this length.
    pub(crate) fn has_room(&self, name: usize) -> bool {
        self.size(name) <= self.room
    }

    fn size(&self, name: usize) -> usize {
        (DIRECTORY_ENTRY + name).next_multiple_of(8) + if self.plus { ENTRY } else { 0 }
    }

    /// Adds an entry. `entry` is the file that the guest refers to from now on, if it does.
    pub(crate) fn add(&mut self, item: &DirectoryEntry<'_>, entry: Option<&Entry>) {
        self.room = self.room.saturating_sub(self.size(item.name.len()));
        let mut reply = std::mem::replace(&mut self.reply, Reply(Vec::new()));
        if self.plus {
            // Node 0 says that the name was not looked up.
            let (node, attributes) = entry.map_or((0, Attributes::default()), |entry| (entry.node, entry.attributes));
            reply = reply.entry_fields(node, &attributes);
        }
        let length = u32::try_from(item.name.len()).unwrap_or(u32::MAX);
        reply = reply.u64(item.inode).u64(item.next).u32(length).u32(item.kind);
        reply.0.extend_from_slice(item.name);
        let padded = DIRECTORY_ENTRY + item.name.len();
        reply.0.resize(reply.0.len() + (padded.next_multiple_of(8) - padded), 0);
        self.reply = reply;
    }

    pub(crate) fn into_reply(self) -> Reply {
        self.reply
    }
}
