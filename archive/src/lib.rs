//! Directory trees as tar streams. Modes, times, symbolic and hard links, `user.*` attributes and
//! holes are preserved.
//!
//! ```text
//! directory ── pack ──> writer ──> bytes ──> reader ──> unpack ──> directory
//! ```
//! Both ends of a copy use this crate: the agent of the guest, in a process that serves one
//! request, and the manager. It uses blocking I/O on descriptors. Its memory is bounded for every
//! stream and directory: one block, the names and attributes of one entry, and the limits of
//! [`pack`] and [`unpack`]. Neither end trusts the other: the reader checks everything in its
//! stream, and [`unpack`] can confine itself to one directory (see [`Trust`]). The crate knows
//! nothing about sandboxes, wires or terminals. [`pack_layer`] packs what an overlay changed, as the
//! layer of an image.
//!
//! It writes POSIX pax (pax(1)), which GNU tar, bsdtar and Python's tarfile read. It reads that,
//! old GNU tar and ustar. It uses no tar library, because those of Rust read long names and
//! attributes of any stated length into memory, and do not support sparse files of pax.

mod attributes;
mod entry;
mod header;
mod layer;
mod new_file;
mod pack;
mod place;
mod reader;
mod records;
mod sparse;
mod unpack;
mod writer;

pub use entry::{Entry, Extent, Kind, MAX_PATH, Timestamp, Totals};
pub use layer::{Candidate, pack_layer};
pub use pack::{PackError, PackOptions, pack};
pub use place::{PlaceError, Temporary, temporary_replaces};
pub use reader::{ReadError, Reader};
pub use unpack::{Trust, UnpackError, UnpackPolicy, unpack, unpack_single};
pub use writer::Writer;
