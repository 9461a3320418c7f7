//! The FUSE protocol as data: requests of a guest's kernel, and replies (linux/fuse.h, version 7.31 and
//! later). Knows no files. A request that is not exactly what the kernel sends is refused.

pub(crate) mod constants;
mod fields;
mod name;
pub(crate) mod record;
mod refusal;
mod reply;
mod request;

pub(crate) use name::Name;
pub(crate) use refusal::Refusal;
pub(crate) use reply::{Attributes, Directory, DirectoryEntry, Entry, Reply, error};
pub(crate) use request::{Operation, Times, parse};

/// Size in bytes of the head of a request.
pub const HEADER: usize = 40;
/// Maximum number of bytes of one read or write.
pub(crate) const MAX_DATA: usize = 128 << 10;
/// Maximum size of a request in bytes: a write, with its heads.
pub const MAX_MESSAGE: usize = MAX_DATA + 4096;
